#include "worker/session.hpp"

#include <algorithm>

#include "worker/settings.hpp"

extern "C" {
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
}

namespace pg_billing {
namespace {

constexpr const char *kExtension = "pg_billing";
constexpr int kTransactionLimitMs = 10 * 60 * 1000;
constexpr const char *kLockLimit = "10s";
constexpr int64 kMaintenanceEveryMs = 60 * 60 * 1000;
constexpr int kNotInstalled = MAKE_SQLSTATE('U', 'B', '0', '5', '0');
constexpr uint16 kLockClass = 0x5042;  // users' advisory locks have class 1 or 2

// This process's run, as the exit callback needs it.
struct Run {
    WorkerState *state;
    Oid database;
    Job job;
    bool well;
    TimestampTz next_start;
} run;

// Lets f see and change the database's slot under the lock; returns what f returns, or nothing if it is gone.
template <class F>
auto with_slot(F &&f) -> std::optional<decltype(f(std::declval<DatabaseSlot &>()))> {
    pg_call([] { LWLockAcquire(worker_lock(), LW_EXCLUSIVE); });
    DatabaseSlot *slot = find_slot(run.state, run.database);
    std::optional<decltype(f(*slot))> result;
    if (slot)
        result = f(*slot);
    pg_call([] { LWLockRelease(worker_lock()); });
    return result;
}

// Reports the run's end. Registered before anything else, so it runs when the transaction is over and all locks are
// released, however the process ends.
extern "C" void leave(int, Datum) {
    const TimestampTz now = GetCurrentTimestamp();
    LWLockAcquire(worker_lock(), LW_EXCLUSIVE);
    if (DatabaseSlot *slot = find_slot(run.state, run.database)) {
        JobState &job = slot->jobs[run.job];
        if (job.pid == MyProcPid) {
            job.pid = 0;
            if (run.well) {
                job.finished = job.started;
                job.failures = 0;
                job.next_start = run.next_start;
            } else {
                job.next_start = retry_at(job.failures, now);
            }
        }
    }
    Latch *launcher = run.state->launcher;
    LWLockRelease(worker_lock());
    ConditionVariableBroadcast(&run.state->finished);
    if (launcher)
        SetLatch(launcher);
}

// Makes the process known, so that from here on a DROP DATABASE can stop it. False: one has been given already.
bool enter() {
    const bool entered = with_slot([](DatabaseSlot &slot) {
                             if (slot.held_until > GetCurrentTimestamp())
                                 return false;
                             slot.jobs[run.job].pid = MyProcPid;
                             return true;
                         }).value_or(false);
    if (entered)
        pg_call([] { before_shmem_exit(leave, 0); });
    return entered;
}

void connect() {
    pg_call([] {
        BackgroundWorkerInitializeConnectionByOid(run.database, InvalidOid, 0);
        pgstat_report_appname(psprintf("pg_billing %s", kJobNames[run.job]));
        // Whatever ALTER DATABASE or ALTER ROLE set: no name is looked up where users may create, and a worker
        // neither waits long behind a user's lock nor makes others queue behind its own request.
        SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION);
        SetConfigOption("lock_timeout", kLockLimit, PGC_USERSET, PGC_S_SESSION);
        SetConfigOption("default_transaction_isolation", "read committed", PGC_USERSET, PGC_S_SESSION);
    });
}

// False: another run of this job is under way (the launcher was restarted meanwhile).
bool lock_job() {
    return pg_call([] {
        LOCKTAG tag;
        SET_LOCKTAG_ADVISORY(tag, run.database, 0, static_cast<uint32>(run.job), kLockClass);
        return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
    });
}

extern "C" void describe_run(void *) {
    errcontext("%s", MyBgworkerEntry->bgw_name);
}

// Finds the extension and locks it against DROP EXTENSION; false: it is not here.
bool lock_extension() {
    return pg_call([] {
        const Oid found = get_extension_oid(kExtension, true);
        if (!OidIsValid(found))
            return false;
        LockDatabaseObject(ExtensionRelationId, found, 0, AccessShareLock);
        return get_extension_oid(kExtension, true) == found;
    });
}

void mark_absent() {
    with_slot([](DatabaseSlot &slot) {
        // A CREATE EXTENSION that committed after our look has asked for a run: then the look is out of date.
        const JobState &job = slot.jobs[run.job];
        slot.absent = job.requested == job.started;
        return true;
    });
}

}  // namespace

void Session::begin(const char *activity) {
    pg_call([&] {
        SetCurrentStatementStartTimestamp();
        pgstat_report_activity(STATE_RUNNING, activity);
        StartTransactionCommand();
        SPI_connect();
        PushActiveSnapshot(GetTransactionSnapshot());
        // statement_timeout itself is armed only for client backends.
        enable_timeout_after(STATEMENT_TIMEOUT, kTransactionLimitMs);
    });
    if (!lock_extension()) {
        commit();
        mark_absent();
        throw NothingHere();
    }
    const Value version =
        query("SELECT extversion FROM pg_catalog.pg_extension WHERE extname = $1", {kExtension}).at(0).at(0);
    if (version != PG_BILLING_VERSION)
        throw Failure(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                      "extension pg_billing has version " + *version + " but its library has version " +
                          PG_BILLING_VERSION,
                      "Execute ALTER EXTENSION pg_billing UPDATE, or restart the server after installing.");
    try {
        query("SELECT billing.installed_version()");
    } catch (const PgError &e) {
        if (e.data()->sqlerrcode != kNotInstalled)
            throw;
        abandon();
        throw NothingHere();
    }
}

