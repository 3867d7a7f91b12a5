// The hot path: record_usage, try_consume, consume and check_quota.
//
// A call reserves on the quota counters first and writes second, both in the caller's transaction: a rollback gives the
// reservation back with the rows. A denied call writes nothing; a known idempotency key changes nothing and is never
// denied, for what it stands for has been counted.
#include "extension/ledger.hpp"
#include "extension/metering.hpp"
#include "extension/sqlstate.hpp"
#include "extension/ticks.hpp"

extern "C" {
#include "access/xlog.h"
}

namespace pg_billing {
namespace {

enum class Verb { record, try_consume, consume };

void require_adding_up(const Call &call, const Terms &terms) {
    if (!terms.adds_up())
        throw Failure(sqlstate::kNotConsumable,
                      "metric \"" + shown(call.metric_text) + "\" bills the " +
                          kAggregationNames[static_cast<int>(terms.aggregation)] +
                          " of its events, which cannot be held against a quota",
                      "Record it with billing.record_usage(); only sums, counts and gauges have caps.");
}

bool key_known(const Call &call) {
    return call.key && pg_call([&] { return ledger::key_known(call.tenant, call.key); });
}

// Decides on usage that is asked for or has happened, and records it. The terms lose their validity when something is
// written, for that may run triggers which use the cache: `terms` is a copy made before.
Decision record(const Call &call, Terms &cached, int64 units, bool enforced, Terms &terms) {
    terms = cached;
    if (enforced && terms.refusal != Refusal::none) {
        Decision decision = decide_refused(terms);
        if (key_known(call)) {
            decision.status = "duplicate";
            decision.allowed = true;
        }
        return decision;
    }
    const bool counted = terms.adds_up();
    Fit fit{true, 0, 0};
    if (counted) {
        fit = reserve(call, cached, units, enforced);
        terms = cached;
    }
    if (!fit.fits)
        return key_known(call) ? decide_allowed("duplicate", terms, fit.used)
                               : decide_denied(terms, terms.limits[fit.limit], fit.used);
    const bool fresh = pg_call([&] {
        return ledger::write_event({call.tenant, call.metric, NumericGetDatum(call.quantity), call.key,
                                    call.properties, ticks::join(), call.occurred_at, call.now,
                                    terms.period().start});
    });
    if (!fresh && counted) {
        take_back(terms, units);
        fit.used -= units;
    }
    Decision decision = decide_allowed(fresh ? "recorded" : "duplicate", terms, fit.used);
    if (!counted)
        decision.limit = nullptr;
    return decision;
}

Datum decide(FunctionCallInfo fcinfo, Verb verb) {
    Call call = read_call(fcinfo);
    read_event(fcinfo, 3, call);
    pg_call([] {
        PreventCommandIfReadOnly("usage recording");
        PreventCommandDuringRecovery("usage recording");
    });
    Terms &cached = *pg_call(
        [&] { return terms::in_force(call.relation, call.tenant_text, call.metric_text, call.occurred_at); });
    const int64 units = check_terms(call, cached);
    if (verb != Verb::record)
        require_adding_up(call, cached);
    Terms terms;
    const Decision decision = record(call, cached, units, verb != Verb::record, terms);
    if (verb == Verb::consume && !decision.allowed)
        raise_denial(call, terms, decision);
    return pg_call([&] { return decision_datum(fcinfo, terms, decision); });
}

Datum check(FunctionCallInfo fcinfo) {
    const Call call = read_call(fcinfo);
    Terms &terms = *pg_call(
        [&] { return terms::in_force(call.relation, call.tenant_text, call.metric_text, call.occurred_at); });
    const int64 units = check_terms(call, terms);
    require_adding_up(call, terms);
    Decision decision;
    if (terms.refusal != Refusal::none) {
        decision = decide_refused(terms);
    } else {
        const Fit found = fit(call, terms, units);
        decision = found.fits ? decide_allowed("allowed", terms, found.used + units)
                              : decide_denied(terms, terms.limits[found.limit], found.used);
        decision.used = found.used;
    }
    return pg_call([&] { return decision_datum(fcinfo, terms, decision); });
}

}  // namespace
}  // namespace pg_billing

using pg_billing::Verb;

PG_BILLING_FUNCTION(pg_billing_record_usage) {
    return pg_billing::pg_entry([&] { return pg_billing::decide(fcinfo, Verb::record); });
}

PG_BILLING_FUNCTION(pg_billing_try_consume) {
    return pg_billing::pg_entry([&] { return pg_billing::decide(fcinfo, Verb::try_consume); });
}

PG_BILLING_FUNCTION(pg_billing_consume) {
    return pg_billing::pg_entry([&] { return pg_billing::decide(fcinfo, Verb::consume); });
}

PG_BILLING_FUNCTION(pg_billing_check_quota) {
    return pg_billing::pg_entry([&] { return pg_billing::check(fcinfo); });
}
