#include "shim/caller.hpp"
#include "shim/endpoints.hpp"
#include "shim/problem.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

const std::string kCreate = std::string("SELECT billing.create_subscription(") + kTenant +
                            ", $1::text, coalesce($2::text, 'charge_automatically'), $3::int)";
const std::string kUpdate = std::string("SELECT billing.update_subscription(") + kTenant +
                            ", $1::text, coalesce($2::text, 'create_prorations'))";
const std::string kCancel =
    std::string("SELECT billing.cancel_subscription(") + kTenant +
    ", coalesce($1::boolean, true), coalesce($2::boolean, false), coalesce($3::boolean, true))";

// The live subscription, or if $1 the last one that has ended.
const std::string kGet = std::string(R"(
    SELECT json_build_object('subscriptionId', s.subscription_id::text, 'tenantId', )") +
                         kTenant + R"(,
                             'planTier', s.plan, 'status', s.status,
                             'currentPeriodStart', s.current_period_start, 'currentPeriodEnd', s.current_period_end,
                             'cancelAtPeriodEnd', s.cancel_at_period_end, 'trialEnd', s.trial_end,
                             'pausedAt', s.paused_at, 'canceledAt', s.canceled_at, 'endedAt', s.ended_at,
                             'stripeSubscriptionId', s.stripe_subscription_id, 'stripeConfirmed', s.stripe_confirmed,
                             'createdAt', s.created_at)::text,
           s.stripe_confirmed::text
      FROM billing.get_subscription()" +
                         kTenant + ", $1::boolean) s";

struct Subscription {
    std::string json;
    bool confirmed;  // by Stripe, or not billed there
};

// Runs the statements and looks at the subscription then; nothing if there is none.
awaitable<std::optional<Subscription>> look(Database &database, std::vector<Statement> statements,
                                            bool or_ended) {
    statements.push_back({kGet.c_str(), {or_ended ? "true" : "false"}});
    const Rows rows = co_await database.run(std::move(statements));
    if (rows.empty())
        co_return std::nullopt;
    co_return Subscription{rows[0][0].value(), rows[0][1].value() == "true"};
}

// Carries a wish out here, and answers when Stripe has, too: 202 if that takes longer than the patience.
awaitable<http::Response> carry_out(Database &database, const Call &call, Patience patience,
                                    std::vector<Statement> statements, unsigned status) {
    std::optional<Subscription> subscription = co_await look(database, std::move(statements), true);
    if (!subscription.value().confirmed)
        co_await wait_until(patience, [&]() -> awaitable<bool> {
            std::vector<Statement> again{begin_request(call, "subscription:write")};
            if (auto now = co_await look(database, std::move(again), true))
                subscription = std::move(now);
            co_return subscription->confirmed;
        });
    co_return json_response(subscription->confirmed ? status : 202, subscription->json);
}

awaitable<http::Response> post_subscription(Database &database, const Call &call, Patience patience) {
    std::vector<Statement> statements{begin_request(call, "subscription:write")};
    refuse_query(call.request);
    const Json body = json_body(call.request);
    const Members members(body, {"planTier", "collectionMethod", "daysUntilDue"});
    statements.push_back({kCreate.c_str(),
                          {members.required_text("planTier"), members.text("collectionMethod"),
                           members.integer("daysUntilDue")}});
    http::Response response = co_await carry_out(database, call, patience, std::move(statements), 201);
    response.fields.emplace_back("Location", "/api/billing/subscription");
    co_return response;
}

awaitable<http::Response> put_subscription(Database &database, const Call &call, Patience patience) {
    std::vector<Statement> statements{begin_request(call, "subscription:write")};
    refuse_query(call.request);
    const Json body = json_body(call.request);
    const Members members(body, {"planTier", "prorationBehavior"});
    statements.push_back(
        {kUpdate.c_str(), {members.required_text("planTier"), members.text("prorationBehavior")}});
    co_return co_await carry_out(database, call, patience, std::move(statements), 200);
}

awaitable<http::Response> delete_subscription(Database &database, const Call &call, Patience patience) {
    std::vector<Statement> statements{begin_request(call, "subscription:write")};
    const Json body = optional_json_body(call.request);
    const Members members(body, {"atPeriodEnd", "prorate", "invoiceNow"});
    const Query query(call.request, {"atPeriodEnd", "prorate", "invoiceNow"});
    statements.push_back({kCancel.c_str(),
                          {query.boolean("atPeriodEnd", members), query.boolean("prorate", members),
                           query.boolean("invoiceNow", members)}});
    co_return co_await carry_out(database, call, patience, std::move(statements), 200);
}

awaitable<http::Response> get_subscription(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, "subscription:read")};
    const std::optional<Subscription> subscription = co_await look(database, std::move(statements), false);
    if (!subscription)
        throw Problem(404, "no_subscription", "The tenant has no subscription.");
    co_return json_response(200, subscription->json);
}

}  // namespace

void add_subscription_endpoints(Router &router, Database &database, Patience patience) {
    const auto add = [&](const char *method, auto endpoint) {
        router.add(method, "/api/billing/subscription", [&database, patience, endpoint](const Call &call) {
            return endpoint(database, call, patience);
        });
    };
    add("POST", post_subscription);
    add("PUT", put_subscription);
    add("DELETE", delete_subscription);
    router.add("GET", "/api/billing/subscription",
               [&database](const Call &call) { return get_subscription(database, call); });
}

}  // namespace pg_billing::shim
