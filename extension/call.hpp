// A call of one of the usage functions: its arguments, read and checked, and who makes it.
#pragma once

#include <string>
#include <string_view>

#include "extension/guard.hpp"
#include "extension/terms.hpp"

extern "C" {
#include "utils/numeric.h"
#include "utils/uuid.h"
}

namespace pg_billing {

// Values are detoasted; 0 stands for null.
struct Call {
    Oid relation;  // billing.usage_events
    Datum tenant, metric, key, properties;
    std::string_view tenant_text, metric_text, key_text;
    Numeric quantity;
    TimestampTz now, occurred_at;
};

// Registers what keeps true what is remembered of callers; called once, while preloading.
void init_calls();

// What of a value is shown in a message: whole characters, and not so many that they crowd out the rest.
std::string shown(std::string_view value);
std::string shown(Numeric value);
std::string shown(TimestampTz value);
std::string shown(const pg_uuid_t &value);

// Returns a call of now that asks for nothing yet; raises if install() was not run.
Call begin_call();

// Raise unless tenant and metric, or the rest of what a caller says of an event, are well-formed.
void check_names(const Call &call);
void check_event(const Call &call);
// One by one.
void check_tenant(const Call &call);
void check_key(const Call &call);
void check_time(const Call &call);
void check_properties(const Call &call);

// Reads and checks tenant and metric alone, whoever makes the call.
Call read_names(FunctionCallInfo fcinfo);

// Reads and checks the arguments that all verbs have: tenant, metric and quantity; and that the caller may make it.
Call read_call(FunctionCallInfo fcinfo);

// Reads and checks the rest: idempotency key, time and properties, in this order from argument `first` on.
void read_event(FunctionCallInfo fcinfo, int first, Call &call);

// One by one, from argument n: idempotency key, properties.
void read_key(FunctionCallInfo fcinfo, int n, Call &call);
void read_properties(FunctionCallInfo fcinfo, int n, Call &call);

// Reads and checks the tenant alone, and that the caller may act for it.
Call read_tenant(FunctionCallInfo fcinfo);

// Returns the only tenant that the caller may act for; empty: any.
std::string_view tenant_of_session();

// Raises in a transaction that is read-only, and on a standby. Whoever records calls this before reading the quota terms:
// it takes the lock that writing usage_events takes anyway, for which a change of what usage is counted in (a metric's
// scale or aggregation, its first limit per hour or day) waits, and that then waits for the change.
void require_writable();

// Raises unless the caller may act for the tenant: services may for any unless their session is bound to one, everybody
// else for their own only.
void check_caller(std::string_view tenant);

// Raises unless tenant and metric exist; returns the call's quantity in units, as it counts: an event of a metric that
// counts events is one.
int64 check_terms(const Call &call, const Terms &terms);

// Raises unless usage of the metric can be held against a cap.
void require_adding_up(const Call &call, const Terms &terms);

// Returns the terms in force when the usage occurred; valid as terms::in_force() says.
Terms &terms_of(const Call &call);

}  // namespace pg_billing
