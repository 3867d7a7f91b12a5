// The events of a batch, as they are given: one JSON array, or an array for each argument of record_usage().
//
// Invariant: what is wrong with one event is noted as its rejection and is never an ERROR; what is wrong with the form of
// the batch as a whole is one.
#pragma once

#include "extension/call.hpp"
#include "extension/ledger_write.hpp"

namespace pg_billing {

struct Group;

struct BatchEvent {
    Call call;
    int ordinal;            // from 1
    const char *rejection;  // "SQLSTATE: message"; null if there is none
    ledger::Key key;        // zero without an idempotency key
    Group *group;
    int64 units;
    bool fresh;
};

struct Batch {
    BatchEvent *events;
    int count;
};

// Read the arguments of record_usage_batch().
Batch read_events_from_jsonb(FunctionCallInfo fcinfo);
Batch read_events_from_arrays(FunctionCallInfo fcinfo);

}  // namespace pg_billing
