// Quantities are numeric in SQL and int64 in shared memory, in units of the metric's smallest decimal (its scale).
// Plain calls into PostgreSQL: to be used inside pg_call().
#pragma once

#include "extension/pg.hpp"

extern "C" {
#include "utils/numeric.h"
}

namespace pg_billing {

// The most one call may record: fifteen digits, what Stripe takes as a meter event's value.
inline constexpr int64 kMaxQuantity = 999'999'999'999'999;

enum class Scaling { exact, inexact, not_finite, too_large };

// Turns a quantity into units; `inexact` if it has more decimals than the scale.
Scaling to_units(Numeric quantity, int scale, int64 *units);

// Turns a limit into units, rounded down; INT64_MAX if it is beyond that.
int64 limit_to_units(Numeric limit, int scale);

// Turns any finite total into units; raises if it is beyond int64.
int64 total_to_units(Numeric total, int scale);

Numeric from_units(int64 units, int scale);

// Returns how many units make one.
int64 power_of_ten(int scale);

}  // namespace pg_billing
