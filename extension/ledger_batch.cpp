#include "extension/ledger_batch.hpp"

#include <algorithm>
#include <cstring>

#include "extension/statement.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "utils/array.h"
}

namespace pg_billing::ledger {
namespace {

// unnest() with several arguments is always that of pg_catalog.
constexpr Oid kKeysTypes[] = {TEXTARRAYOID, UUIDARRAYOID, TIMESTAMPTZOID};
Statement insert_keys(
    "INSERT INTO billing.usage_event_keys (tenant_id, key, tick)"
    " SELECT k.tenant_id, k.key, $3 FROM unnest($1, $2) k (tenant_id, key)"
    " ON CONFLICT DO NOTHING RETURNING tenant_id, key",
    kKeysTypes);

constexpr Oid kDeleteKeyTypes[] = {TEXTOID, UUIDOID};
Statement delete_key("DELETE FROM billing.usage_event_keys WHERE tenant_id = $1 AND key = $2",
                     kDeleteKeyTypes);

constexpr Oid kEventsTypes[] = {TIMESTAMPTZOID,      TIMESTAMPTZARRAYOID, TIMESTAMPTZOID,
                                TIMESTAMPTZARRAYOID, TEXTARRAYOID,        TEXTARRAYOID,
                                NUMERICARRAYOID,     TEXTARRAYOID,        JSONBARRAYOID};
Statement insert_events(
    "INSERT INTO billing.usage_events (tick, occurred_at, recorded_at, period_start, tenant_id, metric, "
    "quantity, idempotency_key, properties)"
    " SELECT $1, e.occurred_at, $3, e.period_start, e.tenant_id, e.metric, e.quantity, e.key, e.properties"
    "   FROM unnest($2, $4, $5, $6, $7, $8, $9)"
    "        e (occurred_at, period_start, tenant_id, metric, quantity, key, properties)",
    kEventsTypes);

struct ElementType {
    Oid type;
    int length;
    bool by_value;
    char alignment;
};
constexpr ElementType kText{TEXTOID, -1, false, TYPALIGN_INT};
constexpr ElementType kNumeric{NUMERICOID, -1, false, TYPALIGN_INT};
constexpr ElementType kJsonb{JSONBOID, -1, false, TYPALIGN_INT};
constexpr ElementType kUuid{UUIDOID, UUID_LEN, false, TYPALIGN_CHAR};
constexpr ElementType kTime{TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE};

// Returns an array of what `element` says of each number from 0; a varlena of 0 is null.
template <class F>
Datum make_array(int count, const ElementType &type, F &&element) {
    auto *values = static_cast<Datum *>(palloc(count * sizeof(Datum)));
    auto *nulls = static_cast<bool *>(palloc(count * sizeof(bool)));
    for (int i = 0; i < count; i++) {
        values[i] = element(i);
        nulls[i] = type.length < 0 && !values[i];
    }
    int lower_bound = 1;
    ArrayType *array = construct_md_array(values, nulls, 1, &count, &lower_bound, type.type, type.length,
                                          type.by_value, type.alignment);
    pfree(values);
    pfree(nulls);
    return PointerGetDatum(array);
}

}  // namespace

int compare(const Key &one, const Key &other) {
    const int tenants = text_view(one.tenant).compare(text_view(other.tenant));
    return tenants ? tenants : memcmp(one.key.data, other.key.data, UUID_LEN);
}

void write_keys(Key *keys, int count, TimestampTz tick) {
    if (count == 0)
        return;
    const Datum values[] = {make_array(count, kText, [&](int i) { return keys[i].tenant; }),
                            make_array(count, kUuid, [&](int i) { return UUIDPGetDatum(&keys[i].key); }),
                            TimestampTzGetDatum(tick)};
    const Identity saved = enter_as_owner();
    const uint64 written = insert_keys.write(values, nullptr);
    for (int i = 0; i < count; i++)
        keys[i].fresh = false;
    for (uint64 row = 0; row < written; row++) {
        bool is_null;
        const Key returned{column(1, &is_null, row), *DatumGetUUIDP(column(2, &is_null, row)), true};
        Key *found = std::lower_bound(keys, keys + count, returned,
                                      [](const Key &a, const Key &b) { return compare(a, b) < 0; });
        found->fresh = true;
    }
    leave(saved);
}

void forget_key(const Key &key) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {key.tenant, UUIDPGetDatum(&key.key)};
    delete_key.write_latest(values);
    leave(saved);
}

void write_events(const Event *events, int count) {
    if (count == 0)
        return;
    const auto times = [&](TimestampTz Event::*time) {
        return make_array(count, kTime, [&](int i) { return TimestampTzGetDatum(events[i].*time); });
    };
    const auto varlenas = [&](const ElementType &type, Datum Event::*value) {
        return make_array(count, type, [&](int i) { return events[i].*value; });
    };
    const Datum values[] = {TimestampTzGetDatum(events[0].tick),
                            times(&Event::occurred_at),
                            TimestampTzGetDatum(events[0].recorded_at),
                            times(&Event::period_start),
                            varlenas(kText, &Event::tenant),
                            varlenas(kText, &Event::metric),
                            varlenas(kNumeric, &Event::quantity),
                            varlenas(kText, &Event::key),
                            varlenas(kJsonb, &Event::properties)};
    const Identity saved = enter_as_owner();
    insert_events.write(values, nullptr);
    leave(saved);
}

}  // namespace pg_billing::ledger
