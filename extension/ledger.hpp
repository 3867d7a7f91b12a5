// The durable side of usage: reads the quota in force and the total of a period, writes events. Everything goes through
// SQL with saved plans, so that a distributed planner can send it to the node that holds the tenant.
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

struct Event {
    Datum tenant, metric, quantity, key, properties;  // key, properties: 0 if none
    TimestampTz tick, occurred_at, recorded_at, period_start;
    Datum void_reason = 0;  // of a row that takes back another; 0 of any other
};

// Returns the OID of billing.usage_events; InvalidOid if install() was not run.
Oid events_relation();

// Registers what keeps events_relation() true; called once, while preloading.
void init();

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

// Writes the event and its key; false if the key is known (nothing is written then).
bool write_event(const Event &event);

// Tells whether the key is known, as of now.
bool key_known(Datum tenant, Datum key);

// Returns the tenant that the current user is (billing.current_tenant()), or null; runs with the caller's own rights.
const char *tenant_of_caller();

}  // namespace pg_billing::ledger
