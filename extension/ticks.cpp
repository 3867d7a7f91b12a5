#include "extension/ticks.hpp"

#include <new>

#include "extension/clock.hpp"
#include "extension/guard.hpp"
#include "extension/journal.hpp"
#include "extension/ledger.hpp"
#include "extension/sqlstate.hpp"
#include "extension/worker_state.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "port/atomics.h"
#include "utils/array.h"
}

namespace pg_billing::ticks {
namespace {

constexpr int kTicks = 64;  // in use at once: the open one, and closed ones whose writers still run

struct Tick {
    pg_atomic_uint64 at;
    pg_atomic_uint32 writers;
};

struct DatabaseTicks {
    pg_atomic_uint32 database;  // InvalidOid: free
    pg_atomic_uint32 open;      // index of the open tick
    Tick ticks[kTicks];
};

struct Shared {
    DatabaseTicks databases[kMaxDatabases];
};

Shared *shared;

// The ticks this transaction is a writer of; it writes in the last one, unless it has closed that itself.
Tick *joined[kTicks];
int joined_count;
bool closed_own;

// Where this database's ticks were last found; reset if they are not there any more.
DatabaseTicks *cached;

TimestampTz at(Tick &tick) {
    return static_cast<TimestampTz>(pg_atomic_read_u64(&tick.at));
}

// Tells whether other transactions than this one are writing in the tick.
bool has_other_writers(Tick &tick) {
    uint32 writers = pg_atomic_read_u32(&tick.writers);
    for (int i = 0; i < joined_count; i++)
        if (joined[i] == &tick)
            writers--;
    return writers > 0;
}

LWLock *lock() {
    return &GetNamedLWLockTranche(kLockTranche)[kTicksLock].lock;
}

DatabaseTicks *find(Oid database) {
    for (DatabaseTicks &ticks : shared->databases)
        if (pg_atomic_read_u32(&ticks.database) == database)
            return &ticks;
    return nullptr;
}

// Takes the place of a database nobody writes in. Needs lock().
DatabaseTicks *reclaim() {
    for (DatabaseTicks &ticks : shared->databases) {
        const uint32 database = pg_atomic_exchange_u32(&ticks.database, InvalidOid);
        uint32 writers = 0;
        for (Tick &tick : ticks.ticks)
            writers += pg_atomic_read_u32(&tick.writers);
        if (writers == 0)
            return &ticks;
        pg_atomic_write_u32(&ticks.database, database);
    }
    return nullptr;
}

// Finds this database's ticks; opens its first since the server started, at or after `not_before`. May raise.
DatabaseTicks *find_or_start(TimestampTz not_before) {
    LWLockAcquire(lock(), LW_EXCLUSIVE);
    DatabaseTicks *found = find(MyDatabaseId);
    if (!found) {
        found = find(InvalidOid);
        if (!found)
            found = reclaim();
        if (!found)
            ereport(ERROR, (errcode(sqlstate::kNoCounter),
                            errmsg("usage is being written in too many databases at once"),
                            errhint("At most %d databases of a server can have pg_billing.", kMaxDatabases)));
        pg_atomic_write_u32(&found->open, 0);
        pg_atomic_write_u64(&found->ticks[0].at, Max(business_now(), not_before));
        pg_write_barrier();
        pg_atomic_write_u32(&found->database, MyDatabaseId);
    }
    LWLockRelease(lock());
    return found;
}

// Becomes a writer of the database's open tick; null if it has just been closed or the place was given away.
Tick *try_join(DatabaseTicks *ticks) {
    const uint32 open = pg_atomic_read_u32(&ticks->open);
    Tick *tick = &ticks->ticks[open];
    pg_atomic_fetch_add_u32(&tick->writers, 1);  // a full barrier: whoever closes it now sees this writer
    if (pg_atomic_read_u32(&ticks->database) == MyDatabaseId && pg_atomic_read_u32(&ticks->open) == open)
        return tick;
    pg_atomic_fetch_sub_u32(&tick->writers, 1);
    return nullptr;
}

extern "C" void leave_tick_at_end(XactEvent event, void *) {
    if (event == XACT_EVENT_PRE_PREPARE && joined_count > 0)
        journal::refuse_prepare();  // nobody would hear of the end of a prepared writer
    if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
        return;
    for (; joined_count > 0; joined_count--)
        pg_atomic_fetch_sub_u32(&joined[joined_count - 1]->writers, 1);
    closed_own = false;
}

}  // namespace

void shmem_request() {
    RequestAddinShmemSpace(sizeof(Shared));
}

void shmem_startup() {
    bool found;
    shared = static_cast<Shared *>(ShmemInitStruct("pg_billing ticks", sizeof(Shared), &found));
    if (found)
        return;
    for (DatabaseTicks &ticks : shared->databases) {
        pg_atomic_init_u32(&ticks.database, InvalidOid);
        pg_atomic_init_u32(&ticks.open, 0);
        for (Tick &tick : ticks.ticks) {
            pg_atomic_init_u64(&tick.at, 0);
            pg_atomic_init_u32(&tick.writers, 0);
        }
    }
}

void init() {
    RegisterXactCallback(leave_tick_at_end, nullptr);
}

TimestampTz join() {
    while (joined_count == 0 || closed_own) {
        if (!cached || pg_atomic_read_u32(&cached->database) != MyDatabaseId)
            cached = find(MyDatabaseId);
        if (!cached)
            cached = find_or_start(ledger::folded_before());
        if (Tick *tick = try_join(cached)) {
            joined[joined_count++] = tick;
            closed_own = false;
        }
    }
    return at(*joined[joined_count - 1]);
}

namespace {

// Opens the next tick, at or after `not_before`, and returns it with the closed ticks that others still write in. When so
// many are still being written in that there is no place for another, the open one stays open.
ArrayType *open_next(TimestampTz not_before) {
    DatabaseTicks *ticks = find_or_start(not_before);
    LWLockAcquire(lock(), LW_EXCLUSIVE);
    const uint32 open = pg_atomic_read_u32(&ticks->open);
    TimestampTz next = at(ticks->ticks[open]);
    Datum result[kTicks];
    int count = 1;
    for (uint32 i = 0; i < kTicks; i++) {
        if (i == open || joined_count == kTicks || pg_atomic_read_u32(&ticks->ticks[i].writers) != 0)
            continue;
        next = Max(Max(business_now(), not_before), next + 1);
        pg_atomic_write_u64(&ticks->ticks[i].at, next);
        pg_write_barrier();
        pg_atomic_write_u32(&ticks->open, i);
        pg_memory_barrier();  // the old tick's writers are counted after nobody can join it any more
        closed_own = joined_count > 0;
        break;
    }
    const uint32 now_open = pg_atomic_read_u32(&ticks->open);
    for (uint32 i = 0; i < kTicks; i++)
        if (i != now_open && has_other_writers(ticks->ticks[i]))
            result[count++] = TimestampTzGetDatum(at(ticks->ticks[i]));
    LWLockRelease(lock());
    result[0] = TimestampTzGetDatum(next);
    return construct_array(result, count, TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL,
                           TYPALIGN_DOUBLE);
}

}  // namespace
}  // namespace pg_billing::ticks

// billing._open_tick(not_before timestamptz) returns the tick that is open now, followed by the closed ones that others
// still write in.
PG_BILLING_FUNCTION(pg_billing_open_tick) {
    return pg_billing::pg_entry([&]() -> Datum {
        PG_RETURN_POINTER(
            pg_billing::pg_call([&] { return pg_billing::ticks::open_next(PG_GETARG_TIMESTAMPTZ(0)); }));
    });
}

// billing._usage_pending() tells whether this transaction has recorded or reserved usage.
PG_BILLING_FUNCTION(pg_billing_usage_pending) {
    PG_RETURN_BOOL(pg_billing::ticks::joined_count > 0 || pg_billing::journal::any());
}
