// What browsers are told about answers: whose pages may read them (CORS, fetch.spec.whatwg.org), and that there is nothing in
// them to show, run or keep. No cookie is ever used, so no origin gets credentials of another.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "shim/http_server.hpp"

namespace pg_billing::shim {

struct BrowserRules {
    std::vector<std::string> origins;  // whose pages may call, as "https://app.example.com"
    bool tls = false;                  // whether this is served over TLS
};

// Whether a text is an origin as browsers write it: scheme, host and port if it is not the usual one.
bool is_origin(std::string_view text);

// Adds what every answer has.
void add_security_fields(http::Response &response, const BrowserRules &rules);

// Adds what the page of an origin (absent: "") may do with an answer; to OPTIONS that is a preflight, which asks by what methods
// and fields it may call.
void add_cors_fields(http::Response &response, const BrowserRules &rules, std::string_view origin,
                     bool preflight);

}  // namespace pg_billing::shim
