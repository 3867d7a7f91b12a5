#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "shim/caller.hpp"
#include "shim/endpoints.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;
using std::chrono::milliseconds;

namespace {

constexpr const char *kCreate = R"(
    SELECT billing.create_subscription(current_setting('pg_billing.tenant_id'), $1::text,
                                       coalesce($2::text, 'charge_automatically'), $3::int))";

constexpr const char *kGet = R"(
    SELECT json_build_object('subscriptionId', s.subscription_id::text,
                             'tenantId', current_setting('pg_billing.tenant_id'),
                             'planTier', s.plan, 'status', s.status,
                             'currentPeriodStart', s.current_period_start, 'currentPeriodEnd', s.current_period_end,
                             'cancelAtPeriodEnd', s.cancel_at_period_end,
                             'stripeSubscriptionId', s.stripe_subscription_id, 'createdAt', s.created_at)::text,
           s.status
      FROM billing.get_subscription(current_setting('pg_billing.tenant_id')) s)";

struct Subscription {
    std::string json, status;
};

// Runs the statements, of which the last is kGet; nothing if there is no subscription.
awaitable<std::optional<Subscription>> run_get(Database &database, std::vector<Statement> statements) {
    statements.push_back({kGet, {}});
    const Rows rows = co_await database.run(std::move(statements));
    if (rows.empty())
        co_return std::nullopt;
    co_return Subscription{rows[0][0].value(), rows[0][1].value()};
}

// Looks again, less and less often, until Stripe has carried the wish out or the time is up. The wish is durable, so
// an outage meanwhile costs nothing but the news.
awaitable<void> await_stripe(Database &database, const Call &call, boost::asio::io_context &context,
                             milliseconds limit, Subscription &subscription) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    boost::asio::steady_timer timer(context);
    for (milliseconds pause{50}; subscription.status == "pending";
         pause = std::min(pause * 3 / 2, milliseconds(500))) {
        if (std::chrono::steady_clock::now() + pause > deadline)
            co_return;
        timer.expires_after(pause);
        co_await timer.async_wait(boost::asio::use_awaitable);
        std::vector<Statement> statements{begin_request(call.request, "subscription:write")};
        try {
            if (auto now = co_await run_get(database, std::move(statements)))
                subscription = std::move(*now);
        } catch (const Problem &) {
            // The database is away; it may be back before the time is up.
        }
    }
}

awaitable<http::Response> post_subscription(Database &database, const Call &call,
                                            boost::asio::io_context &context, milliseconds limit) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call.request, "subscription:write")};
    const Json body = json_body(call.request);
    const Members members(body, {"planTier", "collectionMethod", "daysUntilDue"});
    statements.push_back({kCreate,
                          {members.required_text("planTier"), members.text("collectionMethod"),
                           members.integer("daysUntilDue")}});
    std::optional<Subscription> subscription = co_await run_get(database, std::move(statements));
    co_await await_stripe(database, call, context, limit, subscription.value());
    http::Response response =
        json_response(subscription->status == "pending" ? 202 : 201, subscription->json);
    response.fields.emplace_back("Location", "/api/billing/subscription");
    co_return response;
}

awaitable<http::Response> get_subscription(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call.request, "subscription:read")};
    const std::optional<Subscription> subscription = co_await run_get(database, std::move(statements));
    if (!subscription)
        throw Problem(404, "no_subscription", "The tenant has no subscription.");
    co_return json_response(200, subscription->json);
}

}  // namespace

void add_subscription_endpoints(Router &router, Database &database, boost::asio::io_context &context,
                                milliseconds wait) {
    router.add("POST", "/api/billing/subscription", [&database, &context, wait](const Call &call) {
        return post_subscription(database, call, context, wait);
    });
    router.add("GET", "/api/billing/subscription",
               [&database](const Call &call) { return get_subscription(database, call); });
}

}  // namespace pg_billing::shim
