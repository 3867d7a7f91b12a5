#include <charconv>
#include <ctime>

#include "shim/caller.hpp"
#include "shim/endpoints.hpp"
#include "shim/problem.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

const std::string kTenantThatIsThere = std::string("SELECT billing.begin_session(") + kTenant + ")";

constexpr char kUsualScope[] = "usage:read subscription:read";
constexpr std::int64_t kUsualLifetime = 900;

std::int64_t lifetime_of(const Members &members) {
    const auto text = members.integer("expiresInSeconds");
    std::int64_t lifetime = kUsualLifetime;
    if (text && (std::from_chars(text->data(), text->data() + text->size(), lifetime).ec != std::errc() ||
                 lifetime < 1 || lifetime > Tokens::kLongest))
        throw Problem(422, "invalid_argument", "A token lasts from 1 to 3600 seconds.", "expiresInSeconds");
    return lifetime;
}

std::string as_timestamp(std::time_t time) {
    std::tm utc{};
    gmtime_r(&time, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

// A key gives away only what it may do itself.
awaitable<http::Response> post_session(Database &database, const Tokens &tokens, const Call &call) {
    refuse_query(call.request);
    if (!tokens.can_sign())
        throw Problem(503, "sessions_not_configured", "The server has no secret to sign tokens with.");
    std::vector<Statement> statements{begin_request(call, "sessions:create")};
    const Json body = optional_json_body(call.request);
    const Members members(body, {"scope", "expiresInSeconds"});
    const std::int64_t lifetime = lifetime_of(members);
    Session session{{}, words(members.text("scope").value_or(kUsualScope))};
    for (const std::string &scope : session.scopes)
        statements.push_back(begin_request(call, scope));
    statements.push_back({kTenantThatIsThere.c_str(), {}});
    const Rows rows = co_await database.run(std::move(statements));
    session.tenant = rows.at(0).at(0).value();
    const std::time_t now = std::time(nullptr);
    std::string json = R"({"token":)";
    write_json(json, std::string_view(tokens.make(session, now, lifetime)));
    json += R"(,"tokenType":"Bearer","tenantId":)";
    write_json(json, std::string_view(session.tenant));
    json += R"(,"scope":)";
    write_json(json, std::string_view(joined(session.scopes)));
    json += R"(,"expiresAt":")" + as_timestamp(now + lifetime) + "\"}";
    co_return json_response(201, std::move(json));
}

}  // namespace

void add_session_endpoints(Router &router, Database &database, const Tokens &tokens) {
    router.add("POST", "/api/billing/sessions",
               [&database, &tokens](const Call &call) { return post_session(database, tokens, call); });
}

}  // namespace pg_billing::shim
