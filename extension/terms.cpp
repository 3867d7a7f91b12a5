#include "extension/terms.hpp"

#include <cstring>

#include "extension/guard.hpp"
#include "extension/ledger.hpp"

extern "C" {
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/array.h"
#include "utils/hsearch.h"
}

namespace pg_billing::terms {
namespace {

constexpr int kTenantGenerations = 1024;  // tenants share them; a change costs the others one more look
constexpr long kMaxCached = 8192;         // entries per backend, then it starts anew

struct Shared {
    pg_atomic_uint64 catalog;  // plans and metrics: concerns every tenant
    pg_atomic_uint64 tenants[kTenantGenerations];
};

// Zero-padded, hashed and compared as bytes.
struct Key {
    char metric[kMaxMetricBytes];
    char tenant[kMaxTenantBytes];
};

struct Cached {
    Key key;
    Oid relation;
    uint32 tenant_slot;
    uint64 catalog, tenant;  // generations these terms were read in
    Terms terms;
};

Shared *shared;
HTAB *cache;
Cached *latest;  // the one used last: whoever asks for one tenant again and again needs no lookup

// What this transaction changes, for its commit to announce.
struct Pending {
    bool any, catalog;
    bool tenants[kTenantGenerations];
} pending;

uint32 slot_of(std::string_view tenant) {
    return hash_bytes(reinterpret_cast<const unsigned char *>(tenant.data()),
                      static_cast<int>(tenant.size())) %
           kTenantGenerations;
}

Key make_key(std::string_view tenant, std::string_view metric) {
    Key key;
    memset(static_cast<void *>(&key), 0, sizeof(key));
    memcpy(key.tenant, tenant.data(), tenant.size());
    memcpy(key.metric, metric.data(), metric.size());
    return key;
}

bool same_text(const char *stored, int capacity, std::string_view text) {
    return memcmp(stored, text.data(), text.size()) == 0 &&
           (static_cast<int>(text.size()) == capacity || stored[text.size()] == '\0');
}

bool usable(const Cached &entry, Oid relation, TimestampTz at) {
    return entry.relation == relation && entry.terms.valid_from <= at && at < entry.terms.valid_until &&
           entry.catalog == pg_atomic_read_u64(&shared->catalog) &&
           entry.tenant == pg_atomic_read_u64(&shared->tenants[entry.tenant_slot]);
}

void announce() {
    if (pending.catalog)
        pg_atomic_fetch_add_u64(&shared->catalog, 1);
    for (int slot = 0; slot < kTenantGenerations; slot++)
        if (pending.tenants[slot])
            pg_atomic_fetch_add_u64(&shared->tenants[slot], 1);
}

// A subtransaction that is rolled back leaves its change pending: that costs a look too many, and misses none.
extern "C" void announce_at_commit(XactEvent event, void *) {
    if (!pending.any)
        return;
    if (event == XACT_EVENT_COMMIT)
        announce();
    if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
        pending = {};
    else if (event == XACT_EVENT_PRE_PREPARE)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("cannot prepare a transaction that has changed quotas"),
                        errhint("Change plans, subscriptions and quotas outside two-phase commit.")));
}

Terms read(std::string_view tenant, std::string_view metric, TimestampTz at) {
    Terms terms = ledger::read_terms(tenant, metric, at);
    if (terms.metric_known)
        terms.stats = stats::of_metric(metric);
    return terms;
}

Cached *cached_entry(const Key &key) {
    if (cache && hash_get_num_entries(cache) >= kMaxCached) {
        hash_destroy(cache);
        cache = nullptr;
    }
    if (!cache) {
        HASHCTL control{};
        control.keysize = sizeof(Key);
        control.entrysize = sizeof(Cached);
        control.hcxt = TopMemoryContext;
        latest = nullptr;
        cache = hash_create("pg_billing quota terms", 256, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    }
    bool found;
    auto *entry = static_cast<Cached *>(hash_search(cache, &key, HASH_ENTER, &found));
    if (!found)
        entry->relation = InvalidOid;
    return entry;
}

}  // namespace

