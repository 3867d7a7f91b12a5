// The rollup job: folds new usage into the aggregates and keeps partitions ahead of time.
#include "worker/session.hpp"
#include "worker/settings.hpp"

namespace pg_billing {
namespace {

TimestampTz roll_up(Session &session) {
    session.begin_round();
    // First, and marked as begun before it is: a rollup that fails never keeps partitions from being made, nor
    // upkeep that fails the rollup from running.
    if (session.maintenance_due())
        session.transaction("maintaining partitions", [&] { session.query("SELECT billing.maintain()"); });
    session.transaction("rolling up usage", [&] { session.query("SELECT billing.run_rollup()"); });
    return next_tick(kRollupJob, GetCurrentTimestamp());
}

}  // namespace
}  // namespace pg_billing

extern "C" PGDLLEXPORT void rollup_main(Datum database) {
    pg_billing::run_job(pg_billing::kRollupJob, DatumGetObjectId(database), pg_billing::roll_up);
}
