// Usage against its limits: checks it, reserves it on every counter that concerns it, and says what came of it.
//
// A tenant's metric has a limit for the billing period and may have others for the hour and the day; usage counts on all
// of them or on none. A gauge's level cannot fall below zero: in the caps' counters an increase counts at once and a
// decrease at commit, in the floor's it is the other way round, so that neither limit is passed however transactions end.
#pragma once

#include "extension/call.hpp"
#include "extension/decision.hpp"

namespace pg_billing {

// What something does to the numbers, in units.
struct Change {
    int64 counted;   // against the caps: usage, and what reservations hold
    int64 recorded;  // of that, usage

    constexpr Change(int64 usage) : counted(usage), recorded(usage) {}
    constexpr Change(int64 counted, int64 recorded) : counted(counted), recorded(recorded) {}
    static constexpr Change hold(int64 units) { return {units, 0}; }
};

// Which limit an amount fits, and what that limit's counter said.
struct Fit {
    bool fits;
    int limit;   // of the terms' limits: the one in the way, else that of the period
    int64 used;  // on that limit's counter: with the amount if it was reserved, else without
};

// Returns the terms in force for usage that is to be recorded, valid as terms::in_force() says. Where that has to wait
// for somebody who states a gauge's level, the terms are those of afterwards.
Terms &terms_to_record(const Call &call);

// Returns the terms with the counter of that period, whatever periods the tenant has had since it was written down.
Terms with_period(Terms terms, TimestampTz start);

// Locks a gauge until the transaction ends, so that nobody else changes it. Whoever was changing it has ended, callbacks
// and all.
void lock_level(const Call &call);

// Returns the level of a gauge that is locked so.
int64 level_of(const Call &call, Terms &terms);

// Tells whether the usage would be reserved now, without any effect.
Fit fit(const Call &call, Terms &terms, int64 units);

// Reserves the change on all counters for this (sub)transaction; enforced: only if it fits all caps. Raises if a
// counter cannot hold it, or a gauge would fall below zero. A negative amount takes effect at commit. Waits for somebody
// who states a gauge's level.
Fit reserve(const Call &call, Terms &terms, Change change, bool enforced);

// Reserves if it fits all caps; where something is in the way, reservations that have expired make room first. They may
// be written to: `terms` is a copy of the cached ones that stays valid.
Fit reserve_room(const Call &call, Terms &cached, Change change, Terms &terms);

// Notes on the counters that a reservation holds some of what reserve_room() has just reserved.
void mark_held(const Terms &terms);

// Holds all counters for this (sub)transaction, so that a reserve() to come finds them; returns the largest of their
// numbers. Raises if there is no room for one.
int64 hold_counters(const Call &call, Terms &terms);

// Makes all counters what the tables say, as this transaction sees them, at its commit. Nothing else of them may be in
// flight.
void match_tables(const Call &call, Terms &terms);

[[noreturn]] void raise_overflow(const Call &call);

// Takes back what reserve() has just reserved.
void take_back(Terms &terms, Change change);

// Counts the denial and raises UB001 for it.
[[noreturn]] void raise_denial(const Call &call, const Terms &terms, const Decision &decision);

}  // namespace pg_billing
