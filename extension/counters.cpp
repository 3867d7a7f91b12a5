#include "extension/counters.hpp"

#include <cstring>

#include "extension/settings.hpp"
#include "extension/worker_state.hpp"

extern "C" {
#include "storage/ipc.h"
#include "utils/hsearch.h"
}

namespace pg_billing {
namespace {

// In state, above the pins: the number is there; wanted since eviction last looked; reservations hold some of it; no
// counter any more.
constexpr uint32 kReady = 1u << 28, kUsed = 1u << 29, kHeld = 1u << 30, kEvicted = 1u << 31;
constexpr uint32 kPins = kReady - 1;

struct Shared {
    pg_atomic_uint64 incarnations;  // the last one given
    pg_atomic_uint64 loads, evictions, refused;
};

HTAB *table;
Shared *shared;

LWLock *lock() {
    return &GetNamedLWLockTranche(kLockTranche)[kCountersLock].lock;
}

void note_use(Counter *counter) {
    if (!(pg_atomic_read_u32(&counter->state) & kUsed))
        pg_atomic_fetch_or_u32(&counter->state, kUsed);
}

// Throws out unpinned counters, up to an eighth of the table, so that the next misses find room at once. One that was
// used since the last look gets a second chance.
long evict(bool spare_used) {
    const long wanted = settings::max_counters / 8 + 1;
    long evicted = 0;
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, table);
    while (auto *counter = static_cast<Counter *>(hash_seq_search(&scan))) {
        uint32 state = pg_atomic_read_u32(&counter->state);
        if (spare_used && (state & kUsed)) {
            pg_atomic_fetch_and_u32(&counter->state, ~kUsed);
            continue;
        }
        if ((state & kPins) || !pg_atomic_compare_exchange_u32(&counter->state, &state, kEvicted))
            continue;
        pg_atomic_write_u64(&counter->incarnation, 0);
        pg_atomic_fetch_add_u64(&shared->evictions, 1);
        hash_search(table, &counter->key, HASH_REMOVE, nullptr);
        if (++evicted == wanted) {
            hash_seq_term(&scan);
            break;
        }
    }
    return evicted;
}

bool make_room() {
    return evict(true) > 0 || evict(false) > 0;
}

}  // namespace

CounterKey make_counter_key(Oid relation, std::string_view tenant, std::string_view metric, int scale,
                            Window window, TimestampTz start) {
    CounterKey key;
    memset(static_cast<void *>(&key), 0, sizeof(key));
    key.database = MyDatabaseId;
    key.relation = relation;
    key.start = TIMESTAMP_IS_NOBEGIN(start) ? PG_INT32_MIN : static_cast<int32>(start / (60 * USECS_PER_SEC));
    key.window_and_scale = static_cast<uint8>(static_cast<int>(window) << 4 | scale);
    memcpy(key.metric, metric.data(), metric.size());
    memcpy(key.tenant, tenant.data(), tenant.size());
    return key;
}

void counters_shmem_request() {
    RequestAddinShmemSpace(hash_estimate_size(settings::max_counters, sizeof(Counter)));
    RequestAddinShmemSpace(sizeof(Shared));
}

