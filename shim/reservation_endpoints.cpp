#include "shim/caller.hpp"
#include "shim/decision.hpp"
#include "shim/endpoints.hpp"
#include "shim/problem.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

const std::string kReserve =
    decision_query(std::string("reserve(") + kTenant +
                       ", $1::text, coalesce($2::numeric, 1), coalesce(make_interval(secs => $3::int), '10 "
                       "minutes'), $4::text)",
                   true);
const std::string kSettle = decision_query("settle($1::uuid, $2::numeric, $3::jsonb)");
const std::string kRelease = decision_query("release($1::uuid)");

// The reservation of the address. What is no UUID is no reservation's id.
std::string id_of(const Call &call) {
    const std::string &id = call.captures.at(0);
    bool uuid = id.size() == 36;
    for (std::size_t i = 0; uuid && i < id.size(); ++i)
        uuid = i == 8 || i == 13 || i == 18 || i == 23
                   ? id[i] == '-'
                   : std::string_view("0123456789abcdefABCDEF").find(id[i]) != std::string_view::npos;
    if (!uuid)
        throw Problem(404, "unknown_reservation", "There is no such reservation.");
    return id;
}

awaitable<http::Response> post_reservation(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, "usage:write")};
    const Json body = json_body(call.request);
    const Members members(body, {"metric", "quantity", "ttlSeconds", "idempotencyKey"});
    const std::string metric = members.required_text("metric");
    auto key = members.text("idempotencyKey");
    if (!key)
        key = idempotency_key(call.request);
    statements.push_back(
        {kReserve.c_str(),
         {metric, members.decimal("quantity"), members.integer("ttlSeconds"), std::move(key)}});
    const Rows rows = co_await database.run(std::move(statements));
    co_return decision_response(metric, rows.at(0), "allowed");
}

awaitable<http::Response> settle(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, "usage:write")};
    const Json body = json_body(call.request);
    const Members members(body, {"quantity", "properties"});
    auto quantity = members.decimal("quantity");
    if (!quantity)
        throw Problem(400, "missing_field", "The member \"quantity\" is missing.", "quantity");
    statements.push_back({kSettle.c_str(), {id_of(call), std::move(quantity), members.object("properties")}});
    const Rows rows = co_await database.run(std::move(statements));
    co_return decision_response(std::nullopt, rows.at(0));
}

awaitable<http::Response> release(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, "usage:write")};
    const Json body = optional_json_body(call.request);
    const Members none(body, {});
    statements.push_back({kRelease.c_str(), {id_of(call)}});
    const Rows rows = co_await database.run(std::move(statements));
    co_return decision_response(std::nullopt, rows.at(0));
}

}  // namespace

void add_reservation_endpoints(Router &router, Database &database) {
    router.add("POST", "/api/billing/reservations",
               [&database](const Call &call) { return post_reservation(database, call); });
    router.add("POST", "/api/billing/reservations/:id/settle",
               [&database](const Call &call) { return settle(database, call); });
    router.add("POST", "/api/billing/reservations/:id/release",
               [&database](const Call &call) { return release(database, call); });
}

}  // namespace pg_billing::shim
