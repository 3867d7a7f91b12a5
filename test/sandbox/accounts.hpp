// Customers and events: the endpoints that hold no billing rule.
#pragma once

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

// Binds the customer and event endpoints.
void model_accounts(Catalog &catalog, Store &store);

}  // namespace pg_billing::sandbox
