// Recording usage, whoever asks for it: decides, reserves on the quota counters, writes the event.
//
// Invariants:
//   - The reservation comes first and the write second, both in the caller's transaction: a rollback gives the
//     reservation back with the rows.
//   - A denied call writes nothing. A known idempotency key changes nothing and is never denied, for what it stands for
//     has been counted.
#pragma once

#include "extension/call.hpp"
#include "extension/decision.hpp"

namespace pg_billing {

// Decides on usage that is asked for (enforced) or has happened, and records it. The cached terms lose their validity
// when something is written, for that may run triggers which use the cache: `terms` is a copy made before.
Decision record(const Call &call, Terms &cached, int64 units, bool enforced, Terms &terms);

}  // namespace pg_billing
