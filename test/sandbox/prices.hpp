// Products and prices, and what a quantity costs at a price.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/decimal.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

// One invoice line's worth: a tier of a graduated price, or the whole of another.
struct Charge {
    Decimal quantity;
    std::string unit_amount_decimal;  // in minor units
    std::int64_t amount = 0;          // in minor units, rounded half up
    std::string tier;                 // how the line names its tier, "" for a price without
};

// Rates a quantity: at least one charge, the charges' quantities add up to it, each amount rounded on its own.
std::vector<Charge> rate(const json &price, const Decimal &quantity);

inline bool metered(const json &price) {
    return price["recurring"]["usage_type"] == "metered";
}

// Binds the product and price endpoints.
void model_prices(Catalog &catalog, Store &store);

}  // namespace pg_billing::sandbox
