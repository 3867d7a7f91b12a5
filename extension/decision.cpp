#include "extension/decision.hpp"

#include <cstring>

#include "extension/quantity.hpp"

extern "C" {
#include "access/htup_details.h"
#include "funcapi.h"
}

namespace pg_billing {

const char *reason_for_denial(const ledger::Quota &quota) {
    if (quota.refusal)
        return quota.refusal;
    return strcmp(quota.cap, "hard") == 0 ? "hard_cap" : "upgrade_required";
}

const char *reason_for(const ledger::Quota &quota, int64 used) {
    if (quota.refusal)
        return quota.refusal;
    if (!quota.quota)
        return "unlimited";
    if (used <= limit_to_units(quota.quota, quota.scale))
        return "within_quota";
    if (strcmp(quota.cap, "none") == 0)
        return "overage";
    return used > quota.limit ? reason_for_denial(quota) : "soft_cap_exceeded";
}

Datum decision_datum(FunctionCallInfo fcinfo, const ledger::Quota &quota, const Decision &decision) {
    TupleDesc type;
    if (get_call_result_type(fcinfo, nullptr, &type) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "a decision must be returned as billing.decision");
    type = BlessTupleDesc(type);

    enum { status, allowed, reason, used, limit, remaining, cap, resets_at, columns };
    if (type->natts != columns)
        elog(ERROR, "type billing.decision does not fit this library: run ALTER EXTENSION pg_billing UPDATE");
    Datum values[columns] = {};
    bool nulls[columns] = {};
    values[status] = CStringGetTextDatum(decision.status);
    values[allowed] = BoolGetDatum(decision.allowed);
    values[reason] = CStringGetTextDatum(decision.reason);
    nulls[used] = !decision.used_known;
    if (decision.used_known)
        values[used] = NumericGetDatum(from_units(decision.used, quota.scale));
    nulls[limit] = !quota.quota;
    if (quota.quota)
        values[limit] = NumericGetDatum(quota.quota);
    nulls[remaining] = !quota.quota || !decision.used_known;
    if (!nulls[remaining]) {
        const int64 left = limit_to_units(quota.quota, quota.scale) - decision.used;
        values[remaining] = NumericGetDatum(from_units(left > 0 ? left : 0, quota.scale));
    }
    nulls[cap] = !quota.cap;
    if (quota.cap)
        values[cap] = CStringGetTextDatum(quota.cap);
    nulls[resets_at] = quota.is_gauge;
    values[resets_at] = TimestampTzGetDatum(quota.period_end);
    return HeapTupleGetDatum(heap_form_tuple(type, values, nulls));
}

}  // namespace pg_billing
