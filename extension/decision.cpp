#include "extension/decision.hpp"

#include "extension/quantity.hpp"

extern "C" {
#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"
}

namespace pg_billing {
namespace {

const char *refusal_name(Refusal refusal) {
    return kRefusalNames[static_cast<int>(refusal)];
}

// Quota terms fold a soft cap that is past its grace into the bound.
const char *beyond_period(const Terms &terms) {
    return terms.cap == Cap::hard ? "hard_cap" : "upgrade_required";
}

const char *reason_for(const Terms &terms, int64 used) {
    if (terms.refusal != Refusal::none)
        return refusal_name(terms.refusal);
    if (terms.unlimited())
        return "unlimited";
    if (used <= terms.period().quota)
        return "within_quota";
    if (terms.cap == Cap::none)
        return "overage";
    return used > terms.period().bound ? beyond_period(terms) : "soft_cap_exceeded";
}

// From four fifths of the quota on.
const char *warning_for(const Limit &limit, int64 used) {
    if (limit.quota == PG_INT64_MAX || limit.quota == 0 || used < limit.quota - limit.quota / 5)
        return nullptr;
    return used > limit.quota ? "over_quota" : "near_quota";
}

TupleDesc decision_type(FunctionCallInfo fcinfo) {
    Oid type = get_fn_expr_rettype(fcinfo->flinfo);
    if (!OidIsValid(type))
        type = get_func_rettype(fcinfo->flinfo->fn_oid);
    TupleDesc row = lookup_type_cache(type, TYPECACHE_TUPDESC)->tupDesc;
    if (!row)
        elog(ERROR, "a decision must be returned as billing.decision");
    return row;
}

}  // namespace

Decision decide_allowed(const char *status, const Terms &terms, int64 used) {
    return {status, true, reason_for(terms, used), &terms.period(), used};
}

Decision decide_refused(const Terms &terms) {
    return {"denied", false, refusal_name(terms.refusal)};
}

Decision decide_denied(const Terms &terms, const Limit &limit, int64 used) {
    const char *reason = limit.window == Window::hour  ? "hour_limit"
                         : limit.window == Window::day ? "day_limit"
                                                       : beyond_period(terms);
    return {"denied", false, reason, &limit, used};
}

Datum decision_datum(FunctionCallInfo fcinfo, const Terms &terms, const Decision &decision) {
    stats::count(terms.stats, decision.status, decision.reason);
    TupleDesc type = decision_type(fcinfo);
    enum { status, allowed, reason, used, quota, remaining, cap, resets_at, warning, columns };
    if (type->natts != columns)
        elog(ERROR, "type billing.decision does not fit this library: run ALTER EXTENSION pg_billing UPDATE");
    const Limit &limit = decision.limit ? *decision.limit : terms.period();
    const bool limited = limit.quota != PG_INT64_MAX;
    const Cap capped = limit.window == Window::period ? terms.cap : Cap::hard;
    Datum values[columns] = {};
    bool nulls[columns] = {};
    values[status] = CStringGetTextDatum(decision.status);
    values[allowed] = BoolGetDatum(decision.allowed);
    values[reason] = CStringGetTextDatum(decision.reason);
    nulls[used] = !decision.limit;
    if (!nulls[used])
        values[used] = NumericGetDatum(from_units(decision.used, terms.scale));
    nulls[quota] = !limited;
    if (limited)
        values[quota] = NumericGetDatum(from_units(limit.quota, terms.scale));
    nulls[remaining] = !limited || !decision.limit;
    if (!nulls[remaining])
        values[remaining] = NumericGetDatum(from_units(Max(limit.quota - decision.used, 0), terms.scale));
    nulls[cap] = capped == Cap::not_in_force;
    if (!nulls[cap])
        values[cap] = CStringGetTextDatum(kCapNames[static_cast<int>(capped)]);
    nulls[resets_at] = TIMESTAMP_NOT_FINITE(limit.end);
    values[resets_at] = TimestampTzGetDatum(limit.end);
    const char *warns = decision.limit && decision.allowed ? warning_for(limit, decision.used) : nullptr;
    nulls[warning] = !warns;
    if (warns)
        values[warning] = CStringGetTextDatum(warns);
    return HeapTupleGetDatum(heap_form_tuple(type, values, nulls));
}

}  // namespace pg_billing
