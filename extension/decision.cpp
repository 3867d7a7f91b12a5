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

Datum row_datum(FunctionCallInfo fcinfo, int columns, Datum *values, bool *nulls) {
    Oid type = get_fn_expr_rettype(fcinfo->flinfo);
    if (!OidIsValid(type))
        type = get_func_rettype(fcinfo->flinfo->fn_oid);
    static TypeCacheEntry *cached;  // entries stay where they are; what is outdated in them goes
    if (!cached || cached->type_id != type || !cached->tupDesc)
        cached = lookup_type_cache(type, TYPECACHE_TUPDESC);
    TupleDesc row = cached->tupDesc;
    if (!row || row->natts != columns)
        elog(ERROR,
             "the type of the result does not fit this library: run ALTER EXTENSION pg_billing UPDATE");
    return HeapTupleGetDatum(heap_form_tuple(row, values, nulls));
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

void fill_decision(const Terms &terms, const Decision &decision, Datum *values, bool *nulls) {
    const Limit &limit = decision.limit ? *decision.limit : terms.period();
    const bool limited = limit.quota != PG_INT64_MAX;
    const Cap cap = limit.window == Window::period ? terms.cap : Cap::hard;
    values[kStatus] = CStringGetTextDatum(decision.status);
    values[kAllowed] = BoolGetDatum(decision.allowed);
    values[kReason] = CStringGetTextDatum(decision.reason);
    nulls[kUsed] = !decision.limit;
    if (!nulls[kUsed])
        values[kUsed] = NumericGetDatum(from_units(decision.used, terms.scale));
    nulls[kQuota] = !limited;
    if (limited)
        values[kQuota] = NumericGetDatum(from_units(limit.quota, terms.scale));
    nulls[kRemaining] = !limited || !decision.limit;
    if (!nulls[kRemaining])
        values[kRemaining] = NumericGetDatum(from_units(Max(limit.quota - decision.used, 0), terms.scale));
    nulls[kCap] = cap == Cap::not_in_force;
    if (!nulls[kCap])
        values[kCap] = CStringGetTextDatum(kCapNames[static_cast<int>(cap)]);
    nulls[kResetsAt] = TIMESTAMP_NOT_FINITE(limit.end);
    values[kResetsAt] = TimestampTzGetDatum(limit.end);
    const char *warns = decision.limit && decision.allowed ? warning_for(limit, decision.used) : nullptr;
    nulls[kWarning] = !warns;
    if (warns)
        values[kWarning] = CStringGetTextDatum(warns);
}

Datum decision_datum(FunctionCallInfo fcinfo, const Terms &terms, const Decision &decision) {
    stats::count(terms.stats, decision.status, decision.reason);
    Datum values[kDecisionColumns] = {};
    bool nulls[kDecisionColumns] = {};
    fill_decision(terms, decision, values, nulls);
    return row_datum(fcinfo, kDecisionColumns, values, nulls);
}

Datum reservation_datum(FunctionCallInfo fcinfo, const pg_uuid_t *id, const Terms &terms,
                        const Decision &decision) {
    stats::count(terms.stats, decision.status, decision.reason);
    Datum values[1 + kDecisionColumns] = {};
    bool nulls[1 + kDecisionColumns] = {};
    nulls[0] = !id;
    values[0] = UUIDPGetDatum(id);
    fill_decision(terms, decision, values + 1, nulls + 1);
    return row_datum(fcinfo, 1 + kDecisionColumns, values, nulls);
}

}  // namespace pg_billing
