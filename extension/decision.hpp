// The answer to "may it?" and its form in SQL (type billing.decision).
#pragma once

#include "extension/terms.hpp"

extern "C" {
#include "utils/uuid.h"
}

namespace pg_billing {

struct Decision {
    const char *status;  // recorded, duplicate, allowed, denied
    bool allowed;
    const char *reason;
    const Limit *limit = nullptr;  // the one the figures are of; null: none are known
    int64 used = 0;                // in units
};

// Returns a positive answer: why usage up to `used` in the period is within, or beyond, what the terms say.
Decision decide_allowed(const char *status, const Terms &terms, int64 used);

// Returns a negative answer: what the terms refuse altogether, or the limit that is in the way.
Decision decide_refused(const Terms &terms);
Decision decide_denied(const Terms &terms, const Limit &limit, int64 used);

// The columns of billing.decision.
enum DecisionColumn {
    kStatus,
    kAllowed,
    kReason,
    kUsed,
    kQuota,
    kRemaining,
    kCap,
    kResetsAt,
    kWarning,
    kDecisionColumns
};

// Fills in these columns; all must be zero before. Plain calls into PostgreSQL.
void fill_decision(const Terms &terms, const Decision &decision, Datum *values, bool *nulls);

// Count the decision and form its SQL value, a billing.decision or a billing.reservation (id null: none was made). Plain
// calls into PostgreSQL: to be used inside pg_call().
Datum decision_datum(FunctionCallInfo fcinfo, const Terms &terms, const Decision &decision);
Datum reservation_datum(FunctionCallInfo fcinfo, const pg_uuid_t *id, const Terms &terms,
                        const Decision &decision);

}  // namespace pg_billing
