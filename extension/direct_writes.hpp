// Refuses statements that write usage past the functions: counters in shared memory would not know of it.
//
// Invariants:
//   - A statement may write these tables, or their partitions, only with rights that a function lends: those of the
//     ledger, or of a SECURITY DEFINER function. Nothing is looked up for such a statement, so the hot path does not pay.
//   - What guards a table is that its row-level security is enabled. pg_restore does that after the data is there, so a
//     restore is not refused. After DROP EXTENSION nothing is.
//   - session_replication_role = replica lets everything pass, as with triggers.
#pragma once

namespace pg_billing {

// Sets the hooks; called once, while preloading.
void refuse_direct_writes();

}  // namespace pg_billing
