// The shared memory in which client backends, the launcher and its workers meet.
//
// pg_billing.so creates it; pg_billing_worker.so finds it by name. Every field is read and written under
// worker_lock(), except the latch and the condition variable, which have their own rules.
//
// A job's run is asked for by raising `requested`; the launcher copies that into `started` when it starts a worker,
// and the worker copies `started` into `finished` when it ends well. Whoever asked waits for `finished` to reach
// what it asked for. Times here are the machine's, never the shifted clock of billing.now().
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

inline constexpr const char *kLockTranche = "pg_billing";  // [0] counters, [1] worker state
inline constexpr const char *kWorkerStateName = "pg_billing workers";
inline constexpr int kMaxDatabases = 64;

enum Job : int { kRollupJob, kStripeJob, kJobCount };

struct JobState {
    pid_t pid;               // the worker running now, 0 if none
    uint64 requested;        // raised by whoever wants a run
    uint64 started;          // `requested` as it was when the latest run started
    uint64 finished;         // `started` of the latest run that ended well
    TimestampTz next_start;  // when the launcher starts the next run unasked
    int failures;            // consecutive runs that did not end well; drives the backoff
};

struct DatabaseSlot {
    Oid database;            // InvalidOid: the slot is free
    bool absent;             // a probe found no pg_billing here; cleared when CREATE EXTENSION commits
    TimestampTz held_until;  // DROP DATABASE or the like is under way: start nothing before this
    JobState jobs[kJobCount];
};

struct WorkerState {
    Latch *launcher;              // the launcher's latch while it runs
    ConditionVariable finished;   // broadcast whenever a worker ends
    DatabaseSlot slots[kMaxDatabases];
};
static_assert(std::is_trivially_copyable_v<DatabaseSlot> && std::is_standard_layout_v<WorkerState>);

inline LWLock *worker_lock() { return &GetNamedLWLockTranche(kLockTranche)[1].lock; }

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

}  // namespace pg_billing
