// Reservations: quantity held before the work, settled after.
//
// Invariants:
//   - What is held counts on every counter as usage does, so it is part of every cap. The row in billing.reservations and
//     the counters change in one transaction.
//   - A reservation is settled into one usage event, in the period it was made in, whose idempotency key is the
//     reservation's own, or its id: also where the same usage is recorded another way it counts once.
//   - A reservation that has expired holds its quantity until somebody marks it so: the worker, or whoever finds it in
//     the way. What that frees is usable at once by who frees it, as everything a transaction frees.
#pragma once

#include "extension/call.hpp"

namespace pg_billing {

// Frees what reservations of the call's tenant and metric hold that have expired; false if there was none. It may write.
bool give_back_expired(const Call &call);

}  // namespace pg_billing
