// Entitlements: features, the products that grant them, and what a customer's subscriptions entitle it to.
#pragma once

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

// Binds the endpoints of features, products' features and active entitlements.
void model_entitlements(Catalog &catalog, Store &store);

}  // namespace pg_billing::sandbox
