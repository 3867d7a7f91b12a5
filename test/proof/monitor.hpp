// Watches the caps all the time while the clients work, and raises one now and then so that they keep being hit.
//
// It alone changes quotas, and only ever raises them; so what it looks at never may exceed the quota it reads afterwards.
// Half of its raises it rolls back: they must never have been in force. A witness, which has known the old quota, must
// know the new one as soon as it is committed.
#pragma once

#include <random>

#include "test/proof/connection.hpp"

namespace pg_billing::proof {

class Monitor {
  public:
    explicit Monitor(Run &run)
        : run_(run),
          db_(run, "proof monitor"),
          witness_(run, "proof witness"),
          random_(run.settings.seed * 1000 + 999) {}

    // Looks until the proof is over.
    void work();

  private:
    void connect();
    void look();
    void raise(const std::string &tenant, int quota);
    void expect(Connection &db, const std::string &tenant, int quota, const char *when);

    Run &run_;
    Connection db_, witness_;
    std::mt19937_64 random_;
    unsigned next_cold_ = 0;
};

}  // namespace pg_billing::proof
