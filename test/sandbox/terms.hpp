// What a subscription is created with: its items, its cycle, and how it is paid, read from a request and checked.
#pragma once

#include <cstdint>
#include <string>

#include "test/sandbox/calendar.hpp"
#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

// Returns the subscription that create and preview describe: complete but for its periods, and not stored.
json read_subscription(Store &store, const Call &call, std::int64_t now);

// Returns the subscription items these describe, checked; where they stand in the request is for errors. One that is
// `_kept` may have a price that is no longer active.
json read_items(Store &store, const json &given, const std::string &where);

// Returns the price that bills most often.
const json &shortest_price(Store &store, const json &items);

// Returns the billing cycle the request asks for, aligned with `now` where it asks for none.
Cycle read_cycle(const Call &call, const json &price, std::int64_t now);

}  // namespace pg_billing::sandbox
