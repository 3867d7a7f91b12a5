#include "shim/arrays.hpp"

#include <algorithm>

namespace pg_billing::shim {

void Array::add(const std::optional<std::string> &element) {
    text_ += text_.empty() ? '{' : ',';
    if (!element) {
        text_ += "NULL";
        return;
    }
    text_ += '"';
    for (const char c : *element) {
        if (c == '"' || c == '\\')
            text_ += '\\';
        text_ += c;
    }
    text_ += '"';
}

std::size_t Callers::number_of(const Credential &caller) {
    // The latest first: who has just called calls again.
    const auto known = std::find(callers_.rbegin(), callers_.rend(), caller);
    if (known != callers_.rend())
        return static_cast<std::size_t>(callers_.rend() - known);
    callers_.push_back(caller);
    keys.add(caller.key_sha256);
    tenants.add(caller.tenant);
    return callers_.size();
}

}  // namespace pg_billing::shim
