// The launcher: the one static worker. It connects to no database, and starts one short-lived worker per database
// and job when the job is due. worker/README.md tells the states and their transitions.
//
// Invariants:
//   - Nobody else starts workers, and a worker is never restarted by the postmaster: one place holds the schedule.
//   - A job is started only when its previous process is gone for good.
//   - A start counts as a failure until the worker says otherwise, so a run that ends in any way but well is retried
//     with growing delays, and a worker that cannot even be started never makes the launcher spin.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "extension/guard.hpp"
#include "extension/worker_state.hpp"
#include "worker/settings.hpp"

extern "C" {
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "commands/dbcommands.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

PG_MODULE_MAGIC;
}

namespace pg_billing {
namespace {

constexpr int kScanEveryMs = 60 * 1000;
constexpr int kNoWorkerFreeMs = 10 * 1000;
// Other jobs first run after the rollup job has found out whether pg_billing is in the database at all.
constexpr int kHeadStartMs = 2 * 1000;

struct Database {
    Oid oid;
    NameData name;
};

class Launcher {
  public:
    explicit Launcher(WorkerState *state) : state_(state) {}
    [[noreturn]] void run();

  private:
    WorkerState *const state_;
    std::vector<Database> databases_;
    std::set<Oid> without_;  // databases in which a worker found no pg_billing
    BackgroundWorkerHandle *handles_[kMaxDatabases][kJobCount] = {};
    uint64 changes_seen_ = 0;
    TimestampTz next_scan_ = 0;
    bool warned_of_slots_ = false, warned_of_workers_ = false;

    void reload();
    void scan();
    bool idle(int slot);
    void read_databases();
    bool process_gone(int slot, int job);
    TimestampTz look_after(int slot, int job, TimestampTz now);
    bool start(const DatabaseSlot &slot, int index, int job);
    std::string name_of(Oid database) const;
};

// Holds worker_lock() for a block that neither throws nor raises.
class Locked {
  public:
    Locked() {
        pg_call([] { LWLockAcquire(worker_lock(), LW_EXCLUSIVE); });
    }
    ~Locked() { LWLockRelease(worker_lock()); }
};

void Launcher::run() {
    for (;;) {
        const TimestampTz now = GetCurrentTimestamp();
        {
            const Locked lock;
            if (changes_seen_ != state_->databases_changed)
                next_scan_ = 0;
            changes_seen_ = state_->databases_changed;
        }
        if (now >= next_scan_)
            scan();
        TimestampTz wake = next_scan_;
        const bool enabled = switch_setting("pg_billing.database_workers");
        for (int slot = 0; slot < kMaxDatabases; slot++)
            for (int job = 0; job < kJobCount; job++)
                if (process_gone(slot, job) && enabled)
                    wake = std::min(wake, look_after(slot, job, now));
        const long wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake);
        pg_call([&] {
            WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait, PG_WAIT_EXTENSION);
            ResetLatch(MyLatch);
            CHECK_FOR_INTERRUPTS();
        });
        if (ConfigReloadPending)
            reload();
    }
}

// A new configuration may have shortened an interval or mended what made a job fail, or moved the business clock.
void Launcher::reload() {
    ConfigReloadPending = false;
    pg_call([] { ProcessConfigFile(PGC_SIGHUP); });
    const TimestampTz now = GetCurrentTimestamp();
    TimestampTz latest[kJobCount];
    for (int job = 0; job < kJobCount; job++)
        latest[job] = next_tick(static_cast<Job>(job), now);
    const Locked lock;
    for (DatabaseSlot &slot : state_->slots) {
        slot.maintained = 0;
        for (int job = 0; job < kJobCount; job++) {
            JobState &state = slot.jobs[job];
            state.next_start = state.failures ? now : std::min(state.next_start, latest[job]);
        }
    }
}

// Brings the slots in line with pg_database: a slot for each database that may have pg_billing, none for one gone.
void Launcher::scan() {
    next_scan_ = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), kScanEveryMs);
    // A slot made while we read belongs to a database that we may not have read.
    std::vector<Oid> before(kMaxDatabases);
    {
        const Locked lock;
        std::transform(std::begin(state_->slots), std::end(state_->slots), before.begin(),
                       [](const DatabaseSlot &slot) { return slot.database; });
    }
    read_databases();
    std::set<Oid> present;
    for (const Database &database : databases_)
        present.insert(database.oid);
    std::erase_if(without_, [&](Oid database) { return !present.contains(database); });

    bool full = false;
    for (int i = 0; i < kMaxDatabases; i++) {
        if (!OidIsValid(before[i]) || present.contains(before[i]) || !idle(i))
            continue;
        const Locked lock;
        if (state_->slots[i].database == before[i])
            state_->slots[i].database = InvalidOid;
    }
    for (const Database &database : databases_) {
        if (without_.contains(database.oid))
            continue;
        const Locked lock;
        if (find_slot(state_, database.oid))
            continue;
        DatabaseSlot *slot = find_or_make_slot(state_, database.oid);
        if (!slot)
            full = true;
        for (int job = 0; slot && job < kJobCount; job++)
            if (job != kRollupJob)
                slot->jobs[job].next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), kHeadStartMs);
    }
    if (full && !warned_of_slots_)
        pg_call([] {
            ereport(WARNING, errmsg("pg_billing's workers serve at most %d databases", kMaxDatabases),
                    errdetail("The others are looked at when one of these goes."));
        });
    warned_of_slots_ = full;
}

