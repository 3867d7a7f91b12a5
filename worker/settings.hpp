// Settings and schedule of the background workers.
//
// pg_billing.so defines the settings; this library shares no symbol with it and reads them by name.
#pragma once

#include <string>

#include "extension/worker_state.hpp"

namespace pg_billing {

// Returns a setting's value; numbers are in the setting's base unit.
std::string text_setting(const char *name);
int number_setting(const char *name);
bool switch_setting(const char *name);

// Returns when a job that ran well at `now` is due again.
TimestampTz next_tick(Job job, TimestampTz now);

// Returns when a job that has now failed that many times in a row is tried again: from 5 s, doubling to 5 min.
TimestampTz retry_at(int failures, TimestampTz now);

}  // namespace pg_billing
