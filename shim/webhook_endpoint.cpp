#include <chrono>

#include "shim/caller.hpp"
#include "shim/endpoints.hpp"
#include "shim/log.hpp"
#include "shim/problem.hpp"
#include "stripe/signature.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

// Stores a delivery of Stripe's. Whatever is not a 2xx makes Stripe deliver again, so a duplicate is a success.
awaitable<http::Response> post_webhook(Database &database, const WebhookSecrets &secrets, const Call &call) {
    if (secrets.get().empty())
        throw Problem(503, "webhooks_not_configured", "This server was given no webhook secret.");
    // Signed with the machine's time, which billing.now() may be shifted from.
    const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    const auto check = stripe::verify_webhook(call.request.field("stripe-signature").value_or(""),
                                              call.request.body, secrets.get(), now);
    if (check != stripe::SignatureCheck::valid) {
        log("webhook_refused", {{"reason", stripe::describe(check)}, {"peer", call.request.peer}});
        throw Problem(400, "invalid_signature",
                      "The Stripe-Signature field does not authenticate this body now.", "Stripe-Signature");
    }
    std::vector<Statement> statements;
    statements.push_back({"SELECT billing.receive_webhook($1::text)", {call.request.body}});
    co_await database.run(std::move(statements));
    co_return json_response(200, R"({"received":true})");
}

}  // namespace

void add_webhook_endpoint(Router &router, Database &database, const WebhookSecrets &secrets) {
    router.add("POST", "/api/billing/webhooks/stripe",
               [&database, &secrets](const Call &call) { return post_webhook(database, secrets, call); });
}

}  // namespace pg_billing::shim