// Reads the databases a worker can connect to.
void Launcher::read_databases() {
    std::size_t count = 0;
    Database *found = nullptr;
    pg_call([&] {
        const MemoryContext memory = CurrentMemoryContext;
        pgstat_report_activity(STATE_RUNNING, "looking for databases");
        StartTransactionCommand();
        (void)GetTransactionSnapshot();
        Relation relation = table_open(DatabaseRelationId, AccessShareLock);
        TableScanDesc scan = table_beginscan_catalog(relation, 0, nullptr);
        std::size_t room = 64;
        found = static_cast<Database *>(MemoryContextAlloc(memory, room * sizeof(Database)));
        while (HeapTuple tuple = heap_getnext(scan, ForwardScanDirection)) {
            const auto *row = reinterpret_cast<Form_pg_database>(GETSTRUCT(tuple));
            if (row->datistemplate || !row->datallowconn ||
                database_is_invalid_form(const_cast<Form_pg_database>(row)))
                continue;
            if (count == room)
                found = static_cast<Database *>(repalloc(found, (room *= 2) * sizeof(Database)));
            found[count++] = {row->oid, row->datname};
        }
        table_endscan(scan);
        table_close(relation, AccessShareLock);
        CommitTransactionCommand();
        MemoryContextSwitchTo(memory);
        pgstat_report_activity(STATE_IDLE, nullptr);
    });
    databases_.assign(found, found + count);
    pg_call([&] { pfree(found); });
}

bool Launcher::idle(int slot) {
    bool all = true;
    for (int job = 0; job < kJobCount; job++)
        all = process_gone(slot, job) && all;
    return all;
}

// Tells whether no process of the job is left, and lets go of the handle of one that ended.
bool Launcher::process_gone(int slot, int job) {
    if (BackgroundWorkerHandle *&handle = handles_[slot][job]) {
        const bool stopped = pg_call([&] {
            pid_t pid;
            return GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;
        });
        if (!stopped)
            return false;
        pg_call([&] { pfree(handle); });
        handle = nullptr;
    }
    // Without a handle the worker may be one that a previous launcher started.
    const Locked lock;
    return state_->slots[slot].jobs[job].pid == 0;
}

// Starts the job if it is due; returns when to look again.
TimestampTz Launcher::look_after(int index, int job, TimestampTz now) {
    DatabaseSlot before;
    {
        const Locked lock;
        DatabaseSlot &slot = state_->slots[index];
        JobState &state = slot.jobs[job];
        if (!OidIsValid(slot.database))
            return DT_NOEND;
        if (slot.absent) {
            without_.insert(slot.database);
            if (std::ranges::all_of(slot.jobs, [](const JobState &state) { return state.pid == 0; }) &&
                std::ranges::all_of(handles_[index], [](const auto *handle) { return handle == nullptr; }))
                slot.database = InvalidOid;
            return DT_NOEND;
        }
        if (slot.held_until > now)
            return slot.held_until;
        // A request does not cut a backoff short: a failing job woken by every commit would run all the time.
        const bool asked = state.requested > state.started && state.failures == 0;
        if (!asked && state.next_start > now)
            return state.next_start;
        before = slot;
        state.started = state.requested;
        state.failures++;
        state.next_start = retry_at(state.failures, now);
    }
    if (start(before, index, job))
        return DT_NOEND;
    const TimestampTz again = TimestampTzPlusMilliseconds(now, kNoWorkerFreeMs);
    const Locked lock;
    JobState &state = state_->slots[index].jobs[job];
    state.started = before.jobs[job].started;
    state.failures = before.jobs[job].failures;
    state.next_start = again;
    return again;
}

bool Launcher::start(const DatabaseSlot &slot, int index, int job) {
    const std::string name = name_of(slot.database);
    handles_[index][job] = pg_call([&] {
        BackgroundWorker worker = {};
        worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
        worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
        worker.bgw_restart_time = BGW_NEVER_RESTART;
        worker.bgw_notify_pid = MyProcPid;
        worker.bgw_main_arg = ObjectIdGetDatum(slot.database);
        strlcpy(worker.bgw_library_name, "pg_billing_worker", sizeof(worker.bgw_library_name));
        snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "%s_main", kJobNames[job]);
        snprintf(worker.bgw_type, sizeof(worker.bgw_type), "pg_billing %s", kJobNames[job]);
        snprintf(worker.bgw_name, sizeof(worker.bgw_name), "pg_billing %s worker for database \"%s\"",
                 kJobNames[job], name.c_str());
        BackgroundWorkerHandle *handle = nullptr;
        return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : nullptr;
    });
    const bool started = handles_[index][job] != nullptr;
    if (!started && !warned_of_workers_)
        pg_call([] {
            ereport(WARNING, errmsg("pg_billing cannot start a worker: no background worker slot is free"),
                    errhint("Increase max_worker_processes and restart the server."));
        });
    warned_of_workers_ = !started;
    return started;
}

std::string Launcher::name_of(Oid database) const {
    for (const Database &known : databases_)
        if (known.oid == database)
            return NameStr(known.name);
    return std::to_string(database);
}

WorkerState *published;

extern "C" void withdraw_latch(int, Datum) {
    LWLockAcquire(worker_lock(), LW_EXCLUSIVE);
    published->launcher = nullptr;
    LWLockRelease(worker_lock());
}

}  // namespace
}  // namespace pg_billing

using namespace pg_billing;

extern "C" PGDLLEXPORT void launcher_main(Datum) {
    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    pg_entry([] {
        published = pg_call(attach_worker_state);
        pg_call([] {
            BackgroundWorkerInitializeConnection(nullptr, nullptr, 0);
            before_shmem_exit(withdraw_latch, 0);
            pgstat_report_appname("pg_billing launcher");
            MemoryContextSwitchTo(TopMemoryContext);
        });
        {
            const Locked lock;
            published->launcher = MyLatch;
        }
        Launcher(published).run();
    });
}
