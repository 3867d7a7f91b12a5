// How a client backend speaks to the launcher: wake a job at commit, ask for a run and wait for it, register
// a database, hold one while it is dropped, renamed or copied.
//
// Invariants:
//   - Waking happens after the transaction is visible (COMMIT callbacks run after ProcArrayEndTransaction), so a
//     worker that was woken sees what it was woken for.
//   - The callback only sets numbers under a lock: an ERROR there would be a PANIC.
//   - A hold needs no cleanup: it runs out by itself, whatever becomes of the command that asked for it.
#include "extension/worker_state.hpp"

#include <algorithm>
#include <csignal>

#include "extension/guard.hpp"
#include "extension/utility_hook.hpp"

extern "C" {
#include "access/htup_details.h"
#include "funcapi.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/wait_event.h"
}

namespace pg_billing {
namespace {

// Long enough for PostgreSQL's own check that nobody is connected (it waits up to 5 s), after which the
// command's lock on the database keeps workers out.
constexpr int kHoldMs = 10 * 1000;

WorkerState *state;

// What the current transaction's commit is to do.
struct AtCommit {
    bool wake[kJobCount];
    bool registers;
    bool databases_changed;
    bool operator==(const AtCommit &) const = default;
} at_commit;

// Sets the launcher's latch; harmless when it has just ended, for a latch lives in shared memory for good.
void wake_launcher(Latch *launcher) {
    if (launcher)
        SetLatch(launcher);
}

void perform_at_commit() {
    LWLockAcquire(worker_lock(), LW_EXCLUSIVE);
    if (at_commit.databases_changed)
        state->databases_changed++;
    const bool wakes = at_commit.registers || std::ranges::count(at_commit.wake, true) > 0;
    // With every slot taken there is nothing to raise; the launcher finds and reports that.
    if (DatabaseSlot *slot = wakes ? find_or_make_slot(state, MyDatabaseId) : nullptr) {
        for (int job = 0; job < kJobCount; job++) {
            if (at_commit.wake[job] || at_commit.registers)
                slot->jobs[job].requested++;
            if (at_commit.registers)
                slot->jobs[job].next_start = 0;
        }
        if (at_commit.registers)
            slot->absent = false;
    }
    Latch *launcher = state->launcher;
    LWLockRelease(worker_lock());
    wake_launcher(launcher);
}

extern "C" void at_transaction_end(XactEvent event, void *) {
    switch (event) {
        case XACT_EVENT_COMMIT:
            if (state && at_commit != AtCommit{})
                perform_at_commit();
            [[fallthrough]];
        case XACT_EVENT_ABORT:
        case XACT_EVENT_PREPARE:  // COMMIT PREPARED calls nobody back: the schedule finds the work
            at_commit = {};
            break;
        default:
            break;
    }
}

Job job_named(const std::string &name) {
    for (int job = 0; job < kJobCount; job++)
        if (name == kJobNames[job])
            return static_cast<Job>(job);
    throw Failure(ERRCODE_INVALID_PARAMETER_VALUE, "unknown job \"" + name + "\"",
                  "Jobs are rollup, stripe, notify and cache.");
}

void require_shared_state() {
    if (!state)
        throw Failure(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "pg_billing must be preloaded",
                      "Add pg_billing to shared_preload_libraries and restart the server.");
}

}  // namespace

void worker_state_shmem_request() {
    RequestAddinShmemSpace(MAXALIGN(sizeof(WorkerState)));
}

void worker_state_shmem_startup() {
    state = attach_worker_state();
}

void register_launcher() {
    BackgroundWorker worker = {};
    worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = 5;
    strlcpy(worker.bgw_library_name, "pg_billing_worker", sizeof(worker.bgw_library_name));
    strlcpy(worker.bgw_function_name, "launcher_main", sizeof(worker.bgw_function_name));
    strlcpy(worker.bgw_name, "pg_billing launcher", sizeof(worker.bgw_name));
    strlcpy(worker.bgw_type, "pg_billing launcher", sizeof(worker.bgw_type));
    RegisterBackgroundWorker(&worker);
}

void init_worker_state() {
    RegisterXactCallback(at_transaction_end, nullptr);
    install_utility_hook();
}

void wake_at_commit(Job job) {
    at_commit.wake[job] = true;
}

void databases_changed_at_commit() {
    at_commit.databases_changed = true;
}

bool request_and_wait(Job job, int64 timeout_ms) {
    require_shared_state();
    const char *enabled =
        pg_call([] { return GetConfigOption("pg_billing.database_workers", false, false); });
    if (strcmp(enabled, "off") == 0)
        throw Failure(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "background workers are switched off",
                      "Set pg_billing.database_workers to on and reload the server's configuration.");
    uint64 wanted = 0;
    pg_call([&] {
        LWLockAcquire(worker_lock(), LW_EXCLUSIVE);
        if (DatabaseSlot *slot = find_or_make_slot(state, MyDatabaseId)) {
            wanted = ++slot->jobs[job].requested;
            slot->jobs[job].next_start = 0;  // whoever waits for a run is not made to sit out a backoff
        }
        Latch *launcher = state->launcher;
        LWLockRelease(worker_lock());
        wake_launcher(launcher);
    });
    if (wanted == 0)
        throw Failure(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                      "pg_billing's workers serve at most " + std::to_string(kMaxDatabases) + " databases");

    const TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
    return pg_call([&] {
        bool done = false, timed_out = false;
        ConditionVariablePrepareToSleep(&state->finished);
        for (;;) {
            LWLockAcquire(worker_lock(), LW_SHARED);
            const DatabaseSlot *slot = find_slot(state, MyDatabaseId);
            done = slot && slot->jobs[job].finished >= wanted;
            LWLockRelease(worker_lock());
            if (done || timed_out)
                break;
            const long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
            timed_out = left <= 0 || ConditionVariableTimedSleep(&state->finished, left, PG_WAIT_EXTENSION);
        }
        ConditionVariableCancelSleep();
        return done;
    });
}

void hold_database(Oid database) {
    if (!state)
        return;
    LWLockAcquire(worker_lock(), LW_EXCLUSIVE);
    if (DatabaseSlot *slot = find_or_make_slot(state, database)) {
        slot->held_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), kHoldMs);
        // A worker clears its pid under this lock before it ends: the process signalled is still the worker.
        for (const JobState &job : slot->jobs)
            if (job.pid)
                kill(job.pid, SIGTERM);
    }
    LWLockRelease(worker_lock());
}

}  // namespace pg_billing

