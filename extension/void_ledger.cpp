#include "extension/void_ledger.hpp"

#include "extension/event_key.hpp"
#include "extension/statement.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "utils/datum.h"
#include "utils/numeric.h"
}

namespace pg_billing::ledger {
namespace {

constexpr Oid kKeyTypes[] = {TEXTOID, UUIDOID};
Statement lock_by_key(
    "SELECT k.tick, k.voided_at IS NOT NULL FROM billing.usage_event_keys k"
    " WHERE k.tenant_id = $1 AND k.key = $2 FOR UPDATE",
    kKeyTypes);

constexpr Oid kEventTypes[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID};
Statement select_event(
    "SELECT e.metric, e.quantity, e.properties, e.occurred_at, e.period_start FROM billing.usage_events e"
    " WHERE e.tenant_id = $1 AND e.idempotency_key = $2 AND e.tick = $3 AND e.void_reason IS NULL",
    kEventTypes);

constexpr Oid kMarkTypes[] = {TEXTOID, UUIDOID, TIMESTAMPTZOID};
Statement mark_voided(
    "UPDATE billing.usage_event_keys SET voided_at = $3"
    " WHERE tenant_id = $1 AND key = $2",
    kMarkTypes);

pg_uuid_t stored(Datum key) {
    return event_key(text_view(key));
}

}  // namespace

KeyState lock_key(Datum tenant, Datum key, TimestampTz *tick) {
    const Identity saved = enter_as_owner();
    const pg_uuid_t stored_key = stored(key);
    const Datum values[] = {tenant, UUIDPGetDatum(&stored_key)};
    KeyState state = KeyState::unknown;
    if (lock_by_key.write_latest(values) > 0) {
        bool is_null;
        *tick = DatumGetTimestampTz(column(1, &is_null));
        state = DatumGetBool(column(2, &is_null)) ? KeyState::voided : KeyState::counted;
    }
    leave(saved);
    return state;
}

bool find_event(Datum tenant, Datum key, TimestampTz tick, Event *event) {
    const MemoryContext memory = CurrentMemoryContext;
    const Identity saved = enter_as_owner();
    const Datum values[] = {tenant, key, TimestampTzGetDatum(tick)};
    const bool found = select_event.read_latest(values) > 0;
    if (found) {
        bool is_null;
        *event = {};
        event->occurred_at = DatumGetTimestampTz(column(4, &is_null));
        event->period_start = DatumGetTimestampTz(column(5, &is_null));
        const Datum properties = column(3, &is_null);
        const MemoryContext former = MemoryContextSwitchTo(memory);
        if (!is_null)
            event->properties = PointerGetDatum(PG_DETOAST_DATUM_COPY(properties));
        event->metric = datumCopy(column(1, &is_null), false, -1);
        event->quantity = NumericGetDatum(DatumGetNumericCopy(column(2, &is_null)));
        MemoryContextSwitchTo(former);
    }
    leave(saved);
    return found;
}

void write_void(const Event &event) {
    write_events(&event, 1);
    const Identity saved = enter_as_owner();
    const pg_uuid_t stored_key = stored(event.key);
    const Datum key[] = {event.tenant, UUIDPGetDatum(&stored_key), TimestampTzGetDatum(event.recorded_at)};
    if (mark_voided.write_latest(key) != 1)
        elog(ERROR, "the idempotency key is gone");
    leave(saved);
}

}  // namespace pg_billing::ledger
