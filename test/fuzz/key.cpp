// libFuzzer target: what a request's fields say about its caller is refused with a Problem of the client's, or is a key that was
// presented there; address, trace and idempotency key are read, or left, as what they may be.
//
// An input has fields like "authorization: Bearer pgb_…" a line each.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "shim/caller.hpp"
#include "shim/json.hpp"
#include "shim/problem.hpp"
#include "shim/throttle.hpp"
#include "shim/trace.hpp"

namespace {

using namespace pg_billing;

void require(bool holds) {
    if (!holds)
        std::abort();
}

template <class F>
void refused_or(F &&read) {
    try {
        read();
    } catch (const shim::Problem &problem) {
        require(problem.status == 400 || problem.status == 401 || problem.status == 403);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    static const shim::Networks trusted({"10.0.0.0/8", "::1"});
    std::string_view rest(reinterpret_cast<const char *>(data), size);
    shim::Call call;
    call.request.peer = "10.0.0.1";
    bool has_key = false;
    while (!rest.empty()) {
        const std::string_view line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(line.size() + 1, rest.size()));
        const auto colon = std::min(line.find(": "), line.size());
        call.request.fields.emplace_back(line.substr(0, colon),
                                         line.substr(std::min(colon + 2, line.size())));
        has_key |= line.find("pgb_") != line.npos;
    }
    refused_or([&] {
        const shim::Credential caller = shim::credential(call);
        require(has_key && caller.key_sha256->size() == 66);
        require(!caller.tenant || shim::is_text(*caller.tenant));
        require(shim::caller_of(call).has_value());
    });
    refused_or([&] {
        const auto key = shim::idempotency_key(call.request);
        require(!key || shim::is_text(*key));
    });
    const auto address = shim::client_address(call.request, trusted);
    require(!address || !trusted.contain(*address) || *address == call.request.peer);
    shim::media_type(call.request.field("content-type").value_or(""));
    const std::string response = shim::traceresponse(shim::trace_of(call.request));
    require(response.size() == 55 && response.find_first_not_of("0123456789abcdef-") == response.npos);
    return 0;
}
