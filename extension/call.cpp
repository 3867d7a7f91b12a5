#include "extension/call.hpp"

#include "extension/clock.hpp"
#include "extension/ledger.hpp"
#include "extension/quantity.hpp"
#include "extension/settings.hpp"
#include "extension/sqlstate.hpp"
#include "extension/usage_tables.hpp"

extern "C" {
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/syscache.h"
}

namespace pg_billing {
namespace {

constexpr size_t kMaxKeyBytes = 255;  // as long as Stripe's own idempotency keys

void set_text(Datum argument, Datum *value, std::string_view *view) {
    const text *detoasted = pg_call([&] { return DatumGetTextPP(argument); });
    *value = PointerGetDatum(detoasted);
    *view = text_view(*value);
}

Failure unknown_metric(const Call &call) {
    return Failure(sqlstate::kUnknownMetric, "unknown metric \"" + shown(call.metric_text) + "\"",
                   "SELECT name FROM billing.metrics lists the metrics.");
}

// How often roles or memberships may have changed, and what was found of the user asked about last. One that comes while
// it is looked up is not missed: what is found then is of before.
uint64 role_changes;
struct {
    Oid user;
    uint64 role_changes;
    bool is_service;
} known;

void note_role_change(Datum, int, uint32) {
    role_changes++;
}

bool is_service() {
    const Oid user = GetUserId();
    if (known.user != user || known.role_changes != role_changes) {
        const uint64 before = role_changes;
        const bool found = superuser() || has_privs_of_role(user, get_role_oid("billing_app", false)) ||
                           has_privs_of_role(user, get_role_oid("billing_admin", false));
        known = {user, before, found};
    }
    return known.is_service;
}

}  // namespace

void init_calls() {
    CacheRegisterSyscacheCallback(AUTHOID, note_role_change, 0);
    CacheRegisterSyscacheCallback(AUTHMEMMEMROLE, note_role_change, 0);
}

std::string shown(std::string_view value) {
    const int size = static_cast<int>(value.size());
    return std::string(value.substr(0, pg_mbcliplen(value.data(), size, 64)));
}

std::string shown(Numeric value) {
    return shown(std::string_view(
        pg_call([&] { return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value))); })));
}

std::string shown(TimestampTz value) {
    return pg_call([&] { return timestamptz_to_str(value); });
}

void check_names(const Call &call) {
    check_tenant(call);
    if (!call.metric)
        throw Failure(sqlstate::kUnknownMetric, "metric is null", "Name the tenant and the metric.");
    if (call.metric_text.size() >= kMaxMetricBytes)
        throw unknown_metric(call);
}

void check_tenant(const Call &call) {
    if (!call.tenant)
        throw Failure(sqlstate::kUnknownTenant, "tenant is null", "Name the tenant and the metric.");
    if (call.tenant_text.empty() || call.tenant_text.size() > kMaxTenantBytes)
        throw Failure(sqlstate::kInvalidTenantId,
                      "tenant id \"" + shown(call.tenant_text) + "\" is empty or longer than 128 bytes",
                      "Use the identifier the tenant was created with.");
}

void check_event(const Call &call) {
    check_key(call);
    check_time(call);
    check_properties(call);
}

void check_key(const Call &call) {
    if (call.key && (call.key_text.empty() || call.key_text.size() > kMaxKeyBytes))
        throw Failure(sqlstate::kInvalidIdempotencyKey,
                      "idempotency key \"" + shown(call.key_text) + "\" is empty or longer than 255 bytes",
                      "Use an identifier of the event, such as a UUID or a request id.");
}

void check_time(const Call &call) {
    if (TIMESTAMP_NOT_FINITE(call.occurred_at) ||
        call.occurred_at < call.now - settings::late_limit * USECS_PER_SEC ||
        call.occurred_at > call.now + settings::future_limit * USECS_PER_SEC)
        throw Failure(sqlstate::kOutsideWindow,
                      "occurred_at " + shown(call.occurred_at) + " is outside the accepted window",
                      "pg_billing.late_limit and pg_billing.future_limit say how late and how early an "
                      "event may be.");
}

void check_properties(const Call &call) {
    // Not compressed and not out of line: it was built or detoasted by whoever filled in the call.
    if (call.properties && !JB_ROOT_IS_OBJECT(reinterpret_cast<Jsonb *>(DatumGetPointer(call.properties))))
        throw Failure(sqlstate::kInvalidProperties, "properties are not a JSON object",
                      "Give an object such as {\"model\": \"large\"}.");
}

std::string shown(const pg_uuid_t &value) {
    return pg_call([&] { return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&value))); });
}

Call begin_call() {
    Call call{};
    call.now = call.occurred_at = business_now();
    call.relation = pg_call([] { return ledger::usage_table(ledger::UsageTable::events); });
    if (!OidIsValid(call.relation))
        throw Failure(sqlstate::kNotInstalled, "pg_billing has no tables in this database",
                      "Run SELECT billing.install() as a superuser.");
    return call;
}

Call read_tenant(FunctionCallInfo fcinfo) {
    Call call = begin_call();
    if (!PG_ARGISNULL(0))
        set_text(PG_GETARG_DATUM(0), &call.tenant, &call.tenant_text);
    check_tenant(call);
    check_caller(call.tenant_text);
    return call;
}

