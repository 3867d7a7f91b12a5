// What the current transaction has reserved on which counters: given back at (sub)abort, kept at commit.
//
// Invariants:
//   - There is room in the journal before a counter is pinned, and no ERROR can happen between pinning it and noting
//     that down: a pin or a reservation is never forgotten.
//   - An amount that lowers a counter (a freed seat) takes effect at commit, never before: it may yet be rolled back.
//     The same transaction may use what it freed at once, without raising the counter: whatever is rolled back later
//     takes the reuse back no later than the freeing.
//   - A transaction with reservations cannot be prepared: COMMIT PREPARED calls nobody back.
//   - The callbacks are registered once and neither allocate nor raise after commit.
#pragma once

#include "extension/counters.hpp"

namespace pg_billing::journal {

// Registers the transaction callbacks; called once, while preloading.
void init();

// Pins the counter for this subtransaction; returns null if shared memory has no room for it. May raise.
Counter *hold(const CounterKey &key);

// Holds the counter that was seen; false if it is not the same any more. May raise.
bool hold_again(const CounterRef &ref);

// Returns what will be added to a counter when this transaction commits: what it reused of what it freed, less what it
// freed; not positive.
int64 owed(Counter *counter);

// Reserves on a held counter, as reserve_on_counter() does, until the end of the (sub)transaction. `used` includes what
// this transaction owes: the number as it will be if nothing but this transaction happens.
Reserve reserve(Counter *counter, int64 amount, int64 limit, int64 *used);

// Takes back the latest reservation on a held counter, of that amount.
void undo(Counter *counter, int64 amount);

// Lets go of a held counter if nothing was reserved on it.
void release_unused(Counter *counter);

// Tells whether this transaction holds counters.
bool any();

// Raises UB052. Plain calls into PostgreSQL.
void refuse_prepare();

}  // namespace pg_billing::journal
