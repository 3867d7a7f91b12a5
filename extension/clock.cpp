#include "extension/clock.hpp"

#include "extension/settings.hpp"

namespace pg_billing {

TimestampTz business_now() {
    return GetCurrentStatementStartTimestamp() + settings::time_shift * USECS_PER_SEC;
}

}  // namespace pg_billing

PG_BILLING_FUNCTION(pg_billing_now) {
    PG_RETURN_TIMESTAMPTZ(pg_billing::business_now());
}