Call read_names(FunctionCallInfo fcinfo) {
    Call call = begin_call();
    if (!PG_ARGISNULL(0))
        set_text(PG_GETARG_DATUM(0), &call.tenant, &call.tenant_text);
    if (!PG_ARGISNULL(1))
        set_text(PG_GETARG_DATUM(1), &call.metric, &call.metric_text);
    check_names(call);
    return call;
}

Call read_call(FunctionCallInfo fcinfo) {
    Call call = read_names(fcinfo);
    if (PG_ARGISNULL(2))
        throw Failure(sqlstate::kInvalidQuantity, "quantity is null", "Leave it out for 1.");
    call.quantity = pg_call([&] { return PG_GETARG_NUMERIC(2); });
    check_caller(call.tenant_text);
    return call;
}

void read_event(FunctionCallInfo fcinfo, int first, Call &call) {
    read_key(fcinfo, first, call);
    if (!PG_ARGISNULL(first + 1))
        call.occurred_at = PG_GETARG_TIMESTAMPTZ(first + 1);
    check_time(call);
    read_properties(fcinfo, first + 2, call);
}

void read_key(FunctionCallInfo fcinfo, int n, Call &call) {
    if (!PG_ARGISNULL(n))
        set_text(PG_GETARG_DATUM(n), &call.key, &call.key_text);
    check_key(call);
}

void read_properties(FunctionCallInfo fcinfo, int n, Call &call) {
    if (!PG_ARGISNULL(n))
        call.properties = JsonbPGetDatum(pg_call([&] { return PG_GETARG_JSONB_P(n); }));
    check_properties(call);
}

std::string_view tenant_of_session() {
    if (pg_call([] { return is_service(); }))
        return settings::tenant_id;
    const char *own = pg_call([] { return ledger::tenant_of_caller(); });
    if (!own)
        throw Failure(sqlstate::kNotPermitted, "the session is of no tenant",
                      "Map its role in billing.tenant_roles, or set pg_billing.tenant_id.");
    return own;
}

void check_caller(std::string_view tenant) {
    const std::string_view bound = tenant_of_session();
    if (!bound.empty() && bound != tenant)
        throw Failure(
            sqlstate::kNotPermitted,
            "session of tenant \"" + shown(bound) + "\" may not act for tenant \"" + shown(tenant) + "\"",
            "Reset pg_billing.tenant_id or name the session's own tenant.");
}

void require_writable() {
    pg_call([] {
        PreventCommandIfReadOnly("usage recording");
        PreventCommandDuringRecovery("usage recording");
        PreventCommandIfParallelMode("usage recording");
        if (const Oid events = ledger::usage_table(ledger::UsageTable::events); OidIsValid(events))
            LockRelationOid(events, RowExclusiveLock);
    });
}

int64 check_terms(const Call &call, const Terms &terms) {
    if (!terms.metric_known)
        throw unknown_metric(call);
    if (!terms.tenant_known)
        throw Failure(sqlstate::kUnknownTenant, "unknown tenant \"" + shown(call.tenant_text) + "\"",
                      "Create it first with billing.create_customer().");
    int64 units;
    switch (pg_call([&] { return to_units(call.quantity, terms.scale, &units); })) {
        case Scaling::exact:
            break;
        case Scaling::not_finite:
            throw Failure(sqlstate::kInvalidQuantity,
                          "quantity " + shown(call.quantity) + " is not a finite number",
                          "Give the amount that was used.");
        case Scaling::inexact:
            throw Failure(sqlstate::kQuantityOutOfRange,
                          "quantity " + shown(call.quantity) + " has more decimals than metric \"" +
                              shown(call.metric_text) + "\" keeps, which is " + std::to_string(terms.scale),
                          "Round it, or give the metric a larger scale in billing.metrics.");
        case Scaling::too_large:
            throw Failure(sqlstate::kQuantityOutOfRange,
                          "quantity " + shown(call.quantity) + " is out of range",
                          "A quantity has at most 15 digits, decimals included.");
    }
    if (units < 0 && !terms.is_gauge)
        throw Failure(sqlstate::kInvalidQuantity,
                      "quantity " + shown(call.quantity) + " of counter \"" + shown(call.metric_text) +
                          "\" is negative",
                      "Usage of a counter only grows; a gauge may shrink.");
    return terms.aggregation == Aggregation::count ? power_of_ten(terms.scale) : units;
}

void require_adding_up(const Call &call, const Terms &terms) {
    if (!terms.adds_up())
        throw Failure(sqlstate::kNotConsumable,
                      "metric \"" + shown(call.metric_text) + "\" bills the " +
                          kAggregationNames[static_cast<int>(terms.aggregation)] +
                          " of its events, which cannot be held against a quota",
                      "Record it with billing.record_usage(); only sums, counts and gauges have caps.");
}

Terms &terms_of(const Call &call) {
    return *pg_call(
        [&] { return terms::in_force(call.relation, call.tenant_text, call.metric_text, call.occurred_at); });
}

}  // namespace pg_billing
