// One client: an application's connection that runs random transactions, and knows the fate of every key it used.
//
// A transaction is one call, a batch, or a block of calls under some isolation level with savepoints and exception
// blocks, committed or rolled back. Where the connection breaks while the fate of keys is open, the client sends the same
// keys again until it is answered, as applications do; what it is answered must fit the one transaction they were in.
#pragma once

#include <map>
#include <random>
#include <vector>

#include "test/proof/connection.hpp"
#include "test/proof/world.hpp"

namespace pg_billing::proof {

class Client {
  public:
    Client(Run &run, unsigned number);

    // Runs transactions until the proof is over.
    void work();

    // Every event this client ever sent, with its fate.
    const std::vector<Event> &ledger() const { return ledger_; }

  private:
    unsigned below(unsigned bound) { return static_cast<unsigned>(random_() % bound); }
    bool chance(unsigned percent) { return below(100) < percent; }

    void transaction();
    void single();
    void batch();
    void shared_event();
    void resend();
    void block();
    void steps(int depth);
    void savepoint(int depth);
    void guarded(Event event);

    unsigned any_tenant();
    Event new_event();
    std::string send(const Event &event);
    std::string consume_in_block(const Event &event);
    void take(Event event);
    void count_answer(Event event, const std::string &status);
    void repeat_known();
    void check();

    void settle(Event event, bool counts);
    void settle_from(std::size_t first, bool counts);
    void find_out();

    Run &run_;
    const std::string name_;
    Connection db_;
    std::mt19937_64 random_;
    long keys_ = 0;
    bool in_block_ = false, in_doubt_ = false;
    std::vector<Event> pending_;          // recorded in the transaction under way
    std::vector<Event> ledger_;           // their fate is known
    std::map<std::string, int> returns_;  // per tenant, the level of the gauge this client may take down
};

}  // namespace pg_billing::proof
