// The durable side of reservations: billing.reservations.
//
// Invariants:
//   - A reservation is held until it is settled or released or has expired, and ends once: whoever ends it has its row
//     locked.
//   - What a counter holds of it changes in the transaction that changes its state.
//
// Plain calls into PostgreSQL, to be used inside pg_call(): see statement.hpp. Values returned live in the memory context
// of the caller.
#pragma once

#include <string_view>

#include "extension/terms.hpp"

extern "C" {
#include "utils/numeric.h"
#include "utils/uuid.h"
}

namespace pg_billing::ledger {

// As SQL names them.
enum class ReservationState : int8 { held, settled, released, expired };
inline constexpr const char *kReservationStates[] = {"held", "settled", "released", "expired"};

struct Reservation {
    pg_uuid_t id;
    Datum tenant, metric;
    Numeric quantity;  // what is held, as it counts
    ReservationState state;
    TimestampTz period_start, reserved_at, expires_at;
    Datum key;  // 0 if none
};

// Writes a reservation; false if its key is known (nothing is written then).
bool write_reservation(const Reservation &reservation);

// Finds the reservation that was made with a key, as of now; false if there is none.
bool find_reservation(Datum tenant, Datum key, pg_uuid_t *id);

// Locks a reservation, of that tenant unless it is null, and reads it; false if there is none.
bool lock_reservation(const pg_uuid_t &id, const char *tenant, Reservation *reservation);

// Ends a reservation whose row is locked; `settled`: what was used, null if it was not settled.
void end_reservation(const Reservation &reservation, ReservationState state, Numeric settled);

// Locks reservations that are held but have expired, of a tenant and metric or, if these are 0, of any; not those that
// somebody else has locked, and at most `limit`. Returns them, and how many.
Reservation *lock_expired(Datum tenant, Datum metric, TimestampTz now, int limit, uint64 *count);

// Deletes reservations that have ended and would have expired before that time, at most `limit`; returns how many.
uint64 forget_reservations(TimestampTz before, int limit);

// Returns what reservations that have expired still hold of a limit, in units of the scale.
int64 expired_but_held(std::string_view tenant, std::string_view metric, int scale, const Limit &limit,
                       TimestampTz now);

}  // namespace pg_billing::ledger
