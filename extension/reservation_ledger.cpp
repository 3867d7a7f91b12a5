#include "extension/reservation_ledger.hpp"

#include <cstring>

#include "extension/quantity.hpp"
#include "extension/statement.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "utils/datum.h"
}

namespace pg_billing::ledger {
namespace {

constexpr Oid kInsertTypes[] = {TEXTOID,        UUIDOID,        TEXTOID,        NUMERICOID,
                                TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID};
Statement insert_reservation(
    "INSERT INTO billing.reservations (tenant_id, id, metric, quantity, state, period_start, reserved_at, "
    "expires_at, idempotency_key)"
    " VALUES ($1, $2, $3, $4, 'held', $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    kInsertTypes);

constexpr Oid kKeyTypes[] = {TEXTOID, TEXTOID};
Statement select_by_key(
    "SELECT r.id FROM billing.reservations r WHERE r.tenant_id = $1 AND r.idempotency_key = $2", kKeyTypes);

#define RESERVATION_COLUMNS                                                                           \
    " r.id, r.tenant_id, r.metric, r.quantity, r.state, r.period_start, r.reserved_at, r.expires_at," \
    " r.idempotency_key"

constexpr Oid kLockTypes[] = {UUIDOID, TEXTOID};
Statement lock_by_id("SELECT" RESERVATION_COLUMNS
                     " FROM billing.reservations r WHERE r.id = $1 AND ($2 IS NULL OR r.tenant_id = $2)"
                     "   FOR UPDATE",
                     kLockTypes);

constexpr Oid kEndTypes[] = {TEXTOID, UUIDOID, TEXTOID, NUMERICOID};
Statement update_state(
    "UPDATE billing.reservations SET state = $3, settled_quantity = $4"
    " WHERE tenant_id = $1 AND id = $2",
    kEndTypes);

constexpr Oid kExpireAnyTypes[] = {TIMESTAMPTZOID, INT4OID};
Statement lock_expired_any("SELECT" RESERVATION_COLUMNS
                           " FROM billing.reservations r WHERE r.state = 'held' AND r.expires_at <= $1"
                           " ORDER BY r.expires_at LIMIT $2 FOR UPDATE SKIP LOCKED",
                           kExpireAnyTypes);

constexpr Oid kExpireOfTypes[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID, INT4OID};
Statement lock_expired_of("SELECT" RESERVATION_COLUMNS
                          " FROM billing.reservations r WHERE r.tenant_id = $1 AND r.metric = $2"
                          "   AND r.state = 'held' AND r.expires_at <= $3 LIMIT $4 FOR UPDATE SKIP LOCKED",
                          kExpireOfTypes);

constexpr Oid kForgetTypes[] = {TIMESTAMPTZOID, INT4OID};
Statement delete_ended(
    "WITH old AS (SELECT r.tenant_id, r.id FROM billing.reservations r"
    "              WHERE r.state <> 'held' AND r.expires_at < $1"
    "              ORDER BY r.expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
    " DELETE FROM billing.reservations r USING old WHERE r.tenant_id = old.tenant_id AND r.id = old.id",
    kForgetTypes);

constexpr Oid kInVainTypes[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, BOOLOID};
Statement select_in_vain(
    "SELECT coalesce(sum(r.quantity), 0) FROM billing.reservations r"
    " WHERE r.tenant_id = $1 AND r.metric = $2 AND r.state = 'held' AND r.expires_at <= $3"
    "   AND CASE WHEN $6 THEN r.period_start = $4 ELSE r.reserved_at >= $4 AND r.reserved_at < $5 END",
    kInVainTypes);

Datum text_datum(std::string_view text) {
    return PointerGetDatum(cstring_to_text_with_len(text.data(), static_cast<int>(text.size())));
}

ReservationState state_column(int number, uint64 row) {
    bool is_null;
    const char *name = TextDatumGetCString(column(number, &is_null, row));
    int state = 0;
    while (strcmp(name, kReservationStates[state]) != 0)
        state++;
    return static_cast<ReservationState>(state);
}

TimestampTz time_column(int number, uint64 row) {
    bool is_null;
    return DatumGetTimestampTz(column(number, &is_null, row));
}

// Reads a row of the latest result; its values are copied into `memory`, for SPI's end with leave().
Reservation read_row(uint64 row, MemoryContext memory) {
    bool is_null;
    Reservation r{};
    r.id = *DatumGetUUIDP(column(1, &is_null, row));
    r.state = state_column(5, row);
    r.period_start = time_column(6, row);
    r.reserved_at = time_column(7, row);
    r.expires_at = time_column(8, row);
    const MemoryContext former = MemoryContextSwitchTo(memory);
    r.tenant = datumCopy(column(2, &is_null, row), false, -1);
    r.metric = datumCopy(column(3, &is_null, row), false, -1);
    r.quantity = DatumGetNumericCopy(column(4, &is_null, row));
    const Datum key = column(9, &is_null, row);
    if (!is_null)
        r.key = datumCopy(key, false, -1);
    MemoryContextSwitchTo(former);
    return r;
}

}  // namespace

bool write_reservation(const Reservation &r) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {r.tenant,
                            UUIDPGetDatum(&r.id),
                            r.metric,
                            NumericGetDatum(r.quantity),
                            TimestampTzGetDatum(r.period_start),
                            TimestampTzGetDatum(r.reserved_at),
                            TimestampTzGetDatum(r.expires_at),
                            r.key};
    const char nulls[] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', r.key ? ' ' : 'n'};
    const bool written = insert_reservation.write(values, nulls) > 0;
    leave(saved);
    return written;
}

bool find_reservation(Datum tenant, Datum key, pg_uuid_t *id) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {tenant, key};
    const bool found = select_by_key.read_latest(values) > 0;
    bool is_null;
    if (found)
        *id = *DatumGetUUIDP(column(1, &is_null));
    leave(saved);
    return found;
}

