// The billing calendar: interval-aligned boundaries, in UTC as Stripe computes them.
//
// A month that lacks the anchor's day bills on its last day, and later months return to the anchor's day
// (docs.stripe.com/billing/subscriptions/billing-cycle), so every boundary is counted from the reference,
// never from the boundary before it.
#pragma once

#include <cstdint>
#include <string>

namespace pg_billing::sandbox {

struct Cycle {
    std::int64_t reference = 0;  // a boundary, whose day of the month the others keep where they can
    std::string interval = "month";
    int interval_count = 1;
    int shift = 0;  // of months: boundaries so much later, kept to the reference's day all the same

    std::int64_t at(int steps) const;                 // the boundary so many intervals from the reference
    std::int64_t after(std::int64_t time) const;      // the first boundary later than time
    std::int64_t not_after(std::int64_t time) const;  // the last boundary not later than time

  private:
    int steps_to_after(std::int64_t time) const;
};

// Returns the months from the year 0 to a time's.
int month_number(std::int64_t time);

// Returns the cycle that billing_cycle_anchor_config describes: that day of the month (a month's last where
// it is shorter) at that time of day.
Cycle cycle_on(int day_of_month, int hour, int minute, int second, std::int64_t near);

}  // namespace pg_billing::sandbox
