// The settings of pg_billing (prefix pg_billing.). pg_billing_worker.so reads the same ones by name.
#pragma once

namespace pg_billing::settings {

extern bool database_workers;
extern int future_limit, late_limit;  // seconds
extern int max_counters;
extern char *tenant_id;
extern int time_shift;  // seconds

// Defines every setting and reserves the prefix; called once, while preloading.
void define();

}  // namespace pg_billing::settings
