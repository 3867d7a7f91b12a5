#include "extension/metering.hpp"

#include "extension/journal.hpp"
#include "extension/ledger.hpp"
#include "extension/quantity.hpp"
#include "extension/sqlstate.hpp"

extern "C" {
#include "access/xlog.h"
}

namespace pg_billing {
namespace {

int64 load_total(const Call &call, const Terms &terms, const Limit &limit) {
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
        const int64 total = load_total(call, terms, limit);
        pg_call([&] { publish_counter(counter, total); });
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
        return load_total(call, terms, limit);
    if (!limit.counter.counter || !peek_counter(limit.counter, &used)) {
        Counter *counter = hold(call, terms, limit);
        used = counter_used(counter);
        journal::release_unused(counter);
    }
    return used + owed(limit);
}

}  // namespace

Fit fit(const Call &call, Terms &terms, int64 units) {
    const bool in_recovery = RecoveryInProgress();
    int64 used_in_period = 0;
    for (int i = 0; i < terms.limit_count; i++) {
        Limit &limit = terms.limits[i];
        const int64 used = used_now(call, terms, limit, in_recovery);
        int64 after;
        if (__builtin_add_overflow(used, units, &after) || (units > -owed(limit) && after > limit.bound))
            return {false, i, used};
        if (i == 0)
            used_in_period = used;
    }
    return {true, 0, used_in_period};
}

Fit reserve(const Call &call, Terms &terms, int64 units, bool enforced) {
    int64 used_in_period = 0;
    for (int i = 0; i < terms.limit_count; i++) {
        Limit &limit = terms.limits[i];
        Counter *counter = hold(call, terms, limit);
        int64 used;
        const Reserve result = journal::reserve(counter, units, enforced ? limit.bound : PG_INT64_MAX, &used);
        if (i == 0)
            used_in_period = used;
        if (result == Reserve::done)
            continue;
        journal::release_unused(counter);
        for (int undone = i - 1; undone >= 0; undone--) {
            journal::undo(terms.limits[undone].counter.counter, units);
            journal::release_unused(terms.limits[undone].counter.counter);
        }
        if (result == Reserve::over_limit)
            return {false, i, used};
        raise_overflow(call);
    }
    return {true, 0, used_in_period};
}

int64 hold_counters(const Call &call, Terms &terms) {
    int64 largest = PG_INT64_MIN;
    for (int i = 0; i < terms.limit_count; i++)
        largest = Max(largest, counter_used(hold(call, terms, terms.limits[i])));
    return largest;
}

void raise_overflow(const Call &call) {
    throw Failure(sqlstate::kQuantityOutOfRange,
                  "quantity " + shown(call.quantity) + " is more than the counter of metric \"" +
                      shown(call.metric_text) + "\" can hold",
                  "Give the metric a smaller scale in billing.metrics.");
}

void take_back(Terms &terms, int64 units) {
    for (int i = terms.limit_count - 1; i >= 0; i--) {
        journal::undo(terms.limits[i].counter.counter, units);
        journal::release_unused(terms.limits[i].counter.counter);
    }
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
