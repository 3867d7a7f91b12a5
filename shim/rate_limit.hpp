// The RateLimit fields of an answer that carries a decision (draft-ietf-httpapi-ratelimit-headers-10).
//
// The policy's name is the metric. Its unit is not declared: the draft's registry knows none that fits tokens or
// seats.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "shim/http_server.hpp"

namespace pg_billing::shim {

// A decision's figures as decimal digits, whole numbers and none negative; the database rounds them.
struct QuotaState {
    std::optional<std::string> quota;      // absent: unlimited
    std::optional<std::string> remaining;  // absent with quota
    std::optional<std::string> resets_in;  // seconds; absent: never resets
};

// Returns the RateLimit-Policy and RateLimit fields, or none when the metric is unlimited.
http::Fields rate_limit_fields(std::string_view metric, const QuotaState &state);

}  // namespace pg_billing::shim
