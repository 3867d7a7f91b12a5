// The rollup job: folds new usage into the aggregates, has reservations expire and keeps partitions ahead of time.
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

TimestampTz roll_up(Session &session) {
    session.begin_round();
    // First, and marked as begun before it is: a rollup that fails never keeps partitions from being made, nor
    // upkeep that fails the rollup from running.
    if (session.maintenance_due())
        session.transaction("maintaining partitions", [&] { session.query("SELECT billing.maintain()"); });
    session.transaction("rolling up usage", [&] { session.query("SELECT billing.run_rollup()"); });
    while (expire(session))
        session.serve_interrupts();
    return next_tick(kRollupJob, GetCurrentTimestamp());
}

}  // namespace
}  // namespace pg_billing

extern "C" PGDLLEXPORT void rollup_main(Datum database) {
    pg_billing::run_job(pg_billing::kRollupJob, DatumGetObjectId(database), pg_billing::roll_up);
}
