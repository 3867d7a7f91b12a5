// Customers and events: the endpoints that hold no billing rule.
#pragma once

#include <functional>
#include <string>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

// Binds the customer and event endpoints; `deleted` is told of a customer that is deleted.
void model_accounts(Catalog &catalog, Store &store, std::function<void(const std::string &customer)> deleted);

// Returns the customer, or throws that there is none: it may have been deleted.
json &living_customer(Store &store, const std::string &id, const std::string &param);

}  // namespace pg_billing::sandbox
