// The address that gateways ask before they let a request through: nginx (auth_request), Envoy and Istio (ext_authz over
// HTTP), Traefik and Caddy (forward auth). docs/gateways.md tells how each is set up.
//
// Rules:
//   - Options come from the gateway's configuration, never from the request that it asks about: in the query where the
//     gateway writes the whole address, in a segment of the path where it appends the request's own path and query.
//   - The key by which a question counts once is one of those options: an id that a client may choose would let it through
//     for nothing.
//   - Any method is answered alike, as some gateways ask with the request's own.
//   - nginx understands 2xx, 401 and 403, and takes anything else as a failure of its own. So to nginx every refusal is
//     a 403, whose X-Quota-Status says which status the client is to get.
//   - What to do while the database cannot decide is an option, too, as a gateway cannot tell such an answer from others.
#include "shim/caller.hpp"
#include "shim/checker.hpp"
#include "shim/decision.hpp"
#include "shim/endpoints.hpp"
#include "shim/log.hpp"
#include "shim/problem.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

const std::string kTake =
    decision_query(std::string("try_consume(") + kTenant + ", $1::text, coalesce($2::numeric, 1), $3::text)");

// What a gateway's configuration says.
struct Wanted {
    std::string metric;
    std::optional<std::string> quantity, key;  // the key: by which a repeated question counts once
    bool consumes, opens;
};

bool is_one_of(const Query &query, const char *name, const char *usual, const char *other) {
    const std::string value = query.text(name).value_or(usual);
    if (value != usual && value != other)
        throw Problem(
            400, "invalid_value",
            std::string("The parameter \"") + name + "\" is \"" + usual + "\" or \"" + other + "\".", name);
    return value == other;
}

// The options as they are written.
const std::string &options(const Call &call) {
    return call.captures.size() > 1 ? call.captures[1] : call.request.query;
}

Wanted wanted(const Call &call) {
    http::Request written;
    written.query = options(call);
    const Query query(written, {"quantity", "consume", "key", "on_error", "profile"});
    is_one_of(query, "profile", "forward", "nginx");
    Wanted wanted{call.captures[0], query.decimal("quantity"), query.text("key"),
                  query.boolean("consume") == "true", is_one_of(query, "on_error", "close", "open")};
    if (wanted.key)  // one request may ask about several metrics
        wanted.key = "gateway:" + wanted.metric + ":" + *wanted.key;
    return wanted;
}

awaitable<Row> decision(Database &database, Checker &checker, const Call &call, const Wanted &wanted) {
    if (!wanted.consumes)
        co_return co_await checker.check(credential_or_token(call, "usage:read"), wanted.metric,
                                         wanted.quantity);
    std::vector<Statement> statements{begin_request(call, "usage:write")};
    statements.push_back({kTake.c_str(), {wanted.metric, wanted.quantity, wanted.key}});
    const Rows rows = co_await database.run(std::move(statements));
    co_return rows.at(0);
}

awaitable<http::Response> decide(Database &database, Checker &checker, const Call &call,
                                 const Wanted &wanted) {
    const Row row = co_await decision(database, checker, call, wanted);
    http::Response response = decision_response(wanted.metric, row);
    response.fields.emplace_back("X-Quota-Reason", row.at(kReason).value());
    co_return response;
}

// An answer in place of one that the database could not give.
http::Response undecided(const Call &call, const Wanted &wanted, const Problem &problem,
                         const std::string &sqlstate, const std::string &error) {
    if (problem.status < 500)
        return to_response(problem);
    log("gateway_undecided",
        {{"metric", wanted.metric},
         {"answer", wanted.opens ? "let through" : "refused"},
         {"sqlstate", sqlstate},
         {"error", error}},
        ids_of(call));
    http::Response response = wanted.opens ? http::Response{} : to_response(problem);
    response.fields.emplace_back("X-Quota-Reason", "undecided");
    return response;
}

awaitable<http::Response> answer(Database &database, Checker &checker, const Call &call) {
    const Wanted wanted = shim::wanted(call);
    try {
        co_return co_await decide(database, checker, call, wanted);
    } catch (const PgFailure &failure) {
        co_return undecided(call, wanted, to_problem(failure), failure.sqlstate, failure.message);
    } catch (const Problem &problem) {
        co_return undecided(call, wanted, problem, "", problem.detail);
    }
}

awaitable<http::Response> gateway(Database &database, Checker &checker, const Call &call) {
    http::Response response;
    try {
        response = co_await answer(database, checker, call);
    } catch (const Problem &problem) {
        response = to_response(problem);
    }
    response.fields.emplace_back("X-Quota-Status", std::to_string(response.status));
    // also where the other options are wrong: what nginx takes for an error may be let through
    if (options(call).find("profile=nginx") != std::string::npos && response.status >= 400 &&
        response.status != 401)
        response.status = 403;
    co_return response;
}

}  // namespace

void add_gateway_endpoints(Router &router, Database &database, Checker &checker) {
    const auto ask = [&database, &checker](const Call &call) { return gateway(database, checker, call); };
    router.add("*", "/api/billing/gateway/:metric", ask);
    router.add("*", "/api/billing/gateway/:metric/:options/*", ask);
}

}  // namespace pg_billing::shim
