#include "shim/caller.hpp"
#include "shim/decision.hpp"
#include "shim/endpoints.hpp"
#include "shim/events.hpp"
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

// A call of a function that takes an event.
std::string event_call(const std::string &function) {
    return function + "(" + kTenant +
           ", $1::text, coalesce($2::numeric, 1), $3::text, $4::timestamptz, $5::jsonb)";
}

const std::string kRecord = decision_query(event_call("record_usage"));
const std::string kConsume = decision_query(event_call("try_consume"));

// A rejected event's reason is "SQLSTATE: message".
const std::string kRecordBatch = std::string(R"(
    SELECT r.ordinal::text, r.idempotency_key, r.status, left(r.reason, 5), substr(r.reason, 8)
      FROM billing.record_usage_batch(
               (SELECT coalesce(jsonb_agg(e.event || jsonb_build_object('tenant_id', )") +
                                 kTenant + R"()
                                          ORDER BY e.ordinal), '[]')
                  FROM jsonb_array_elements($1::jsonb) WITH ORDINALITY e (event, ordinal))) r)";

Statement decision_statement(const std::string &query, Event event) {
    Statement statement{query.c_str(), {}};
    statement.parameters = {std::move(event.metric), std::move(event.quantity),
                            std::move(event.idempotency_key), std::move(event.occurred_at),
                            std::move(event.properties)};
    return statement;
}

awaitable<http::Response> get_usage(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call.request, "usage:read")};
    if (call.captures.empty())
        statements.push_back({kUsageSummary.c_str(), {}});
    else
        statements.push_back({kUsageOfMetric.c_str(), {call.captures[0]}});
    const Rows rows = co_await database.run(std::move(statements));
    if (rows.empty())
        throw Problem(404, "unknown_metric", "There is no metric of that name.", "metric");
    co_return json_response(200, rows[0][0].value());
}

awaitable<http::Response> post_events(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call.request, "usage:write")};
    const Json body = json_body(call.request);
    if (body.kind == Json::Kind::array) {
        const Batch batch(body);
        statements.push_back({kRecordBatch.c_str(), {batch.payload()}});
        const Rows rows = co_await database.run(std::move(statements));
        co_return json_response(200, batch.results(rows));
    }
    Event event = read_event(body);
    if (!event.idempotency_key)
        event.idempotency_key = idempotency_key(call.request);
    const std::string metric = event.metric;
    statements.push_back(decision_statement(kRecord, std::move(event)));
    const Rows rows = co_await database.run(std::move(statements));
    co_return decision_response(metric, rows.at(0), "recorded");
}

awaitable<http::Response> post_consume(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call.request, "usage:write")};
    const Json body = json_body(call.request);
    const Members members(body, {"metric", "quantity", "idempotencyKey", "properties"});
    Event event{members.required_text("metric"), members.decimal("quantity"), members.text("idempotencyKey"),
                std::nullopt, members.object("properties")};
    if (!event.idempotency_key)
        event.idempotency_key = idempotency_key(call.request);
    const std::string metric = event.metric;
    statements.push_back(decision_statement(kConsume, std::move(event)));
    const Rows rows = co_await database.run(std::move(statements));
    co_return decision_response(metric, rows.at(0));
}

}  // namespace

void add_usage_endpoints(Router &router, Database &database) {
    const auto usage = [&database](const Call &call) { return get_usage(database, call); };
    router.add("GET", "/api/billing/usage", usage);
    router.add("GET", "/api/billing/usage/:metric", usage);
    router.add("POST", "/api/billing/events",
               [&database](const Call &call) { return post_events(database, call); });
    router.add("POST", "/api/billing/consume",
               [&database](const Call &call) { return post_consume(database, call); });
}

}  // namespace pg_billing::shim
