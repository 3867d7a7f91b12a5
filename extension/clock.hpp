// The one clock of all business rules: periods, windows, expiry. Leases and retries use the machine's time instead.
#pragma once

#include "extension/pg.hpp"

namespace pg_billing {

// Returns when the current statement began, shifted by pg_billing.time_shift. One statement sees one time.
TimestampTz business_now();

}  // namespace pg_billing
