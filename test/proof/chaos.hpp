// What befalls the server and the clients' backends. Signals are sent as the user who owns the server.
#pragma once

#include <random>

#include "test/proof/connection.hpp"

namespace pg_billing::proof {

// Terminates a random client's backend, again and again, until the proof is over.
void terminate_clients(Run &run);

// Kills the server and returns when it takes connections again: in turn by kill -9 of a random backend, after which the
// server restarts all by itself, and by an immediate stop and a start with plenty of counters or few.
void kill_server(Run &run, Connection &db, std::mt19937_64 &random);

}  // namespace pg_billing::proof
