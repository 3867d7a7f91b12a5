// The durable side of usage, to read: the quota in force, the total of a period. All of it goes through SQL with saved
// plans, so that a distributed planner can send it to the node that holds the tenant.
//
// Invariants:
//   - Statements run as the owner of the tables, with row-level security not forced on it and search_path pinned,
//     whoever calls: what they see does not depend on the caller's rights. The caller's rights are checked before.
//   - Reads use the latest snapshot, never a transaction's older one: a limit counts from its commit, and a total
//     misses nobody's committed usage.
//
// Plain calls into PostgreSQL, to be used inside pg_call(): an ERROR aborts the (sub)transaction, which undoes the
// switch of user, the pinned search_path and the SPI connection.
#pragma once

#include <string_view>

#include "extension/terms.hpp"

extern "C" {
#include "utils/numeric.h"
}

namespace pg_billing::ledger {

// Returns the terms in force at a time.
Terms read_terms(std::string_view tenant, std::string_view metric, TimestampTz at);

// What a window's counter says when nobody is at it, in units of the scale.
struct Total {
    int64 used;
    bool held;  // reservations hold some of it
};
Total total_used(std::string_view tenant, std::string_view metric, int scale, Window window,
                 TimestampTz start, TimestampTz end);

// Returns the tick before which the rollup has folded all events, but for some late ones.
TimestampTz folded_before();

// Returns the tenant that the current user is (billing.current_tenant()), or null; runs with the caller's own rights.
const char *tenant_of_caller();

}  // namespace pg_billing::ledger
