// The books of a proof: its schema, what must hold whenever nothing is in flight, and what must hold in the end.
#pragma once

#include <vector>

#include "test/proof/connection.hpp"
#include "test/proof/world.hpp"

namespace pg_billing::proof {

// Makes the tenants with their quotas, and schema proof.
void set_up(Run &run, Connection &db);

// With nothing in flight, every counter is what its tenant has committed, and none is pinned.
void compare_counters(Run &run, Connection &db);

// Compares what the clients know with what the tables hold, event by event and in total.
void verify(Run &run, Connection &db, const std::vector<Event> &ledger, const std::vector<Event> &items);

}  // namespace pg_billing::proof