using namespace pg_billing;

// billing: pg_billing_wake_worker(job text) starts the job once this transaction has committed.
PG_BILLING_FUNCTION(pg_billing_wake_worker) {
    return pg_entry([&]() -> Datum {
        const char *name = pg_call([&] { return text_to_cstring(PG_GETARG_TEXT_PP(0)); });
        wake_at_commit(job_named(name));
        PG_RETURN_VOID();
    });
}

// billing: pg_billing_request_run(job text, timeout_ms bigint) returns whether a run ended well in time.
PG_BILLING_FUNCTION(pg_billing_request_run) {
    return pg_entry([&]() -> Datum {
        const char *name = pg_call([&] { return text_to_cstring(PG_GETARG_TEXT_PP(0)); });
        PG_RETURN_BOOL(request_and_wait(job_named(name), PG_GETARG_INT64(1)));
    });
}

// billing: pg_billing_register_database() tells the launcher at commit that this database has pg_billing now.
PG_BILLING_FUNCTION(pg_billing_register_database) {
    return pg_entry([&]() -> Datum {
        require_shared_state();
        at_commit.registers = true;
        PG_RETURN_VOID();
    });
}

// billing._job_state(job text) returns the process that does the job in this database, how many runs in a row have failed
// and when the next one is due (null: at once, or not known).
PG_BILLING_FUNCTION(pg_billing_job_state) {
    return pg_entry([&]() -> Datum {
        const Job job = job_named(pg_call([&] { return text_to_cstring(PG_GETARG_TEXT_PP(0)); }));
        require_shared_state();
        return pg_call([&] {
            TupleDesc columns;
            if (get_call_result_type(fcinfo, nullptr, &columns) != TYPEFUNC_COMPOSITE)
                elog(ERROR, "return type must be a row type");
            LWLockAcquire(worker_lock(), LW_SHARED);
            const DatabaseSlot *slot = find_slot(state, MyDatabaseId);
            const JobState now = slot ? slot->jobs[job] : JobState{};
            LWLockRelease(worker_lock());
            // A run counts as failed until it has ended well.
            Datum values[] = {Int32GetDatum(now.pid), Int32GetDatum(now.failures - (now.pid ? 1 : 0)),
                              TimestampTzGetDatum(now.next_start)};
            bool nulls[] = {now.pid == 0, false, now.pid != 0 || now.next_start == 0};
            return HeapTupleGetDatum(heap_form_tuple(columns, values, nulls));
        });
    });
}
