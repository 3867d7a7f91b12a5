// Quota counters in shared memory: one number per (database, tenant, metric, window), where a window is the billing
// period or an hour or a day that has a limit of its own. Of a gauge there is a second one, the floor: its level, negated,
// which may not pass zero.
//
// Invariants:
//   - used = committed + held by reservations + in flight. It is raised when usage is reserved and lowered when that is rolled back, so
//     concurrency cannot pass a cap. The tables stay the truth: a counter can be thrown away and loaded again.
//   - Whoever reserves on a counter keeps it pinned until the transaction's commit or abort callback has run; both
//     run after the transaction's fate is visible. Only an unpinned counter is evicted.
//   - A counter is loaded only while it is not ready, from a snapshot taken while the loader has it pinned. Nobody
//     can have reserved on it then, and every earlier incarnation was unpinned, so all of its rows are in that
//     snapshot.
//   - The lock is held shared to find a counter and exclusively to make, load or evict one. Who found a counter once
//     may come back to it without the lock: the incarnation tells whether it is still the same, and eviction marks
//     `state` so that nobody pins what is being thrown away. The number itself changes by compare-and-swap.
#pragma once

#include <string_view>
#include <type_traits>

#include "extension/pg.hpp"

extern "C" {
#include "port/atomics.h"
}

namespace pg_billing {

inline constexpr int kMaxTenantBytes = 128;
inline constexpr int kMaxMetricBytes = 64;

enum class Window : int32 { period, hour, day, floor };

// Compared and hashed as bytes: always made by make_counter_key(), which leaves no byte undefined.
struct CounterKey {
    Oid database;
    Oid relation;  // billing.usage_events: a counter of dropped tables is never mistaken for one of new ones
    int32 start;   // of the window, in minutes: no two windows of a kind start in the same one
    char metric[kMaxMetricBytes - 1];
    uint8
        window_and_scale;  // the metric's scale: the number counts in units of that; another scale, another counter
    char tenant[kMaxTenantBytes];
};

struct Counter {
    CounterKey key;
    pg_atomic_uint32 state;        // pins, and flags: see counters.cpp
    pg_atomic_uint64 used;         // signed, in units of the metric's smallest decimal
    pg_atomic_uint64 incarnation;  // never the same twice; 0 once evicted
};
// The hash table adds 16 bytes to each, and 8 to 16 of its directory.
static_assert(std::is_standard_layout_v<Counter> && sizeof(Counter) + 16 + 16 <= 256);
static_assert(sizeof(CounterKey) == 12 + kMaxMetricBytes + kMaxTenantBytes, "no padding in a hashed key");

// A counter as somebody saw it: it may have been evicted, and its memory used for another, since.
struct CounterRef {
    Counter *counter;
    uint64 incarnation;
};

CounterKey make_counter_key(Oid relation, std::string_view tenant, std::string_view metric, int scale,
                            Window window, TimestampTz start);

void counters_shmem_request();
void counters_shmem_startup();

// The following raise no ERROR unless said.

// Finds or makes a counter and pins it; returns null if there is no room. May raise (lock).
Counter *pin_counter(const CounterKey &key);

// Pins the counter if it is still the one that was seen.
bool repin_counter(const CounterRef &ref);

void unpin_counter(Counter *counter);

// Reads the number of a ready counter without pinning it; false if it is not ready, or no longer the one seen.
bool peek_counter(const CounterRef &ref, int64 *used);

// Returns a pinned counter's reference.
CounterRef counter_ref(Counter *counter);

bool counter_ready(Counter *counter);
// Sets the number of a counter that nobody has loaded meanwhile, and whether reservations hold some of it. May raise
// (lock).
void publish_counter(Counter *counter, int64 used, bool held);

// Notes that a reservation holds some of a ready counter's number.
void mark_held(Counter *counter);

// Tells whether reservations may hold some of the number: not if none has since the counter was loaded. A counter that is
// not the one seen any more may have anything.
bool may_be_held(const CounterRef &ref);

int64 counter_used(Counter *counter);
void add_to_counter(Counter *counter, int64 amount);

// The table as a whole, of all databases; what was counted since the server started or counters_reset_stats().
struct CounterStats {
    int64 capacity, in_use, pinned;
    int64 loads, evictions, refused;
};
CounterStats counters_stats();  // may raise (lock)
void counters_reset_stats();

enum class Reserve { done, over_limit, overflow };
// Adds amount unless that would pass the limit; `used` is then the number before, else after.
Reserve reserve_on_counter(Counter *counter, int64 amount, int64 limit, int64 *used);

}  // namespace pg_billing
