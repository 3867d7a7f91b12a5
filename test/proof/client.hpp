// One client: an application's connection that runs random transactions, and knows the fate of every key it used.
//
// A transaction is one call, a batch, or a block of calls under some isolation level with savepoints and exception
// blocks, committed or rolled back (client.cpp). What was done in it is pending until its outcome is known; then each
// event, reservation or retraction becomes what it is from then on (fates.cpp). Where the connection breaks while the
// outcome is open, the client sends the same again until it is answered, as applications do; what it is answered must fit
// the one transaction it was in.
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

    // Runs transactions until the proof is over, then ends the reservations that are left.
    void work();

    // Every event this client ever sent, with its fate; and the rows it has inserted.
    const std::vector<Event> &ledger() const { return ledger_; }
    const std::vector<Event> &items() const { return items_; }

  private:
    unsigned below(unsigned bound) { return static_cast<unsigned>(random_() % bound); }
    bool chance(unsigned percent) { return below(100) < percent; }

    // Transactions.
    template <class Work>
    void attempt(Work work);
    void transaction();
    void single();
    void batch();
    void shared_event();
    void resend();
    void block();
    void steps(int depth);
    void savepoint(int depth);
    void guarded(Event event);
    void repeat_known();
    void check();

    // Calls.
    unsigned any_tenant();
    Event new_event();
    Event new_event(const char *metric);
    void turn_down(Event &event);
    bool any_end(Event &event);
    bool any_retraction(Event &event);
    Event any_item();
    Event any_act();
    std::string send(Event &event);
    std::string use(const Event &event);
    std::string try_call(const char *statement, const std::vector<std::string> &arguments);
    void take(Event event);
    void note(Event event, const std::string &status);

    // Fates.
    void conclude(Event event, bool committed);
    void conclude_from(std::size_t first, bool committed);
    void find_out();
    std::string look_up(const Event &event);

    Run &run_;
    const std::string name_;
    Connection db_;
    std::mt19937_64 random_;
    long keys_ = 0;
    bool in_block_ = false, in_doubt_ = false;
    std::vector<Event> pending_;          // done in the transaction under way
    std::vector<Event> held_;             // reservations to settle or release
    std::vector<Event> items_;            // rows in the table that a trigger counts
    std::vector<Event> ledger_;           // the fate of all else
    std::map<std::string, int> returns_;  // per tenant, the level of the gauge this client may take down
};

}  // namespace pg_billing::proof
