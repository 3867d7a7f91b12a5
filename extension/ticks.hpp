// Rollup ticks: every usage event carries the tick during which its transaction began to write usage, and the rollup
// folds whole ticks, each once.
//
// Invariants:
//   - A transaction writes all of its usage in one tick, and is counted as a writer of it from before its first write
//     until its commit or abort callback has run, when its fate is visible. (If it rolls up itself, it goes on in the
//     tick that opens then, and stays a writer of both.)
//   - Ticks of a database only grow. The rollup opens the next one; a closed tick without other writers gets no more
//     events, so a snapshot taken after that was seen holds every event it will ever have.
//   - A tick never opened here (server start, promotion) is at or after every tick that was folded.
#pragma once

#include "extension/pg.hpp"

namespace pg_billing::ticks {

void shmem_request();
void shmem_startup();

// Registers the transaction callback; called once, while preloading.
void init();

// Returns the tick of the current transaction, which is a writer of it from here on. May raise.
TimestampTz join();

}  // namespace pg_billing::ticks
