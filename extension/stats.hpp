// What has been decided and done since the server started or stat_reset() was called: cumulative numbers in shared
// memory, and what is under way.
//
// Invariants:
//   - Decisions are counted when they are made, whether or not the transaction commits, as PostgreSQL counts rows.
//   - Counting is one atomic addition: no lock, no ERROR. Where there is no place for a metric, it is not counted.
//   - A progress report belongs to a backend and ends with its transaction, however that ends.
#pragma once

#include <string_view>

#include "extension/pg.hpp"

namespace pg_billing::stats {

struct MetricStats;

void shmem_request();
void shmem_startup();

// Registers the transaction callback; called once, while preloading.
void init();

// Returns where this database's decisions on the metric are counted; null if there is no place. May raise (lock).
MetricStats *of_metric(std::string_view metric);

// Counts decisions of that status; `reason` matters to denials only.
void count(MetricStats *stats, const char *status, const char *reason, int64 decisions = 1);

}  // namespace pg_billing::stats
