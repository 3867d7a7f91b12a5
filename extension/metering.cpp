#include "extension/metering.hpp"

#include "extension/journal.hpp"
#include "extension/ledger.hpp"
#include "extension/quantity.hpp"
#include "extension/reservation_ledger.hpp"
#include "extension/reservations.hpp"
#include "extension/sqlstate.hpp"

extern "C" {
#include "access/xlog.h"
#include "common/hashfn.h"
#include "storage/lock.h"
}

namespace pg_billing {
namespace {

// Of the locks on gauges; users' advisory locks have class 1 or 2.
constexpr uint16 kLockClass = 0x5047;

// Locks a gauge until the end of the transaction. Who changes its level shares the lock; who has to know the level has
// it alone. Two gauges may have the same lock: then one waits in vain, and no harm is done.
bool lock_gauge(const Call &call, LOCKMODE mode, bool wait) {
    const auto hash = [](std::string_view text, uint64 seed) {
        return hash_bytes_extended(reinterpret_cast<const unsigned char *>(text.data()),
                                   static_cast<int>(text.size()), seed);
    };
    const uint64 id = hash(call.metric_text, hash(call.tenant_text, call.relation));
    return pg_call([&] {
        LOCKTAG tag;
        SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, static_cast<uint32>(id >> 32), static_cast<uint32>(id),
                             kLockClass);
        return LockAcquire(&tag, mode, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
    });
}

ledger::Total load_total(const Call &call, const Terms &terms, const Limit &limit) {
    return pg_call([&] {
        return ledger::total_used(call.tenant_text, call.metric_text, terms.scale, limit.window, limit.start,
                                  limit.end);
    });
}

// Returns the limit's counter, held for this subtransaction and loaded.
Counter *hold(const Call &call, const Terms &terms, Limit &limit) {
    Counter *counter = pg_call([&] {
        return journal::hold_again(limit.counter)
                   ? limit.counter.counter
                   : journal::hold(make_counter_key(call.relation, call.tenant_text, call.metric_text,
                                                    terms.scale, limit.window, limit.start));
    });
    if (!counter)
        throw Failure(
            sqlstate::kNoCounter, "no room for another quota counter",
            "Raise pg_billing.max_counters, or end transactions that use very many tenants at once.");
    limit.counter = counter_ref(counter);
    if (!counter_ready(counter)) {
        const ledger::Total total = load_total(call, terms, limit);
        pg_call([&] { publish_counter(counter, total.used, total.held); });
    }
    return counter;
}

// What this transaction owes on the limit's counter; in recovery none was ever seen.
int64 owed(const Limit &limit) {
    return limit.counter.counter ? journal::owed(limit.counter.counter) : 0;
}

int64 used_now(const Call &call, const Terms &terms, Limit &limit, bool in_recovery) {
    int64 used;
    if (in_recovery)
        return load_total(call, terms, limit).used;
    if (!limit.counter.counter || !peek_counter(limit.counter, &used)) {
        Counter *counter = hold(call, terms, limit);
        used = counter_used(counter);
        journal::release_unused(counter);
    }
    return used + owed(limit);
}

// Returns what reservations that have expired still hold of a limit in the way: try_consume() would free it.
int64 held_in_vain(const Call &call, const Terms &terms, const Limit &limit, bool in_recovery) {
    if (!in_recovery && !may_be_held(limit.counter))
        return 0;
    return pg_call([&] {
        return ledger::expired_but_held(call.tenant_text, call.metric_text, terms.scale, limit, call.now);
    });
}

// What the change does to the limit's number.
int64 amount_on(const Limit &limit, Change change) {
    return limit.window == Window::floor ? -change.recorded : change.counted;
}

void undo_before(Terms &terms, int end, Change change) {
    for (int i = end - 1; i >= 0; i--) {
        const int64 amount = amount_on(terms.limits[i], change);
        if (terms.limits[i].window == Window::floor && amount == 0)
            continue;
        journal::undo(terms.limits[i].counter.counter, amount);
        journal::release_unused(terms.limits[i].counter.counter);
    }
}

Fit try_reserve(const Call &call, Terms &terms, Change change, bool enforced) {
    int64 used_in_period = 0;
    for (int i = 0; i < terms.limit_count; i++) {
        Limit &limit = terms.limits[i];
        const bool is_floor = limit.window == Window::floor;
        const int64 amount = amount_on(limit, change);
        if (is_floor && amount == 0)
            continue;
        Counter *counter = hold(call, terms, limit);
        const int64 bound = enforced || is_floor ? limit.bound : PG_INT64_MAX;
        int64 used;
        const Reserve result = journal::reserve(counter, amount, bound, &used);
        if (i == 0)
            used_in_period = used;
        if (result == Reserve::done)
            continue;
        journal::release_unused(counter);
        undo_before(terms, i, change);
        if (result == Reserve::over_limit)
            return {false, i, used};
        raise_overflow(call);
    }
    return {true, 0, used_in_period};
}

[[noreturn]] void raise_below_zero(const Call &call, const Terms &terms, int64 level, int64 units) {
    const auto amount = [&](int64 n) { return shown(pg_call([&] { return from_units(n, terms.scale); })); };
    throw Failure(sqlstate::kBelowZero,
                  "gauge \"" + shown(call.metric_text) + "\" of tenant \"" + shown(call.tenant_text) +
                      "\" is at " + amount(level) + " and cannot be lowered by " + amount(-units),
                  "Free no more than was recorded, or state the level with billing.set_usage().");
}

}  // namespace

Terms &terms_to_record(const Call &call) {
    Terms &terms = terms_of(call);
    if (!terms.is_gauge || lock_gauge(call, ShareLock, false))
        return terms;
    lock_gauge(call, ShareLock, true);
    return terms_of(call);
}

Terms with_period(Terms terms, TimestampTz start) {
    Limit &period = terms.limits[0];
    if (period.start != start)
        period = {period.window, period.quota, period.bound, start, period.end, {}};
    return terms;
}

void lock_level(const Call &call) {
    lock_gauge(call, ExclusiveLock, true);
}

int64 level_of(const Call &call, Terms &terms) {
    Limit &floor = terms.limits[terms.limit_count - 1];
    Counter *counter = hold(call, terms, floor);
    const int64 level = -(counter_used(counter) + owed(floor));
    journal::release_unused(counter);
    return level;
}

Fit fit(const Call &call, Terms &terms, int64 units) {
    const bool in_recovery = RecoveryInProgress();
    int64 used_in_period = 0;
    for (int i = 0; i < terms.limit_count; i++) {
        Limit &limit = terms.limits[i];
        const int64 amount = amount_on(limit, units);
        if (limit.window == Window::floor && amount <= 0)
            continue;
        int64 used = used_now(call, terms, limit, in_recovery);
        int64 after;
        if (__builtin_add_overflow(used, amount, &after))
            return {false, i, used};
        if (amount > -owed(limit) && after > limit.bound) {
            if (limit.window == Window::floor)
                raise_below_zero(call, terms, -used, units);
            const int64 in_vain = held_in_vain(call, terms, limit, in_recovery);
            if (after - in_vain > limit.bound)
                return {false, i, used};
            used -= in_vain;
        }
        if (i == 0)
            used_in_period = used;
    }
    return {true, 0, used_in_period};
}

Fit reserve(const Call &call, Terms &terms, Change change, bool enforced) {
    if (terms.is_gauge && change.recorded != 0)
        lock_gauge(call, ShareLock, true);
    Fit result = try_reserve(call, terms, change, enforced);
    if (result.fits || terms.limits[result.limit].window != Window::floor)
        return result;
    // Somebody who lowers the gauge may yet roll back; somebody who has raised it may be about to say so.
    lock_level(call);
    const int64 level = level_of(call, terms);
    result = try_reserve(call, terms, change, enforced);
    if (!result.fits && terms.limits[result.limit].window == Window::floor)
        raise_below_zero(call, terms, level, change.recorded);
    return result;
}

Fit reserve_room(const Call &call, Terms &cached, Change change, Terms &terms) {
    Fit result = reserve(call, cached, change, true);
    terms = cached;
    while (!result.fits && may_be_held(terms.limits[result.limit].counter) && give_back_expired(call)) {
        Terms &again = terms_of(call);
        result = reserve(call, again, change, true);
        terms = again;
    }
    return result;
}

void mark_held(const Terms &terms) {
    for (int i = 0; i < terms.limit_count; i++)
        if (terms.limits[i].window != Window::floor)
            mark_held(terms.limits[i].counter.counter);
}

void take_back(Terms &terms, Change change) {
    undo_before(terms, terms.limit_count, change);
}

int64 hold_counters(const Call &call, Terms &terms) {
    int64 largest = PG_INT64_MIN;
    for (int i = 0; i < terms.limit_count; i++)
        largest = Max(largest, counter_used(hold(call, terms, terms.limits[i])));
    return largest;
}

void match_tables(const Call &call, Terms &terms) {
    for (int i = 0; i < terms.limit_count; i++) {
        Limit &limit = terms.limits[i];
        Counter *counter = hold(call, terms, limit);
        const int64 amiss = load_total(call, terms, limit).used - counter_used(counter) - owed(limit);
        int64 used;
        journal::reserve(counter, amiss, PG_INT64_MAX, &used);  // no overflow: the sum is what the tables say
    }
}

void raise_overflow(const Call &call) {
    throw Failure(sqlstate::kQuantityOutOfRange,
                  "quantity " + shown(call.quantity) + " is more than the counter of metric \"" +
                      shown(call.metric_text) + "\" can hold",
                  "Give the metric a smaller scale in billing.metrics.");
}

void raise_denial(const Call &call, const Terms &terms, const Decision &decision) {
    stats::count(terms.stats, decision.status, decision.reason);
    std::string detail = std::string("Reason: ") + decision.reason + ".";
    if (decision.limit) {
        const std::string used = shown(pg_call([&] { return from_units(decision.used, terms.scale); }));
        const std::string quota =
            shown(pg_call([&] { return from_units(decision.limit->quota, terms.scale); }));
        detail += " Used " + used + " of " + quota;
        detail += TIMESTAMP_NOT_FINITE(decision.limit->end)
                      ? "."
                      : "; resets at " + shown(decision.limit->end) + ".";
    }
    throw Failure(sqlstate::kQuotaExceeded,
                  "quota exceeded: tenant \"" + shown(call.tenant_text) + "\" asked for " +
                      shown(call.quantity) + " of \"" + shown(call.metric_text) + "\"",
                  "Move the tenant to a larger plan, raise its quota with billing.set_quota(), or wait "
                  "for the reset.",
                  detail);
}

}  // namespace pg_billing
