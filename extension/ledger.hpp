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

#include "extension/pg.hpp"

extern "C" {
#include "utils/numeric.h"
}

namespace pg_billing::ledger {

struct Quota {
    bool tenant_known, metric_known;
    bool is_gauge;
    int scale;
    const char *refusal;  // why no usage is allowed at all, or null
    Numeric quota;        // null: unlimited
    const char *cap;      // hard, soft, none; null if no quota is in force
    int64 limit;          // in units: what a check may not pass; INT64_MAX if nothing
    TimestampTz period_start, period_end;
};

struct Event {
    Datum tenant, metric, quantity, key, properties;  // key, properties: 0 if none
    TimestampTz occurred_at, recorded_at, period_start;
};

// Returns the OID of billing.usage_events; InvalidOid if install() was not run.
Oid events_relation();

// Returns the quota in force at a time, allocated in the caller's memory context.
Quota quota_in_force(Datum tenant, Datum metric, TimestampTz at);

// Returns the total of a billing period, in units of the scale.
int64 total_used(Datum tenant, Datum metric, TimestampTz period_start, int scale);

// Writes the event, its key and its delta in one statement; false if the key is known (nothing is written then).
bool write_event(const Event &event);

// Tells whether the key is known, as of now.
bool key_known(Datum tenant, Datum key);

// Returns the tenant that the current user is (billing.current_tenant()), or null; runs with the caller's own rights.
const char *tenant_of_caller();

}  // namespace pg_billing::ledger
