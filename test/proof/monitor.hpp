// Watches the caps all the time while the clients work, and raises one now and then so that they keep being hit.
//
// It alone changes quotas, and only ever raises them; so what it looks at never may exceed the quota it reads afterwards.
// Half of its raises it rolls back: they must never have been in force. It also rolls up, more often than the worker does.
#pragma once

#include <random>

#include "test/proof/connection.hpp"

namespace pg_billing::proof {

class Monitor {
  public:
    explicit Monitor(Run &run)
        : run_(run), db_(run, "proof monitor"), random_(run.settings.seed * 1000 + 999) {}

    // Looks until the proof is over.
    void work();

  private:
    void look();
    void raise(unsigned tenant, int quota);

    Run &run_;
    Connection db_;
    std::mt19937_64 random_;
    unsigned next_cold_ = 0;
};

}  // namespace pg_billing::proof
