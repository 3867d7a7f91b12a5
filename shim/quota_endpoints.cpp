#include "shim/caller.hpp"
#include "shim/checker.hpp"
#include "shim/decision.hpp"
#include "shim/endpoints.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

const std::string kQuotas = std::string(R"(
    SELECT json_build_object('tenantId', )") +
                            kTenant + R"(, 'quotas', coalesce(json_agg(json_build_object(
               'metric', q.metric, 'kind', q.kind, 'unit', q.unit, 'per', q.per, 'quota', q.quota, 'cap', q.cap,
               'grace', q.grace, 'own', q.own, 'refusal', q.refusal,
               'periodStart', CASE WHEN isfinite(q.period_start) THEN q.period_start END,
               'periodEnd', CASE WHEN isfinite(q.period_end) THEN q.period_end END)), '[]'))::text
      FROM billing.get_quotas()" +
                            kTenant + ") q";

awaitable<http::Response> get_quotas(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, "usage:read")};
    statements.push_back({kQuotas.c_str(), {}});
    const Rows rows = co_await database.run(std::move(statements));
    co_return json_response(200, rows.at(0).at(0).value());
}

awaitable<http::Response> get_check(Checker &checker, const Call &call) {
    Credential caller = credential_or_token(call, "usage:read");
    const Query query(call.request, {"metric", "quantity"});
    const std::string metric = query.required_text("metric");
    co_return decision_response(metric,
                                co_await checker.check(std::move(caller), metric, query.decimal("quantity")));
}

}  // namespace

void add_quota_endpoints(Router &router, Database &database, Checker &checker) {
    router.add("GET", "/api/billing/quotas",
               [&database](const Call &call) { return get_quotas(database, call); });
    router.add("GET", "/api/billing/check",
               [&checker](const Call &call) { return get_check(checker, call); });
}

}  // namespace pg_billing::shim
