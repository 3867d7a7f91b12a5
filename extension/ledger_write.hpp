// Writes events and their keys, one or any number of them at once. As ledger.hpp says of the reading side: plain calls
// into PostgreSQL, to be used inside pg_call().
#pragma once

#include "extension/pg.hpp"

extern "C" {
#include "utils/uuid.h"
}

namespace pg_billing::ledger {

struct Event {
    Datum tenant, metric, quantity, key, properties;  // key, properties: 0 if none
    TimestampTz tick, occurred_at, recorded_at, period_start;
    Datum void_reason = 0;  // of a row that takes back another; 0 of any other
};

// Writes the event and its key; false if the key is known (nothing is written then).
bool write_event(const Event &event);

// Tells whether the key is known. One that another transaction has written, but not committed yet, is waited for.
bool key_known(Datum tenant, Datum key);

struct Key {
    Datum tenant;
    pg_uuid_t key;
    bool fresh;  // set by write_keys(): it was not known, and is now
};

// Orders keys as write_keys() wants them.
int compare(const Key &one, const Key &other);

// Writes the keys that are not known. They are in order, each once: so batches wait for each other's keys, but never in a
// circle.
void write_keys(Key *keys, int count, TimestampTz tick);

// Takes back a key that this transaction has written.
void forget_key(const Key &key);

// Writes events of one tick; their keys are written already.
void write_events(const Event *events, int count);

}  // namespace pg_billing::ledger
