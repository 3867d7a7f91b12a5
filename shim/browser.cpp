#include "shim/browser.hpp"

#include <algorithm>
#include <regex>

namespace pg_billing::shim {

bool is_origin(std::string_view text) {
    static const std::regex form(R"(https?://([a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:]+\])(:[1-9][0-9]{0,4})?)");
    return std::regex_match(text.begin(), text.end(), form);
}

void add_security_fields(http::Response &response, const BrowserRules &rules) {
    response.fields.emplace_back("Cache-Control", "no-store");
    response.fields.emplace_back("X-Content-Type-Options", "nosniff");
    response.fields.emplace_back("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'");
    response.fields.emplace_back("Referrer-Policy", "no-referrer");
    if (rules.tls)  // RFC 6797: over TLS only
        response.fields.emplace_back("Strict-Transport-Security", "max-age=31536000");
}

void add_cors_fields(http::Response &response, const BrowserRules &rules, std::string_view origin,
                     bool preflight) {
    if (rules.origins.empty())
        return;
    response.fields.emplace_back("Vary", "Origin");
    if (std::find(rules.origins.begin(), rules.origins.end(), origin) == rules.origins.end())
        return;
    response.fields.emplace_back("Access-Control-Allow-Origin", origin);
    response.fields.emplace_back(
        "Access-Control-Expose-Headers",
        "Location, RateLimit, RateLimit-Policy, Retry-After, traceresponse, X-Request-Id");
    if (!preflight)
        return;
    const auto methods = std::find_if(response.fields.begin(), response.fields.end(),
                                      [](const auto &field) { return field.first == "Allow"; });
    if (methods == response.fields.end())
        return;
    response.fields.emplace_back("Access-Control-Allow-Methods", std::string(methods->second));
    response.fields.emplace_back("Access-Control-Allow-Headers",
                                 "Authorization, Content-Type, Idempotency-Key, traceparent, tracestate, "
                                 "X-Request-Id, X-Tenant-Id");
    response.fields.emplace_back("Access-Control-Max-Age", "7200");
}

}  // namespace pg_billing::shim
