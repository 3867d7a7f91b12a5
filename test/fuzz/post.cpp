// libFuzzer target: a request to record usage is refused with a Problem of the client's, or read as events that PostgreSQL can hold.
//
// An input is the content type, fields like "ce-id: 1" a line each, an empty line, and the body.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "shim/events.hpp"
#include "shim/json.hpp"
#include "shim/problem.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    using namespace pg_billing;
    std::string_view rest(reinterpret_cast<const char *>(data), size);
    const auto line = [&rest] {
        const std::string_view one = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(one.size() + 1, rest.size()));
        return one;
    };
    http::Request request;
    request.fields.emplace_back("content-type", line());
    for (std::string_view field = line(); !field.empty(); field = line()) {
        const auto colon = std::min(field.find(": "), field.size());
        request.fields.emplace_back(field.substr(0, colon), field.substr(std::min(colon + 2, field.size())));
    }
    request.body = rest;
    const auto holds = [](const std::optional<std::string> &text) {
        if (text && !shim::is_text(*text))
            std::abort();
    };
    try {
        for (const shim::Event &event : shim::Post(request).take_events()) {
            holds(event.metric);
            holds(event.tenant);
            holds(event.idempotency_key);
            holds(event.occurred_at);
            holds(event.properties);
            if (event.quantity && !shim::is_decimal(*event.quantity))
                std::abort();
        }
    } catch (const shim::Problem &problem) {
        if (problem.status >= 500)
            std::abort();
    }
    return 0;
}
