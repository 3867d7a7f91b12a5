#include "shim/caller.hpp"
#include "shim/decision.hpp"
#include "shim/endpoints.hpp"
#include "shim/events.hpp"
#include "shim/log.hpp"
#include "shim/problem.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

// JSON is made in SQL: numbers keep every digit, and times come out as RFC 3339 has them.
const std::string kUsage = R"(
    json_build_object('metric', s.metric, 'kind', s.kind, 'unit', s.unit, 'used', s.used, 'quota', s.quota,
                      'remaining', s.remaining, 'percentage', s.percentage, 'cap', s.cap,
                      'periodStart', CASE WHEN isfinite(s.period_start) THEN s.period_start END,
                      'periodEnd', CASE WHEN isfinite(s.period_end) THEN s.period_end END))";

const std::string kUsageSummary =
    std::string("SELECT json_build_object('tenantId', ") + kTenant + ", 'metrics', coalesce(json_agg(" +
    kUsage + " ORDER BY s.metric), '[]'))::text FROM billing.get_usage_summary(" + kTenant + ") s";

const std::string kUsageOfMetric =
    "SELECT " + kUsage + "::text FROM billing.get_usage_summary(" + kTenant + ") s WHERE s.metric = $1::text";

const std::string kConsume =
    decision_query(std::string("try_consume(") + kTenant +
                   ", $1::text, coalesce($2::numeric, 1), $3::text, NULL, $4::jsonb)");

awaitable<http::Response> get_usage(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, "usage:read")};
    if (call.captures.empty())
        statements.push_back({kUsageSummary.c_str(), {}});
    else
        statements.push_back({kUsageOfMetric.c_str(), {call.captures[0]}});
    const Rows rows = co_await database.run(std::move(statements));
    if (rows.empty())
        throw Problem(404, "unknown_metric", "There is no metric of that name.", "metric");
    co_return json_response(200, rows[0][0].value());
}

awaitable<http::Response> post_events(Recorder &recorder, const Call &call) {
    refuse_query(call.request);
    Credential caller = credential(call);
    Post post(call.request);
    const auto recorded = co_await recorder.record(std::move(caller), post.take_events());
    Rejections rejections;
    http::Response response = post.answer(recorded, rejections);
    if (rejections.count > 0)  // who ships a log does not read the answers
        log("events_rejected", {{"count", rejections.count}, {"code", rejections.code}}, ids_of(call));
    co_return response;
}

awaitable<http::Response> post_consume(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, "usage:write")};
    const Json body = json_body(call.request);
    const Members members(body, {"metric", "quantity", "idempotencyKey", "properties"});
    const std::string metric = members.required_text("metric");
    auto key = members.text("idempotencyKey");
    if (!key)
        key = idempotency_key(call.request);
    statements.push_back(
        {kConsume.c_str(),
         {metric, members.decimal("quantity"), std::move(key), members.object("properties")}});
    const Rows rows = co_await database.run(std::move(statements));
    co_return decision_response(metric, rows.at(0));
}

}  // namespace

void add_usage_endpoints(Router &router, Database &database, Recorder &recorder) {
    const auto usage = [&database](const Call &call) { return get_usage(database, call); };
    router.add("GET", "/api/billing/usage", usage);
    router.add("GET", "/api/billing/usage/:metric", usage);
    router.add("POST", "/api/billing/events",
               [&recorder](const Call &call) { return post_events(recorder, call); });
    router.add("POST", "/api/billing/consume",
               [&database](const Call &call) { return post_consume(database, call); });
}

}  // namespace pg_billing::shim
