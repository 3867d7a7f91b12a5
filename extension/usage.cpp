// The hot path: record_usage, try_consume, consume and check_quota.
//
// Each reads as the order of events: check the arguments and the caller, find the quota in force, decide, record.
#include "extension/metering.hpp"
#include "extension/recording.hpp"

namespace pg_billing {
namespace {

enum class Verb { record, try_consume, consume };

Datum decide(FunctionCallInfo fcinfo, Verb verb) {
    Call call = read_call(fcinfo);
    read_event(fcinfo, 3, call);
    require_writable();
    Terms &cached = terms_to_record(call);
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
    Terms &terms = terms_of(call);
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
