// The quota terms in force for a tenant and a metric: limit, billing period and counters, kept by each backend so that
// a decision needs no SQL.
//
// Invariants:
//   - Terms are read under the latest snapshot and hold for a stretch of time (`valid_from` to `valid_until`): until the
//     period ends, a grace runs out.
//   - Whatever changes a limit raises a generation number in shared memory when its transaction has committed
//     (billing._quotas_changed()), and terms of an older generation are not used: a limit counts from the changer's
//     commit. The generation is noted before the terms are read, so a change in between is not missed.
//   - A transaction that has changed a limit itself reads the terms anew each time until it ends, and so does a standby,
//     where nobody raises generations.
#pragma once

#include <string_view>

#include "extension/counters.hpp"
#include "extension/stats.hpp"

namespace pg_billing {

// As SQL names them; the first is what NULL means.
enum class Aggregation : int8 { sum, count, max, last, unique_count, time_weighted };
inline constexpr const char *kAggregationNames[] = {"sum",  "count",        "max",
                                                    "last", "unique_count", "time_weighted"};
enum class Cap : int8 { not_in_force, hard, soft, none };
inline constexpr const char *kCapNames[] = {"", "hard", "soft", "none"};
enum class Refusal : int8 { none, no_subscription, upgrade_required, subscription_inactive };
inline constexpr const char *kRefusalNames[] = {"", "no_subscription", "upgrade_required",
                                                "subscription_inactive"};

// One number and what it may reach: the billing period's own first, then those of shorter windows, a gauge's floor last.
struct Limit {
    Window window;
    int64 quota;  // in units; INT64_MAX: unlimited
    int64 bound;  // what a check may not pass: the quota, or a soft cap's grace; INT64_MAX if nothing
    TimestampTz start, end;
    CounterRef counter;  // as last seen; null counter: never
};

inline constexpr int kMaxLimits = 4;

struct Terms {
    bool tenant_known, metric_known;
    bool is_gauge;
    Aggregation aggregation;
    int scale;
    Refusal refusal;  // why no usage is allowed at all
    Cap cap;
    TimestampTz valid_from, valid_until;
    stats::MetricStats *stats;  // where decisions on the metric are counted
    int limit_count;
    Limit limits[kMaxLimits];

    const Limit &period() const { return limits[0]; }
    bool unlimited() const { return limits[0].quota == PG_INT64_MAX; }
    // Only sums can be held against a cap as they grow.
    bool adds_up() const { return is_gauge || aggregation <= Aggregation::count; }
};

namespace terms {

void shmem_request();
void shmem_startup();

// Registers the transaction callbacks; called once, while preloading.
void init();

// Returns the terms in force at a time. They stay where they are until the next call, or until anything is written.
// Plain calls into PostgreSQL: to be used inside pg_call().
Terms *in_force(Oid relation, std::string_view tenant, std::string_view metric, TimestampTz at);

}  // namespace terms
}  // namespace pg_billing
