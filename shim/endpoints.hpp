// The endpoints of the API, by topic. Each adds its own to the router; what they share is in caller.hpp.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>

#include "shim/database.hpp"
#include "shim/router.hpp"
#include "shim/webhook_secrets.hpp"

namespace pg_billing::shim {

// Adds GET usage[/:metric], POST events and POST consume.
void add_usage_endpoints(Router &router, Database &database);

// Adds POST and GET subscription; POST waits at most that long for Stripe.
void add_subscription_endpoints(Router &router, Database &database, boost::asio::io_context &context,
                                std::chrono::milliseconds wait);

// Adds POST webhooks/stripe.
void add_webhook_endpoint(Router &router, Database &database, const WebhookSecrets &secrets);

// Adds GET /healthz (the process answers) and /readyz (the database does, and is installed).
void add_health_endpoints(Router &router, Database &database);

}  // namespace pg_billing::shim