void shmem_request() {
    RequestAddinShmemSpace(sizeof(Shared));
}

void shmem_startup() {
    bool found;
    shared = static_cast<Shared *>(ShmemInitStruct("pg_billing quota generations", sizeof(Shared), &found));
    if (found)
        return;
    pg_atomic_init_u64(&shared->catalog, 1);
    for (pg_atomic_uint64 &tenant : shared->tenants)
        pg_atomic_init_u64(&tenant, 1);
}

void init() {
    RegisterXactCallback(announce_at_commit, nullptr);
}

Terms *in_force(Oid relation, std::string_view tenant, std::string_view metric, TimestampTz at) {
    static Terms uncached;
    if (pending.any || RecoveryInProgress()) {
        uncached = read(tenant, metric, at);
        return &uncached;
    }
    if (latest && same_text(latest->key.tenant, kMaxTenantBytes, tenant) &&
        same_text(latest->key.metric, kMaxMetricBytes, metric) && usable(*latest, relation, at))
        return &latest->terms;
    const Key key = make_key(tenant, metric);
    Cached *entry = cached_entry(key);
    if (usable(*entry, relation, at)) {
        latest = entry;
        return &entry->terms;
    }
    const uint32 slot = slot_of(tenant);
    const uint64 catalog_generation = pg_atomic_read_u64(&shared->catalog);
    const uint64 tenant_generation = pg_atomic_read_u64(&shared->tenants[slot]);
    pg_read_barrier();
    uncached = read(tenant, metric, at);
    if (!uncached.tenant_known || !uncached.metric_known)
        return &uncached;
    entry->relation = relation;
    entry->tenant_slot = slot;
    entry->catalog = catalog_generation;
    entry->tenant = tenant_generation;
    entry->terms = uncached;
    latest = entry;
    return &entry->terms;
}

}  // namespace pg_billing::terms

using namespace pg_billing;

// billing._quotas_changed(tenant text) has everybody look at the tenant's quota terms again once this transaction has
// committed; null: at those of all tenants.
PG_BILLING_FUNCTION(pg_billing_quotas_changed) {
    return pg_entry([&]() -> Datum {
        terms::pending.any = true;
        if (PG_ARGISNULL(0)) {
            terms::pending.catalog = true;
        } else {
            const text *tenant = pg_call([&] { return PG_GETARG_TEXT_PP(0); });
            terms::pending.tenants[terms::slot_of({VARDATA_ANY(tenant), VARSIZE_ANY_EXHDR(tenant)})] = true;
        }
        PG_RETURN_VOID();
    });
}

// billing._quota_generations() returns the generation of all tenants' quota terms, and then that of each group of tenants.
PG_BILLING_FUNCTION(pg_billing_quota_generations) {
    return pg_entry([&]() -> Datum {
        return pg_call([&] {
            Datum numbers[1 + terms::kTenantGenerations];
            numbers[0] = Int64GetDatum(pg_atomic_read_u64(&terms::shared->catalog));
            for (int group = 0; group < terms::kTenantGenerations; group++)
                numbers[1 + group] = Int64GetDatum(pg_atomic_read_u64(&terms::shared->tenants[group]));
            PG_RETURN_ARRAYTYPE_P(construct_array(numbers, 1 + terms::kTenantGenerations, INT8OID,
                                                  sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
        });
    });
}

// billing._quota_group(tenant text) returns the index of the tenant's group in that array, as SQL counts.
PG_BILLING_FUNCTION(pg_billing_quota_group) {
    return pg_entry([&]() -> Datum {
        const text *tenant = pg_call([&] { return PG_GETARG_TEXT_PP(0); });
        const std::string_view name(VARDATA_ANY(tenant), VARSIZE_ANY_EXHDR(tenant));
        PG_RETURN_INT32(2 + static_cast<int>(terms::slot_of(name)));
    });
}