void counters_shmem_startup() {
    HASHCTL control{};
    control.keysize = sizeof(CounterKey);
    control.entrysize = sizeof(Counter);
    table = ShmemInitHash("pg_billing counters", settings::max_counters, settings::max_counters, &control,
                          HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
    bool found;
    shared =
        static_cast<Shared *>(ShmemInitStruct("pg_billing counter incarnations", sizeof(Shared), &found));
    if (found)
        return;
    pg_atomic_init_u64(&shared->incarnations, 0);
    pg_atomic_init_u64(&shared->loads, 0);
    pg_atomic_init_u64(&shared->evictions, 0);
    pg_atomic_init_u64(&shared->refused, 0);
}

Counter *pin_counter(const CounterKey &key) {
    LWLockAcquire(lock(), LW_SHARED);
    auto *counter = static_cast<Counter *>(hash_search(table, &key, HASH_FIND, nullptr));
    if (counter)
        pg_atomic_fetch_add_u32(&counter->state, 1);
    LWLockRelease(lock());
    if (counter) {
        note_use(counter);
        return counter;
    }

    LWLockAcquire(lock(), LW_EXCLUSIVE);
    bool found;
    counter = static_cast<Counter *>(hash_search(table, &key, HASH_ENTER_NULL, &found));
    if (!counter && make_room())
        counter = static_cast<Counter *>(hash_search(table, &key, HASH_ENTER_NULL, &found));
    if (counter) {
        if (!found) {
            pg_atomic_write_u64(&counter->used, 0);
            pg_atomic_write_u64(&counter->incarnation, pg_atomic_add_fetch_u64(&shared->incarnations, 1));
            pg_write_barrier();  // who comes back to this memory sees the new incarnation before it can pin
            pg_atomic_write_u32(&counter->state, 0);
        }
        pg_atomic_fetch_add_u32(&counter->state, 1);
    } else {
        pg_atomic_fetch_add_u64(&shared->refused, 1);
    }
    LWLockRelease(lock());
    return counter;
}

bool repin_counter(const CounterRef &ref) {
    uint32 state = pg_atomic_read_u32(&ref.counter->state);
    do {
        if (state & kEvicted)
            return false;
    } while (!pg_atomic_compare_exchange_u32(&ref.counter->state, &state, state + 1));
    if (pg_atomic_read_u64(&ref.counter->incarnation) == ref.incarnation) {
        note_use(ref.counter);
        return true;
    }
    unpin_counter(ref.counter);
    return false;
}

void unpin_counter(Counter *counter) {
    pg_atomic_fetch_sub_u32(&counter->state, 1);
}

bool peek_counter(const CounterRef &ref, int64 *used) {
    if (!counter_ready(ref.counter))
        return false;
    *used = counter_used(ref.counter);
    pg_read_barrier();  // had it been evicted before the number was read, the incarnation would differ by now
    if (pg_atomic_read_u64(&ref.counter->incarnation) != ref.incarnation)
        return false;
    note_use(ref.counter);
    return true;
}

CounterRef counter_ref(Counter *counter) {
    return {counter, pg_atomic_read_u64(&counter->incarnation)};
}

bool counter_ready(Counter *counter) {
    const bool ready = pg_atomic_read_u32(&counter->state) & kReady;
    pg_read_barrier();  // pairs with publish_counter(): ready implies the number is there
    return ready;
}

void publish_counter(Counter *counter, int64 used, bool held) {
    LWLockAcquire(lock(), LW_EXCLUSIVE);
    if (!counter_ready(counter)) {
        pg_atomic_write_u64(&counter->used, static_cast<uint64>(used));
        pg_write_barrier();
        pg_atomic_fetch_or_u32(&counter->state, kReady | (held ? kHeld : 0));
        pg_atomic_fetch_add_u64(&shared->loads, 1);
    }
    LWLockRelease(lock());
}

void mark_held(Counter *counter) {
    pg_atomic_fetch_or_u32(&counter->state, kHeld);
}

bool may_be_held(const CounterRef &ref) {
    const bool held = pg_atomic_read_u32(&ref.counter->state) & kHeld;
    pg_read_barrier();
    return held || pg_atomic_read_u64(&ref.counter->incarnation) != ref.incarnation;
}

CounterStats counters_stats() {
    CounterStats stats{};
    LWLockAcquire(lock(), LW_EXCLUSIVE);
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, table);
    while (auto *counter = static_cast<Counter *>(hash_seq_search(&scan))) {
        stats.in_use++;
        stats.pinned += (pg_atomic_read_u32(&counter->state) & kPins) != 0;
    }
    LWLockRelease(lock());
    stats.capacity = settings::max_counters;
    stats.loads = static_cast<int64>(pg_atomic_read_u64(&shared->loads));
    stats.evictions = static_cast<int64>(pg_atomic_read_u64(&shared->evictions));
    stats.refused = static_cast<int64>(pg_atomic_read_u64(&shared->refused));
    return stats;
}

void counters_reset_stats() {
    pg_atomic_write_u64(&shared->loads, 0);
    pg_atomic_write_u64(&shared->evictions, 0);
    pg_atomic_write_u64(&shared->refused, 0);
}

int64 counter_used(Counter *counter) {
    return static_cast<int64>(pg_atomic_read_u64(&counter->used));
}

void add_to_counter(Counter *counter, int64 amount) {
    pg_atomic_fetch_add_u64(&counter->used, amount);
}

Reserve reserve_on_counter(Counter *counter, int64 amount, int64 limit, int64 *used) {
    uint64 before = pg_atomic_read_u64(&counter->used);
    for (;;) {
        int64 after;
        *used = static_cast<int64>(before);
        if (__builtin_add_overflow(static_cast<int64>(before), amount, &after))
            return Reserve::overflow;
        if (amount > 0 && after > limit)
            return Reserve::over_limit;
        if (pg_atomic_compare_exchange_u64(&counter->used, &before, static_cast<uint64>(after))) {
            *used = after;
            return Reserve::done;
        }
    }
}

}  // namespace pg_billing
