#include "stripe/retry.hpp"  // before PostgreSQL's headers, as all that brings third parties'

#include "worker/settings.hpp"

#include "extension/guard.hpp"

extern "C" {
#include "common/pg_prng.h"
}

namespace pg_billing {

std::string text_setting(const char *name) {
    return pg_call([&] { return GetConfigOption(name, false, false); });
}

int number_setting(const char *name) {
    return std::stoi(text_setting(name));
}

bool switch_setting(const char *name) {
    return text_setting(name) == "on";
}

TimestampTz next_tick(Job job, TimestampTz now) {
    const char *interval = job == kRollupJob ? "pg_billing.rollup_interval" : "pg_billing.submit_interval";
    if (job == kCacheJob && !text_setting("pg_billing.redis_url").empty())
        interval = "pg_billing.cache_interval";
    const int seconds = number_setting(interval);
    return TimestampTzPlusMilliseconds(now, seconds * INT64CONST(1000));
}

TimestampTz retry_at(int failures, TimestampTz now) {
    using namespace std::chrono_literals;
    const auto delay = stripe::retry_delay(failures, std::nullopt, pg_prng_double(&pg_global_prng_state),
                                           stripe::Backoff{5s, 5min});
    return TimestampTzPlusMilliseconds(now, delay.count());
}

}  // namespace pg_billing
