// Usage against its limits: checks it, reserves it on every counter that concerns it, and says what came of it.
//
// A tenant's metric has a limit for the billing period and may have others for the hour and the day; usage counts on all
// of them or on none.
#pragma once

#include "extension/call.hpp"
#include "extension/decision.hpp"

namespace pg_billing {

// Which limit an amount fits, and what that limit's counter said.
struct Fit {
    bool fits;
    int limit;   // of the terms' limits: the one in the way, else that of the period
    int64 used;  // on that limit's counter: with the amount if it was reserved, else without
};

// Tells whether the amount would be reserved now, without any effect.
Fit fit(const Call &call, Terms &terms, int64 units);

// Reserves the amount on all counters for this (sub)transaction; enforced: only if it fits all limits. Raises if a
// counter cannot hold it. A negative amount takes effect at commit.
Fit reserve(const Call &call, Terms &terms, int64 units, bool enforced);

// Holds all counters for this (sub)transaction, so that a reserve() to come finds them; returns the largest of their
// numbers. Raises if there is no room for one.
int64 hold_counters(const Call &call, Terms &terms);

[[noreturn]] void raise_overflow(const Call &call);

// Takes back what reserve() has just reserved.
void take_back(Terms &terms, int64 units);

// Counts the denial and raises UB001 for it.
[[noreturn]] void raise_denial(const Call &call, const Terms &terms, const Decision &decision);

}  // namespace pg_billing
