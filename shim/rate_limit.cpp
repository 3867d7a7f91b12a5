#include "shim/rate_limit.hpp"

namespace pg_billing::shim {

namespace {

// RFC 9651 §3.3.1: an integer of a structured field has at most fifteen digits.
std::string structured_integer(const std::string &digits) {
    return digits.size() > 15 ? std::string(15, '9') : digits;
}

// RFC 9651 §3.3.3: a string of a structured field is printable ASCII, with '"' and '\' escaped.
std::optional<std::string> structured_string(std::string_view text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c < 0x20 || c > 0x7e)
            return std::nullopt;
        if (c == '"' || c == '\\')
            result += '\\';
        result += c;
    }
    return result + '"';
}

}  // namespace

http::Fields rate_limit_fields(std::string_view metric, const QuotaState &state) {
    const auto name = structured_string(metric);
    if (!name || !state.quota || !state.remaining)
        return {};
    std::string limit = *name + ";r=" + structured_integer(*state.remaining);
    if (state.resets_in)
        limit += ";t=" + structured_integer(*state.resets_in);
    return {{"RateLimit-Policy", *name + ";q=" + structured_integer(*state.quota)}, {"RateLimit", limit}};
}

}  // namespace pg_billing::shim
