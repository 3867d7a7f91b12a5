// Batches in the ledger: any number of keys, or of events, in one statement. As ledger.hpp says of all of it: plain
// calls into PostgreSQL, to be used inside pg_call().
#pragma once

#include "extension/ledger.hpp"

extern "C" {
#include "utils/uuid.h"
}

namespace pg_billing::ledger {

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

// Writes events of one tick that were recorded at one time; their keys are written already.
void write_events(const Event *events, int count);

}  // namespace pg_billing::ledger
