// A module for tests alone: extension/ticks.cpp on memory of its own, with another backend coming in between any two of
// its steps. Built and loaded by test/e2e/ticks.sh, never installed.
//
// A step is an atomic operation, which is all that backends see of each other without the lock. Before the one that is
// asked for, what the other backend does happens as a whole.
#include "extension/clock.hpp"
#include "extension/journal.hpp"
#include "extension/ledger.hpp"

extern "C" {
#include "port/atomics.h"

PG_MODULE_MAGIC;
}

namespace {

int steps_left;  // before the other one comes in; negative: it was there
void (*other)();

void step() {
    if (steps_left >= 0 && steps_left-- == 0)
        other();
}

}  // namespace

#define pg_atomic_read_u32(p) (step(), pg_atomic_read_u32(p))
#define pg_atomic_read_u64(p) (step(), pg_atomic_read_u64(p))
#define pg_atomic_write_u32(p, value) (step(), pg_atomic_write_u32(p, value))
#define pg_atomic_write_u64(p, value) (step(), pg_atomic_write_u64(p, value))
#define pg_atomic_exchange_u32(p, value) (step(), pg_atomic_exchange_u32(p, value))
#define pg_atomic_fetch_add_u32(p, n) (step(), pg_atomic_fetch_add_u32(p, n))
#define pg_atomic_fetch_sub_u32(p, n) (step(), pg_atomic_fetch_sub_u32(p, n))
#include "extension/ticks.cpp"

// What ticks.cpp needs of the rest.
namespace pg_billing {

TimestampTz business_now() {
    return 1000;
}
TimestampTz ledger::folded_before() {
    return 0;
}
bool journal::any() {
    return false;
}
void journal::refuse_prepare() {}

}  // namespace pg_billing

namespace pg_billing::ticks {
namespace {

Shared memory;
TimestampTz tick;   // that was joined
ArrayType *closed;  // what the rollup was told: the open tick, and those that are still written in

// Neither backend knows what the other one has joined.
void close_tick() {
    const int others = joined_count;
    joined_count = 0;
    closed = open_next(0);
    joined_count = others;
}

void join_tick() {
    tick = join();
    joined_count = 0;
}

// Another database takes a place in which nobody writes.
void give_away() {
    LWLockAcquire(lock(), LW_EXCLUSIVE);
    DatabaseTicks *place = reclaim();
    pg_atomic_write_u32(&place->open, 0);
    pg_atomic_write_u32(&place->database, MyDatabaseId + 1);
    LWLockRelease(lock());
}

// Has `one` happen, and `two` before its step of that number; false if there are fewer steps.
bool run(void (*one)(), void (*two)(), int number) {
    memset(static_cast<void *>(&memory), 0, sizeof(memory));
    shared = &memory;
    cached = nullptr;
    steps_left = -1;
    join_tick();  // finds its place
    pg_atomic_fetch_sub_u32(&cached->ticks[0].writers, 1);
    other = two;
    steps_left = number;
    one();
    const bool happened = steps_left < 0;
    steps_left = -1;
    return happened;
}

// Tells whether the rollup knows that the joined tick is not to be folded yet.
bool known_to_rollup() {
    const auto *ticks = reinterpret_cast<const TimestampTz *>(ARR_DATA_PTR(closed));
    for (int i = 0; i < ARR_DIMS(closed)[0]; i++)
        if (ticks[i] == tick)
            return true;
    return false;
}

// Tells whether there is one writer in all, in this database's open tick.
bool counted_in_place() {
    DatabaseTicks *place = find(MyDatabaseId);
    uint32 writers = 0;
    for (DatabaseTicks &ticks : shared->databases)
        for (Tick &each : ticks.ticks)
            writers += pg_atomic_read_u32(&each.writers);
    return place && writers == 1 &&
           pg_atomic_read_u32(&place->ticks[pg_atomic_read_u32(&place->open)].writers) == 1;
}

}  // namespace
}  // namespace pg_billing::ticks

using namespace pg_billing::ticks;

// join_beside_close(step): a tick is closed while a writer joins; close_beside_join(step): the reverse. Both tell whether
// the rollup knows of the writer; null if there is no such step.
PG_BILLING_FUNCTION(join_beside_close) {
    if (!run(join_tick, close_tick, PG_GETARG_INT32(0)))
        PG_RETURN_NULL();
    PG_RETURN_BOOL(known_to_rollup());
}

PG_BILLING_FUNCTION(close_beside_join) {
    if (!run(close_tick, join_tick, PG_GETARG_INT32(0)))
        PG_RETURN_NULL();
    PG_RETURN_BOOL(known_to_rollup());
}

// join_beside_reclaim(step): another database takes the place while a writer joins; tells whether the writer is counted in
// its own database, and nobody in the other one.
PG_BILLING_FUNCTION(join_beside_reclaim) {
    if (!run(join_tick, give_away, PG_GETARG_INT32(0)))
        PG_RETURN_NULL();
    PG_RETURN_BOOL(counted_in_place());
}
