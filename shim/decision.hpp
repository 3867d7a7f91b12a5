// Decisions over HTTP: an allowed one is the answer, a denial the problem that it is, and both say what is left.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "shim/database.hpp"
#include "shim/http_server.hpp"

namespace pg_billing::shim {

// The columns of a decision's row, as decision_columns() selects them.
enum DecisionColumn {
    kStatus,
    kReason,
    kUsed,
    kQuota,
    kRemaining,
    kCap,
    kResetsAt,
    kWarning,
    kResetsIn,
    kReservationId
};

// The select list, of a row d with the columns of a billing.decision.
inline constexpr char kDecisionColumns[] =
    R"(d.status, d.reason, d.used, d.quota, d.remaining, d.cap, to_json(d.resets_at), d.warning,
       CASE WHEN d.resets_at IS NOT NULL
            THEN greatest(ceil(extract(epoch FROM d.resets_at - billing.now())), 0) END)";

// Returns a query whose row decision_response() reads. The call is of a function that returns a billing.decision, or a
// billing.reservation, whose id then leads the answer unless it is a denial.
std::string decision_query(const std::string &call, bool reservation = false);

// Answers with a decision: 200, or 201 if its status is the one that tells that something was made; 429 or 402 if it is a
// denial. Without a metric it has no RateLimit fields.
http::Response decision_response(const std::optional<std::string> &metric, const Row &row,
                                 std::string_view made = {});

}  // namespace pg_billing::shim
