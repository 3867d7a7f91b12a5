// What became of requests to Stripe, gathered and written to their rows together: a commit costs more than an answer.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "stripe/retry.hpp"
#include "worker/session.hpp"

namespace pg_billing {

// A claimed row of the outbox, as much of it as settling needs.
struct Claim {
    std::string tenant, id, what;
    int attempt;
};

class Settlements {
  public:
    explicit Settlements(Session &session) : session_(session) {}

    // Notes how one attempt ended for the rows it was about. What is to be sent again waits for its backoff, which is
    // one for all, so that they can go together again; or not at all (at once).
    void note(std::vector<Claim> claims, const stripe::Verdict &verdict, const stripe::Answer &answer,
              bool at_once = false);
    // Writes all that was noted, in one transaction if it can be stored.
    void write();

    // One line for a run that had trouble; every request's own error is in its row.
    void report() const;
    const std::string &trouble() const { return trouble_; }

  private:
    // As _stripe_settle_all takes it.
    struct Settlement {
        Claim claim;
        stripe::Outcome outcome = stripe::Outcome::failed;
        int status = 0;
        Value response, error;
        std::chrono::milliseconds retry_in{0};
    };
    static std::string as_json(const Settlement &settlement);

    Session &session_;
    std::vector<Settlement> noted_;
    std::size_t delivered_ = 0, retried_ = 0, failed_ = 0;
    std::string trouble_;  // the latest
};

}  // namespace pg_billing