bool lock_reservation(const pg_uuid_t &id, const char *tenant, Reservation *reservation) {
    const MemoryContext memory = CurrentMemoryContext;
    const Datum values[] = {UUIDPGetDatum(&id), tenant ? text_datum(tenant) : 0};
    const char nulls[] = {' ', tenant ? ' ' : 'n'};
    const Identity saved = enter_as_owner();
    const bool found = lock_by_id.write_latest(values, nulls) > 0;
    if (found)
        *reservation = read_row(0, memory);
    leave(saved);
    return found;
}

void end_reservation(const Reservation &r, ReservationState state, Numeric settled) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {r.tenant, UUIDPGetDatum(&r.id),
                            text_datum(kReservationStates[static_cast<int>(state)]),
                            NumericGetDatum(settled)};
    const char nulls[] = {' ', ' ', ' ', settled ? ' ' : 'n'};
    if (update_state.write_latest(values, nulls) != 1)
        elog(ERROR, "the reservation is gone");
    leave(saved);
}

Reservation *lock_expired(Datum tenant, Datum metric, TimestampTz now, int limit, uint64 *count) {
    const MemoryContext memory = CurrentMemoryContext;
    const Identity saved = enter_as_owner();
    if (tenant) {
        const Datum values[] = {tenant, metric, TimestampTzGetDatum(now), Int32GetDatum(limit)};
        *count = lock_expired_of.write_latest(values);
    } else {
        const Datum values[] = {TimestampTzGetDatum(now), Int32GetDatum(limit)};
        *count = lock_expired_any.write_latest(values);
    }
    auto *expired =
        static_cast<Reservation *>(MemoryContextAlloc(memory, (*count + 1) * sizeof(Reservation)));
    for (uint64 row = 0; row < *count; row++)
        expired[row] = read_row(row, memory);
    leave(saved);
    return expired;
}

uint64 forget_reservations(TimestampTz before, int limit) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {TimestampTzGetDatum(before), Int32GetDatum(limit)};
    const uint64 count = delete_ended.write_latest(values);
    leave(saved);
    return count;
}

int64 expired_but_held(std::string_view tenant, std::string_view metric, int scale, const Limit &limit,
                       TimestampTz now) {
    const Datum values[] = {text_datum(tenant),
                            text_datum(metric),
                            TimestampTzGetDatum(now),
                            TimestampTzGetDatum(limit.start),
                            TimestampTzGetDatum(limit.end),
                            BoolGetDatum(limit.window == Window::period)};
    const Identity saved = enter_as_owner();
    if (select_in_vain.read_latest(values) != 1)
        elog(ERROR, "a sum is not one row");
    bool is_null;
    const int64 held = total_to_units(DatumGetNumeric(column(1, &is_null)), scale);
    leave(saved);
    return held;
}

}  // namespace pg_billing::ledger