void Session::commit() {
    pg_call([] {
        disable_timeout(STATEMENT_TIMEOUT, false);
        PopActiveSnapshot();
        SPI_finish();
        CommitTransactionCommand();
        pgstat_report_stat(true);  // else autovacuum never hears of what we wrote
        pgstat_report_activity(STATE_IDLE, nullptr);
    });
}

void Session::abandon() {
    pg_call([] {
        disable_timeout(STATEMENT_TIMEOUT, false);
        QueryCancelPending = false;
        AbortCurrentTransaction();
        pgstat_report_activity(STATE_IDLE, nullptr);
    });
}

std::vector<Row> Session::query(const char *sql, const std::vector<Value> &arguments) {
    const int count = static_cast<int>(arguments.size());
    SPIPlanPtr &plan = plans_[sql];
    pg_call([&] {
        if (plan == nullptr) {
            auto *types = static_cast<Oid *>(palloc(sizeof(Oid) * (count + 1)));
            std::fill_n(types, count, TEXTOID);
            SPIPlanPtr prepared = SPI_prepare(sql, count, types);
            if (prepared == nullptr)
                elog(ERROR, "SPI_prepare: %s", SPI_result_code_string(SPI_result));
            SPI_keepplan(prepared);
            plan = prepared;
        }
        auto *values = static_cast<Datum *>(palloc(sizeof(Datum) * (count + 1)));
        auto *nulls = static_cast<char *>(palloc0(count + 1));
        for (int i = 0; i < count; i++) {
            const Value &argument = arguments[i];
            nulls[i] = argument ? ' ' : 'n';
            if (argument)
                values[i] = CStringGetTextDatum(
                    pg_any_to_server(argument->c_str(), static_cast<int>(argument->size()), PG_UTF8));
        }
        const int result = SPI_execute_plan(plan, values, nulls, false, 0);
        if (result < 0)
            elog(ERROR, "SPI_execute_plan: %s", SPI_result_code_string(result));
    });
    std::vector<Row> rows(SPI_tuptable ? SPI_processed : 0);
    for (std::size_t i = 0; i < rows.size(); i++) {
        for (int column = 1; column <= SPI_tuptable->tupdesc->natts; column++) {
            const char *text = pg_call([&]() -> const char * {
                char *value = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, column);
                return value ? pg_server_to_any(value, static_cast<int>(strlen(value)), PG_UTF8) : nullptr;
            });
            rows[i].push_back(text ? Value(text) : Value());
        }
    }
    pg_call([] { SPI_freetuptable(SPI_tuptable); });
    return rows;
}

void Session::serve_interrupts() {
    pg_call([] {
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            ProcessConfigFile(PGC_SIGHUP);
        }
    });
}

void Session::begin_round() {
    with_slot([](DatabaseSlot &slot) { return slot.jobs[run.job].started = slot.jobs[run.job].requested; });
}

bool Session::previous_failed() {
    return with_slot([](DatabaseSlot &slot) { return slot.jobs[run.job].failures > 1; }).value_or(false);
}

bool Session::maintenance_due() {
    const TimestampTz now = GetCurrentTimestamp();
    return with_slot([&](DatabaseSlot &slot) {
               const bool due = TimestampDifferenceExceeds(slot.maintained, now, kMaintenanceEveryMs);
               if (due)
                   slot.maintained = now;
               return due;
           })
        .value_or(false);
}

void Session::notice(std::string_view text) {
    const uint32 hash = text.empty() ? 0
                                     : hash_bytes(reinterpret_cast<const unsigned char *>(text.data()),
                                                  static_cast<int>(text.size())) |
                                           1;
    const bool changed = with_slot([&](DatabaseSlot &slot) {
                             return std::exchange(slot.jobs[run.job].notice, hash) != hash;
                         }).value_or(false);
    if (changed && hash)
        pg_call([&] { ereport(LOG, errmsg("%.*s", static_cast<int>(text.size()), text.data())); });
}

void run_job(Job job, Oid database, Tick tick) {
    run.database = database;
    run.job = job;
    ErrorContextCallback context = {};
    context.callback = describe_run;
    context.previous = error_context_stack;
    error_context_stack = &context;

    pg_entry([&] {
        run.state = pg_call(attach_worker_state);
        if (!enter())
            return;
        pg_call([] {
            pqsignal(SIGHUP, SignalHandlerForConfigReload);
            pqsignal(SIGTERM, die);
            BackgroundWorkerUnblockSignals();
        });
        connect();
        if (!lock_job())
            throw Failure(ERRCODE_LOCK_NOT_AVAILABLE, "another worker is doing this job already");
        Session session;
        try {
            run.next_start = tick(session);
        } catch (const NothingHere &) {
            run.next_start = next_tick(job, GetCurrentTimestamp());
        }
        run.well = true;
    });
    proc_exit(0);
}

}  // namespace pg_billing
