// The answer to "may it?" and its form in SQL (type billing.decision).
#pragma once

#include "extension/ledger.hpp"

namespace pg_billing {

struct Decision {
    const char *status;  // recorded, duplicate, allowed, denied
    bool allowed;
    const char *reason;
    bool used_known;
    int64 used;  // in units
};

// Returns why usage up to `used` is within, or beyond, what the quota says.
const char *reason_for(const ledger::Quota &quota, int64 used);

// Returns why a check against the quota is denied.
const char *reason_for_denial(const ledger::Quota &quota);

// Forms the SQL value. Plain calls into PostgreSQL: to be used inside pg_call().
Datum decision_datum(FunctionCallInfo fcinfo, const ledger::Quota &quota, const Decision &decision);

}  // namespace pg_billing
