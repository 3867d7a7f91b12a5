#include "extension/ledger_write.hpp"

#include <algorithm>
#include <cstring>

#include "extension/event_key.hpp"
#include "extension/statement.hpp"
#include "extension/usage_tables.hpp"

extern "C" {
#include "catalog/pg_type.h"
}

namespace pg_billing::ledger {
namespace {

constexpr Oid kDeleteKeyTypes[] = {TEXTOID, UUIDOID};
Statement delete_key("DELETE FROM billing.usage_event_keys WHERE tenant_id = $1 AND key = $2",
                     kDeleteKeyTypes);

template <class T>
T *allocate(int count) {
    return static_cast<T *>(MemoryContextAllocHuge(CurrentMemoryContext, count * sizeof(T)));
}

Row row_of(const Key &key, TimestampTz tick) {
    Row row{};
    row.values[key_column::tenant] = key.tenant;
    row.values[key_column::key] = UUIDPGetDatum(&key.key);
    row.values[key_column::tick] = TimestampTzGetDatum(tick);
    return row;
}

Row row_of(const Event &event) {
    Row row{};
    row.values[event_column::tick] = TimestampTzGetDatum(event.tick);
    row.values[event_column::occurred_at] = TimestampTzGetDatum(event.occurred_at);
    row.values[event_column::recorded_at] = TimestampTzGetDatum(event.recorded_at);
    row.values[event_column::period_start] = TimestampTzGetDatum(event.period_start);
    row.values[event_column::tenant] = event.tenant;
    row.values[event_column::metric] = event.metric;
    row.values[event_column::quantity] = event.quantity;
    row.values[event_column::key] = event.key;
    row.nulls[event_column::key] = !event.key;
    row.values[event_column::properties] = event.properties;
    row.nulls[event_column::properties] = !event.properties;
    row.values[event_column::void_reason] = event.void_reason;
    row.nulls[event_column::void_reason] = !event.void_reason;
    return row;
}

}  // namespace

bool write_event(const Event &event) {
    UsageWriter writer;
    bool fresh = true;
    if (event.key) {
        writer.open(UsageTable::keys);
        const Key key{event.tenant, event_key(text_view(event.key)), false};
        const Row row = row_of(key, event.tick);
        writer.add_unless_known(&row, 1, &fresh);
    }
    if (fresh) {
        writer.open(UsageTable::events);
        const Row row = row_of(event);
        writer.add(&row, 1);
    }
    writer.finish();
    return fresh;
}

bool key_known(Datum tenant, Datum key) {
    UsageWriter writer;
    writer.open(UsageTable::keys);
    const Key asked{tenant, event_key(text_view(key)), false};
    const bool known = writer.knows(row_of(asked, 0));
    writer.finish();
    return known;
}

int compare(const Key &one, const Key &other) {
    const int tenants = text_view(one.tenant).compare(text_view(other.tenant));
    return tenants ? tenants : memcmp(one.key.data, other.key.data, UUID_LEN);
}

// Partition by partition, each opened once: that is an order, too.
void write_keys(Key *keys, int count, TimestampTz tick) {
    if (count == 0)
        return;
    struct Place {
        int partition, key;
    };
    UsageWriter writer;
    writer.open(UsageTable::keys);
    auto *places = allocate<Place>(count);
    for (int i = 0; i < count; i++)
        places[i] = {writer.partition_of(row_of(keys[i], tick)), i};
    std::sort(places, places + count, [](const Place &a, const Place &b) {
        return a.partition != b.partition ? a.partition < b.partition : a.key < b.key;
    });
    auto *rows = allocate<Row>(count);
    auto *added = allocate<bool>(count);
    for (int i = 0; i < count; i++)
        rows[i] = row_of(keys[places[i].key], tick);
    for (int first = 0, end = 0; first < count; first = end) {
        while (end < count && places[end].partition == places[first].partition)
            end++;
        writer.add_unless_known(rows + first, end - first, added + first);
    }
    writer.finish();
    for (int i = 0; i < count; i++)
        keys[places[i].key].fresh = added[i];
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
    auto *rows = allocate<Row>(count);
    for (int i = 0; i < count; i++)
        rows[i] = row_of(events[i]);
    UsageWriter writer;
    writer.open(UsageTable::events);
    writer.add(rows, count);
    writer.finish();
}

}  // namespace pg_billing::ledger
