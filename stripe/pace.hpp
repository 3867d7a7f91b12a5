// How fast Stripe may be asked, and whether it is worth asking at all. Pure: the caller tells the time.
#pragma once

#include <chrono>
#include <cstddef>

#include "stripe/retry.hpp"

namespace pg_billing::stripe {

// A token bucket: at most `rate` requests a second, and a quarter of that at once, so that who looks in after a quarter of a
// second still makes the whole rate. Where Stripe answers that it is too much (429), the rate is halved, once for all the
// requests that were under way; then a tenth of the full rate comes back each second.
class Pace {
  public:
    using Time = std::chrono::steady_clock::time_point;
    Pace(double rate, Time now);

    // Returns how many requests may be sent now.
    std::size_t room(Time now);
    // Takes n of them.
    void sent(std::size_t n) { tokens_ -= static_cast<double>(n); }
    // Returns how long to wait until there is room for one, having asked for the room now.
    std::chrono::milliseconds until_room() const;
    void answered(const Answer &answer, Time now);

  private:
    const double full_rate_;
    double rate_, tokens_;
    Time updated_, lowered_;
};

// Stops asking a Stripe that does not answer, or fails, whoever asks: after that many failures in a row, or the first one
// of a run that is to find out whether Stripe is back (probing), nothing more is sent. An answer that Stripe remembered says
// nothing of how it is now, but that it is there.
class Breaker {
  public:
    static constexpr int kLimit = 8;
    explicit Breaker(bool probing) : probing_(probing) {}

    void answered(const Answer &answer);
    // One request at a time, until it is answered well.
    bool probing() const { return probing_; }
    bool open() const { return in_a_row_ >= (probing_ ? 1 : kLimit); }
    // The run has failed: it was stopped, or nobody answered at all.
    bool outage() const { return open() || (silent_ && !heard_); }

  private:
    bool probing_, silent_ = false, heard_ = false;
    int in_a_row_ = 0;
};

}  // namespace pg_billing::stripe
