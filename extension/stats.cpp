#include "extension/stats.hpp"

#include <cstring>
#include <iterator>

#include "extension/counters.hpp"
#include "extension/guard.hpp"
#include "extension/worker_state.hpp"

extern "C" {
#include "funcapi.h"
#include "port/atomics.h"
}

namespace pg_billing::stats {
namespace {

constexpr int kMaxMetrics = 1024;  // of all databases
constexpr int kMaxReports = 32;    // of all backends

// What is counted of a metric, as SQL shows it.
constexpr struct {
    const char *status, *reason;
} kOutcomes[] = {
    {"recorded", nullptr},   {"duplicate", nullptr},         {"allowed", nullptr},
    {"denied", "hard_cap"},  {"denied", "upgrade_required"}, {"denied", "hour_limit"},
    {"denied", "day_limit"}, {"denied", "no_subscription"},  {"denied", "subscription_inactive"}};
constexpr int kOutcomeCount = static_cast<int>(std::size(kOutcomes));

struct RollupStats {
    Oid database;
    int64 runs, events, microseconds;
    int64 last_events, last_microseconds;
    TimestampTz last_at;
};

struct Report {
    pid_t pid;  // 0: free
    Oid database;
    TimestampTz started_at;
    int64 done, total;
    char command[16], phase[32];
};

}  // namespace

struct MetricStats {
    Oid database;
    char metric[kMaxMetricBytes];
    pg_atomic_uint64 outcomes[kOutcomeCount];
};

namespace {

struct Shared {
    TimestampTz reset_at;
    MetricStats metrics[kMaxMetrics];
    RollupStats rollups[kMaxDatabases];
    Report reports[kMaxReports];
};

Shared *shared;
Report *own_report;

LWLock *lock() {
    return &GetNamedLWLockTranche(kLockTranche)[kStatsLock].lock;
}

// Finds the entry of this database, or a free one, which the caller fills. Needs lock() exclusively.
RollupStats *own_rollup() {
    RollupStats *free = nullptr;
    for (RollupStats &rollup : shared->rollups) {
        if (rollup.database == MyDatabaseId)
            return &rollup;
        if (!free && !OidIsValid(rollup.database))
            free = &rollup;
    }
    return free;
}

extern "C" void end_report_at_end(XactEvent event, void *) {
    if (!own_report || (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT))
        return;
    own_report->pid = 0;
    own_report = nullptr;
}

Datum optional_text(const char *text, bool *is_null) {
    *is_null = !text;
    return text ? CStringGetTextDatum(text) : 0;
}

}  // namespace

void shmem_request() {
    RequestAddinShmemSpace(sizeof(Shared));
}

void shmem_startup() {
    bool found;
    shared = static_cast<Shared *>(ShmemInitStruct("pg_billing statistics", sizeof(Shared), &found));
    if (found)
        return;
    memset(static_cast<void *>(shared), 0, sizeof(*shared));
    shared->reset_at = GetCurrentTimestamp();
    for (MetricStats &metric : shared->metrics)
        for (pg_atomic_uint64 &outcome : metric.outcomes)
            pg_atomic_init_u64(&outcome, 0);
}

void init() {
    RegisterXactCallback(end_report_at_end, nullptr);
}

MetricStats *of_metric(std::string_view metric) {
    MetricStats *place = nullptr;
    LWLockAcquire(lock(), LW_EXCLUSIVE);
    for (MetricStats &stats : shared->metrics) {
        if (!OidIsValid(stats.database)) {
            stats.database = MyDatabaseId;
            memcpy(stats.metric, metric.data(), metric.size());
            stats.metric[metric.size()] = '\0';
        }
        if (stats.database == MyDatabaseId && metric == stats.metric) {
            place = &stats;
            break;
        }
    }
    LWLockRelease(lock());
    return place;
}

void count(MetricStats *stats, const char *status, const char *reason, int64 decisions) {
    if (!stats)
        return;
    for (int i = 0; i < kOutcomeCount; i++)
        if (strcmp(kOutcomes[i].status, status) == 0 &&
            (!kOutcomes[i].reason || strcmp(kOutcomes[i].reason, reason) == 0)) {
            pg_atomic_fetch_add_u64(&stats->outcomes[i], decisions);
            return;
        }
}

namespace {

void put_outcomes(ReturnSetInfo *result) {
    for (MetricStats &stats : shared->metrics) {
        if (stats.database != MyDatabaseId)
            continue;
        for (int i = 0; i < kOutcomeCount; i++) {
            bool nulls[4] = {};
            const Datum values[4] = {
                CStringGetTextDatum(stats.metric), CStringGetTextDatum(kOutcomes[i].status),
                optional_text(kOutcomes[i].reason, &nulls[2]),
                Int64GetDatum(static_cast<int64>(pg_atomic_read_u64(&stats.outcomes[i])))};
            tuplestore_putvalues(result->setResult, result->setDesc, const_cast<Datum *>(values), nulls);
        }
    }
}

void put_rollup(ReturnSetInfo *result) {
    for (const RollupStats &rollup : shared->rollups) {
        if (rollup.database != MyDatabaseId)
            continue;
        Datum values[] = {Int64GetDatum(rollup.runs),
                          Int64GetDatum(rollup.events),
                          Float8GetDatum(static_cast<double>(rollup.microseconds) / 1000),
                          TimestampTzGetDatum(rollup.last_at),
                          Int64GetDatum(rollup.last_events),
                          Float8GetDatum(static_cast<double>(rollup.last_microseconds) / 1000)};
        bool nulls[std::size(values)] = {false, false, false, rollup.runs == 0, false, false};
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
}

void put_counters(ReturnSetInfo *result) {
    const CounterStats counters = counters_stats();
    Datum values[] = {Int64GetDatum(counters.capacity),  Int64GetDatum(counters.in_use),
                      Int64GetDatum(counters.pinned),    Int64GetDatum(counters.loads),
                      Int64GetDatum(counters.evictions), Int64GetDatum(counters.refused)};
    bool nulls[std::size(values)] = {};
    tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

void put_reports(ReturnSetInfo *result) {
    for (const Report &report : shared->reports) {
        if (report.pid == 0)
            continue;
        Datum values[] = {Int32GetDatum(report.pid),
                          ObjectIdGetDatum(report.database),
                          CStringGetTextDatum(report.command),
                          CStringGetTextDatum(report.phase),
                          TimestampTzGetDatum(report.started_at),
                          Int64GetDatum(report.done),
                          Int64GetDatum(report.total)};
        bool nulls[std::size(values)] = {false, false, false, false, false, false, report.total < 0};
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
}

void reset() {
    shared->reset_at = GetCurrentTimestamp();
    for (MetricStats &stats : shared->metrics)
        if (stats.database == MyDatabaseId)
            for (pg_atomic_uint64 &outcome : stats.outcomes)
                pg_atomic_write_u64(&outcome, 0);
    for (RollupStats &rollup : shared->rollups)
        if (rollup.database == MyDatabaseId)
            rollup = {MyDatabaseId, 0, 0, 0, 0, 0, 0};
    counters_reset_stats();
}

void report(const char *command, const char *phase, int64 done, int64 total) {
    if (!own_report)
        for (Report &place : shared->reports)
            if (place.pid == 0) {
                place.pid = MyProcPid;
                place.database = MyDatabaseId;
                place.started_at = GetCurrentTimestamp();
                own_report = &place;
                break;
            }
    if (!own_report)
        return;
    strlcpy(own_report->command, command, sizeof(own_report->command));
    strlcpy(own_report->phase, phase, sizeof(own_report->phase));
    own_report->done = done;
    own_report->total = total;
}

void note_rollup(int64 events, TimestampTz began) {
    const TimestampTz now = GetCurrentTimestamp();
    if (RollupStats *rollup = own_rollup()) {
        rollup->database = MyDatabaseId;
        rollup->runs++;
        rollup->events += events;
        rollup->microseconds += now - began;
        rollup->last_events = events;
        rollup->last_microseconds = now - began;
        rollup->last_at = now;
    }
}

// Runs f under the lock; for functions that return a set, what it puts there is the result.
template <class F>
Datum locked(LWLockMode mode, F &&f) {
    return pg_entry([&]() -> Datum {
        pg_call([&] {
            LWLockAcquire(lock(), mode);
            f();
            LWLockRelease(lock());
        });
        PG_RETURN_VOID();
    });
}

template <class F>
Datum materialized(FunctionCallInfo fcinfo, F &&put) {
    return pg_entry([&]() -> Datum {
        pg_call([&] { InitMaterializedSRF(fcinfo, 0); });
        return locked(LW_SHARED, [&] { put(reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo)); });
    });
}

}  // namespace
}  // namespace pg_billing::stats

using namespace pg_billing;

// billing._stat_outcomes() returns how many decisions of each outcome there were.
PG_BILLING_FUNCTION(pg_billing_stat_outcomes) {
    return stats::materialized(fcinfo, stats::put_outcomes);
}

// billing._stat_counters() returns one row about the quota counters of the server.
PG_BILLING_FUNCTION(pg_billing_stat_counters) {
    return stats::materialized(fcinfo, stats::put_counters);
}

// billing._stat_rollups() returns what the rollups of this database did.
PG_BILLING_FUNCTION(pg_billing_stat_rollups) {
    return stats::materialized(fcinfo, stats::put_rollup);
}

// billing._stat_reports() returns what is under way.
PG_BILLING_FUNCTION(pg_billing_stat_reports) {
    return stats::materialized(fcinfo, stats::put_reports);
}

// billing._stat_reset_at() returns since when is counted.
PG_BILLING_FUNCTION(pg_billing_stat_reset_at) {
    PG_RETURN_TIMESTAMPTZ(stats::shared->reset_at);
}

PG_BILLING_FUNCTION(pg_billing_stat_reset) {
    return stats::locked(LW_EXCLUSIVE, stats::reset);
}

// billing._report_progress(command text, phase text, done bigint, total bigint) says how far this backend is.
PG_BILLING_FUNCTION(pg_billing_report_progress) {
    return pg_entry([&]() -> Datum {
        const char *command = pg_call([&] { return text_to_cstring(PG_GETARG_TEXT_PP(0)); });
        const char *phase = pg_call([&] { return text_to_cstring(PG_GETARG_TEXT_PP(1)); });
        return stats::locked(LW_EXCLUSIVE, [&] {
            stats::report(command, phase, PG_GETARG_INT64(2), PG_ARGISNULL(3) ? -1 : PG_GETARG_INT64(3));
        });
    });
}

// billing._note_rollup(events bigint, began timestamptz) counts a rollup.
PG_BILLING_FUNCTION(pg_billing_note_rollup) {
    return stats::locked(LW_EXCLUSIVE,
                         [&] { stats::note_rollup(PG_GETARG_INT64(0), PG_GETARG_TIMESTAMPTZ(1)); });
}
