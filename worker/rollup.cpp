// The rollup job: folds new usage into the aggregates, has reservations expire, keeps partitions ahead of time, and
// forgets old keys; and writes files of the usage that is exported so.
#include "worker/export_files.hpp"
#include "worker/session.hpp"
#include "worker/settings.hpp"

namespace pg_billing {
namespace {

// Frees what expired reservations hold, some in a transaction; false: there is none left.
bool expire(Session &session) {
    return session.transaction("expiring reservations", [&] {
        return session.query("SELECT billing.expire_reservations() > 0").at(0).at(0) == "t";
    });
}

// Returns when the next rollup is due.
TimestampTz fold(Session &session) {
    session.begin_round();
    session.transaction("rolling up usage", [&] { session.query("SELECT billing.run_rollup()"); });
    while (expire(session))
        session.serve_interrupts();
    export_usage(session);
    return next_tick(kRollupJob, GetCurrentTimestamp());
}

// Forgets some old keys, in a transaction that holds its locks for a moment only; false: for now there are no more.
bool prune(Session &session) {
    return session.transaction("pruning idempotency keys", [&] {
        return session.query("SELECT billing.prune_keys(5000) >= 5000").at(0).at(0) == "t";
    });
}

TimestampTz roll_up(Session &session) {
    // First, and marked as begun before it is: a rollup that fails never keeps partitions from being made, nor
    // upkeep that fails the rollup from running.
    const bool upkeep = session.maintenance_due();
    if (upkeep)
        session.transaction("maintaining partitions", [&] { session.query("SELECT billing.maintain()"); });
    TimestampTz next = fold(session);
    // However many keys have come of age, usage goes on being rolled up.
    while (upkeep && prune(session)) {
        session.serve_interrupts();
        if (GetCurrentTimestamp() >= next)
            next = fold(session);
    }
    return next;
}

}  // namespace
}  // namespace pg_billing

extern "C" PGDLLEXPORT void rollup_main(Datum database) {
    pg_billing::run_job(pg_billing::kRollupJob, DatumGetObjectId(database), pg_billing::roll_up);
}
