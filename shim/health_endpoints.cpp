#include "shim/caller.hpp"
#include "shim/endpoints.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

awaitable<http::Response> healthz(const Call &) {
    co_return json_response(200, R"({"status":"alive"})");
}

awaitable<http::Response> readyz(Database &database) {
    std::vector<Statement> statements;
    statements.push_back(
        {"SELECT json_build_object('status', 'ready', 'schemaVersion', billing.installed_version())::text",
         {}});
    const Rows rows = co_await database.run(std::move(statements));
    co_return json_response(200, rows.at(0).at(0).value());
}

awaitable<http::Response> metrics(Database &database, const Call &call) {
    std::vector<Statement> statements;
    statements.push_back({"SELECT billing.scrape_metrics($1::bytea)", {credential(call).key_sha256}});
    const Rows rows = co_await database.run(std::move(statements));
    http::Response response;
    response.fields.emplace_back("Content-Type", "text/plain; version=0.0.4; charset=utf-8");
    response.body = rows.at(0).at(0).value();
    co_return response;
}

}  // namespace

void add_health_endpoints(Router &router, Database &database) {
    router.add("GET", "/healthz", healthz);
    router.add("GET", "/readyz", [&database](const Call &) { return readyz(database); });
    router.add("GET", "/metrics", [&database](const Call &call) { return metrics(database, call); });
}

}  // namespace pg_billing::shim
