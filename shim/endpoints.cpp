#include "shim/endpoints.hpp"

namespace pg_billing::shim {

void add_endpoints(Router &router, const Services &services) {
    add_health_endpoints(router, services.database);
    add_openapi_endpoint(router);
    add_usage_endpoints(router, services.database, services.recorder);
    add_quota_endpoints(router, services.database, services.checker);
    add_gateway_endpoints(router, services.database, services.checker);
    add_reservation_endpoints(router, services.database);
    add_subscription_endpoints(router, services.database, services.patience);
    add_invoice_endpoints(router, services.database, services.patience);
    add_session_endpoints(router, services.database, services.tokens);
    add_webhook_endpoint(router, services.database, services.secrets);
}

}  // namespace pg_billing::shim
