// The endpoints of the API, by topic. Each adds its own to the router; what they share is in caller.hpp.
#pragma once

#include "shim/checker.hpp"
#include "shim/database.hpp"
#include "shim/recorder.hpp"
#include "shim/router.hpp"
#include "shim/wait.hpp"
#include "shim/webhook_secrets.hpp"

namespace pg_billing::shim {

// What endpoints need.
struct Services {
    Database &database;
    Recorder &recorder;
    Checker &checker;
    const WebhookSecrets &secrets;
    const Tokens &tokens;
    Patience patience;
};

// Adds all of them.
void add_endpoints(Router &router, const Services &services);

// Adds GET usage[/:metric], POST events and POST consume.
void add_usage_endpoints(Router &router, Database &database, Recorder &recorder);

// Adds GET quotas and GET check.
void add_quota_endpoints(Router &router, Database &database, Checker &checker);

// Adds gateway/:metric, by any method.
void add_gateway_endpoints(Router &router, Database &database, Checker &checker);

// Adds POST reservations, and settle and release of one.
void add_reservation_endpoints(Router &router, Database &database);

// Adds POST, GET, PUT and DELETE subscription; what changes it waits for Stripe.
void add_subscription_endpoints(Router &router, Database &database, Patience patience);

// Adds GET invoices, invoices/upcoming, invoices/:id and invoices/:id/pdf, which waits for Stripe, and POST
// subscription/preview.
void add_invoice_endpoints(Router &router, Database &database, Patience patience);

// Adds POST sessions: a token for a tenant's page.
void add_session_endpoints(Router &router, Database &database, const Tokens &tokens);

// Adds POST webhooks/stripe.
void add_webhook_endpoint(Router &router, Database &database, const WebhookSecrets &secrets);

// Adds GET /openapi.json: the description of them all.
void add_openapi_endpoint(Router &router);

// Adds GET /healthz (the process answers) and /readyz (the database does, and is installed).
void add_health_endpoints(Router &router, Database &database);

}  // namespace pg_billing::shim
