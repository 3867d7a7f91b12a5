// The shared memory in which client backends, the launcher and its workers meet.
//
// pg_billing.so creates it; pg_billing_worker.so finds it by name. Every field is read and written under
// worker_lock(), except the condition variable, which has its own rules.
//
// A job's run is asked for by raising `requested`; the launcher copies that into `started` when it starts a
// worker (and a worker that begins another round of its work copies it again), and the worker copies
// `started` into `finished` when it ends well. Whoever asked waits for `finished` to reach what it asked for.
//
// A slot is made by whoever needs it first and freed only by the launcher. Times here are the machine's,
// never the shifted clock of billing.now().
#pragma once

#include <type_traits>

#include "extension/pg.hpp"

extern "C" {
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
}

namespace pg_billing {

inline constexpr const char *kLockTranche = "pg_billing";
enum Lock : int { kCountersLock, kWorkersLock, kTicksLock, kStatsLock, kLockCount };
inline constexpr const char *kWorkerStateName = "pg_billing workers";
inline constexpr int kMaxDatabases = 256;  // databases with pg_billing in one server, not databases at all

enum Job : int { kRollupJob, kStripeJob, kNotifyJob, kCacheJob, kJobCount };
inline constexpr const char *kJobNames[kJobCount] = {"rollup", "stripe", "notify", "cache"};

struct JobState {
    pid_t pid;               // the worker running now, 0 if none
    uint64 requested;        // raised by whoever wants a run
    uint64 started;          // `requested` as it was when the latest run (or its latest round) started
    uint64 finished;         // `started` of the latest run that ended well
    TimestampTz next_start;  // when the launcher starts the next run unasked
    int failures;   // runs in a row that did not end well, counting the one under way; drives the backoff
    uint32 notice;  // hash of the latest standing condition logged, so that it is logged once
};

struct DatabaseSlot {
    Oid database;            // InvalidOid: the slot is free
    bool absent;             // a worker found no pg_billing here: the launcher frees the slot and remembers
    TimestampTz held_until;  // DROP DATABASE or the like is under way: start nothing before this
    TimestampTz maintained;  // when partition upkeep was last begun, 0: not since the server started
    JobState jobs[kJobCount];
};

struct WorkerState {
    Latch *launcher;             // the launcher's latch while it runs
    uint64 databases_changed;    // raised when a database may have come or gone
    ConditionVariable finished;  // broadcast whenever a worker ends
    DatabaseSlot slots[kMaxDatabases];
};
static_assert(std::is_trivially_copyable_v<DatabaseSlot> && std::is_standard_layout_v<WorkerState>);

inline LWLock *worker_lock() {
    return &GetNamedLWLockTranche(kLockTranche)[kWorkersLock].lock;
}

// Finds (or, in shmem startup, creates zeroed) the shared state.
inline WorkerState *attach_worker_state() {
    bool found;
    auto *state = static_cast<WorkerState *>(ShmemInitStruct(kWorkerStateName, sizeof(WorkerState), &found));
    if (!found) {
        memset(static_cast<void *>(state), 0, sizeof(*state));
        ConditionVariableInit(&state->finished);
    }
    return state;
}

// Returns the database's slot, or null. Needs worker_lock().
inline DatabaseSlot *find_slot(WorkerState *state, Oid database) {
    for (DatabaseSlot &slot : state->slots)
        if (slot.database == database)
            return &slot;
    return nullptr;
}

// Returns the database's slot, made if there was none, or null if all are taken. Needs worker_lock()
// exclusively.
inline DatabaseSlot *find_or_make_slot(WorkerState *state, Oid database) {
    DatabaseSlot *slot = find_slot(state, database);
    if (!slot && (slot = find_slot(state, InvalidOid))) {
        memset(static_cast<void *>(slot), 0, sizeof(*slot));
        slot->database = database;
    }
    return slot;
}

// What follows is defined in worker_state.cpp: for pg_billing.so only.

// Asks for the shared memory; the lock tranche is asked for by the module's own shmem request.
void worker_state_shmem_request();

// Creates or finds the state; the caller holds AddinShmemInitLock.
void worker_state_shmem_startup();

// Registers the static launcher with the postmaster; called once, while preloading.
void register_launcher();

// Registers the transaction callback and the utility hook; called once, while preloading.
void init_worker_state();

// Has the launcher start the job for this database as soon as the current transaction has committed.
void wake_at_commit(Job job);

// Tells the launcher at commit that a database may have come or gone.
void databases_changed_at_commit();

// Runs the job for this database now and waits for a run that began after this call to end well; false at
// timeout.
bool request_and_wait(Job job, int64 timeout_ms);

// Stops the database's workers and starts none for some seconds: what follows needs the database unconnected.
void hold_database(Oid database);

}  // namespace pg_billing
