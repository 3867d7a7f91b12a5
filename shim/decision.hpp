// Decisions over HTTP: an allowed one is the answer, a denial the problem that it is, and both say what is left.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "shim/database.hpp"
#include "shim/http_server.hpp"

namespace pg_billing::shim {

// Returns a query whose row decision_response() reads. The call is of a function that returns a billing.decision, or a
// billing.reservation, whose id then leads the answer unless it is a denial.
std::string decision_query(const std::string &call, bool reservation = false);

// Answers with a decision: 200, or 201 if its status is the one that tells that something was made; 429 or 402 if it is a
// denial. Without a metric it has no RateLimit fields.
http::Response decision_response(const std::optional<std::string> &metric, const Row &row,
                                 std::string_view made = {});

}  // namespace pg_billing::shim
