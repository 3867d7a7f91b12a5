// The SQLSTATEs of class UB that C++ raises; the SQL functions raise the others (see the table in docs/errors.md).
#pragma once

#include "extension/pg.hpp"

namespace pg_billing::sqlstate {

inline constexpr int kQuotaExceeded = MAKE_SQLSTATE('U', 'B', '0', '0', '1');
inline constexpr int kUnknownTenant = MAKE_SQLSTATE('U', 'B', '0', '1', '0');
inline constexpr int kUnknownMetric = MAKE_SQLSTATE('U', 'B', '0', '1', '1');
inline constexpr int kInvalidQuantity = MAKE_SQLSTATE('U', 'B', '0', '2', '0');
inline constexpr int kQuantityOutOfRange = MAKE_SQLSTATE('U', 'B', '0', '2', '1');
inline constexpr int kOutsideWindow = MAKE_SQLSTATE('U', 'B', '0', '2', '2');
inline constexpr int kInvalidIdempotencyKey = MAKE_SQLSTATE('U', 'B', '0', '2', '3');
inline constexpr int kInvalidTenantId = MAKE_SQLSTATE('U', 'B', '0', '2', '4');
inline constexpr int kInvalidProperties = MAKE_SQLSTATE('U', 'B', '0', '2', '5');
inline constexpr int kMalformedEvent = MAKE_SQLSTATE('U', 'B', '0', '2', '6');
inline constexpr int kNotConsumable = MAKE_SQLSTATE('U', 'B', '0', '2', '7');
inline constexpr int kUnknownReservation = MAKE_SQLSTATE('U', 'B', '0', '2', '8');
inline constexpr int kReservationEnded = MAKE_SQLSTATE('U', 'B', '0', '2', '9');
inline constexpr int kInvalidArgument = MAKE_SQLSTATE('U', 'B', '0', '3', '2');
inline constexpr int kUnknownKey = MAKE_SQLSTATE('U', 'B', '0', '3', '3');
inline constexpr int kEventNotKept = MAKE_SQLSTATE('U', 'B', '0', '3', '4');
inline constexpr int kBelowZero = MAKE_SQLSTATE('U', 'B', '0', '3', '5');
inline constexpr int kNotPermitted = MAKE_SQLSTATE('U', 'B', '0', '4', '0');
inline constexpr int kNotInstalled = MAKE_SQLSTATE('U', 'B', '0', '5', '0');
inline constexpr int kNoCounter = MAKE_SQLSTATE('U', 'B', '0', '5', '1');
inline constexpr int kPrepareWithUsage = MAKE_SQLSTATE('U', 'B', '0', '5', '2');
inline constexpr int kDirectWrite = MAKE_SQLSTATE('U', 'B', '0', '5', '3');

}  // namespace pg_billing::sqlstate
