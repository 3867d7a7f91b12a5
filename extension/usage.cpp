// The hot path: record_usage, try_consume, consume and check_quota.
//
// A call reserves on the quota counter first and writes second, both in the caller's transaction: a rollback gives the
// reservation back with the rows. A denied call writes nothing; a known idempotency key changes nothing and is never
// denied, for what it stands for has been counted.
#include <string>
#include <string_view>

#include "extension/clock.hpp"
#include "extension/decision.hpp"
#include "extension/guard.hpp"
#include "extension/journal.hpp"
#include "extension/ledger.hpp"
#include "extension/quantity.hpp"
#include "extension/settings.hpp"
#include "extension/sqlstate.hpp"

extern "C" {
#include "access/xlog.h"
#include "utils/acl.h"
#include "utils/jsonb.h"
}

namespace pg_billing {
namespace {

constexpr int64 kLatest = 35 * USECS_PER_DAY;      // how late an event may be (what Stripe accepts, too)
constexpr int64 kEarliest = 5 * USECS_PER_MINUTE;  // how far ahead
constexpr size_t kMaxKeyBytes = 255;               // as long as Stripe's own idempotency keys

enum class Verb { check, record, consume };

struct Call {
    Datum tenant, metric;
    std::string_view tenant_text, metric_text;
    Numeric quantity;
    Datum key = 0, properties = 0;
    TimestampTz now, occurred_at;
    int64 units = 0;
};

// What of a value is shown in a message: whole characters, and not so many that they crowd out the rest.
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

std::string_view text_argument(FunctionCallInfo fcinfo, int n) {
    const text *value = pg_call([&] { return PG_GETARG_TEXT_PP(n); });
    return {VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)};
}

// Reads and checks the arguments that all verbs have: tenant, metric and quantity.
Call read_call(FunctionCallInfo fcinfo) {
    Call call{};
    if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
        throw Failure(PG_ARGISNULL(0) ? sqlstate::kUnknownTenant : sqlstate::kUnknownMetric,
                      PG_ARGISNULL(0) ? "tenant is null" : "metric is null",
                      "Name the tenant and the metric.");
    call.tenant = PG_GETARG_DATUM(0);
    call.metric = PG_GETARG_DATUM(1);
    call.tenant_text = text_argument(fcinfo, 0);
    call.metric_text = text_argument(fcinfo, 1);
    if (call.tenant_text.empty() || call.tenant_text.size() > kMaxTenantBytes)
        throw Failure(sqlstate::kInvalidTenantId,
                      "tenant id \"" + shown(call.tenant_text) + "\" is empty or longer than 128 bytes",
                      "Use the identifier the tenant was created with.");
    if (PG_ARGISNULL(2))
        throw Failure(sqlstate::kInvalidQuantity, "quantity is null", "Leave it out for 1.");
    call.quantity = pg_call([&] { return PG_GETARG_NUMERIC(2); });
    call.now = call.occurred_at = business_now();
    return call;
}

// Reads and checks the rest: idempotency key, time and properties.
void read_event(FunctionCallInfo fcinfo, Call &call) {
    if (!PG_ARGISNULL(3)) {
        const std::string_view key = text_argument(fcinfo, 3);
        if (key.empty() || key.size() > kMaxKeyBytes)
            throw Failure(sqlstate::kInvalidIdempotencyKey,
                          "idempotency key \"" + shown(key) + "\" is empty or longer than 255 bytes",
                          "Use an identifier of the event, such as a UUID or a request id.");
        call.key = PG_GETARG_DATUM(3);
    }
    if (!PG_ARGISNULL(4)) {
        call.occurred_at = PG_GETARG_TIMESTAMPTZ(4);
        if (TIMESTAMP_NOT_FINITE(call.occurred_at) || call.occurred_at < call.now - kLatest ||
            call.occurred_at > call.now + kEarliest)
            throw Failure(sqlstate::kOutsideWindow,
                          "occurred_at " + shown(call.occurred_at) + " is outside the accepted window",
                          "An event may be up to 35 days late and up to 5 minutes ahead.");
    }
    if (!PG_ARGISNULL(5)) {
        const Jsonb *properties = pg_call([&] { return PG_GETARG_JSONB_P(5); });
        if (!JB_ROOT_IS_OBJECT(properties))
            throw Failure(sqlstate::kInvalidProperties, "properties are not a JSON object",
                          "Give an object such as {\"model\": \"large\"}.");
        call.properties = JsonbPGetDatum(properties);
    }
}

// Lets services act for any tenant unless their session is bound to one, and everybody else for their own only.
void check_caller(const Call &call) {
    std::string_view bound = settings::tenant_id;
    const bool service = pg_call([] {
        return superuser() || has_privs_of_role(GetUserId(), get_role_oid("billing_app", false)) ||
               has_privs_of_role(GetUserId(), get_role_oid("billing_admin", false));
    });
    if (!service) {
        const char *own = pg_call([] { return ledger::tenant_of_caller(); });
        if (!own)
            throw Failure(sqlstate::kNotPermitted, "the session is of no tenant",
                          "Map its role in billing.tenant_roles, or set pg_billing.tenant_id.");
        bound = own;
    }
    if (!bound.empty() && bound != call.tenant_text)
        throw Failure(sqlstate::kNotPermitted,
                      "session of tenant \"" + shown(bound) + "\" may not act for tenant \"" +
                          shown(call.tenant_text) + "\"",
                      "Reset pg_billing.tenant_id or name the session's own tenant.");
}

ledger::Quota find_quota(Call &call) {
    const ledger::Quota quota =
        pg_call([&] { return ledger::quota_in_force(call.tenant, call.metric, call.occurred_at); });
    if (!quota.metric_known)
        throw Failure(sqlstate::kUnknownMetric, "unknown metric \"" + shown(call.metric_text) + "\"",
                      "SELECT name FROM billing.metrics lists the metrics.");
    if (!quota.tenant_known)
        throw Failure(sqlstate::kUnknownTenant, "unknown tenant \"" + shown(call.tenant_text) + "\"",
                      "Create it first with billing.create_customer().");
    switch (pg_call([&] { return to_units(call.quantity, quota.scale, &call.units); })) {
        case Scaling::exact:
            break;
        case Scaling::not_finite:
            throw Failure(sqlstate::kInvalidQuantity,
                          "quantity " + shown(call.quantity) + " is not a finite number",
                          "Give the amount that was used.");
        case Scaling::inexact:
            throw Failure(sqlstate::kQuantityOutOfRange,
                          "quantity " + shown(call.quantity) + " has more decimals than metric \"" +
                              shown(call.metric_text) + "\" keeps, which is " + std::to_string(quota.scale),
                          "Round it, or give the metric a larger scale in billing.metrics.");
        case Scaling::too_large:
            throw Failure(sqlstate::kQuantityOutOfRange,
                          "quantity " + shown(call.quantity) + " is out of range",
                          "A quantity has at most 15 digits, decimals included.");
    }
    if (call.units < 0 && !quota.is_gauge)
        throw Failure(sqlstate::kInvalidQuantity,
                      "quantity " + shown(call.quantity) + " of counter \"" + shown(call.metric_text) +
                          "\" is negative",
                      "Usage of a counter only grows; a gauge may shrink.");
    return quota;
}

// Returns the counter of the period, held for this subtransaction and loaded.
Counter *hold_counter(const Call &call, const ledger::Quota &quota, Oid relation) {
    const CounterKey key =
        make_counter_key(relation, call.tenant_text, call.metric_text, quota.scale, quota.period_start);
    Counter *counter = pg_call([&] { return journal::hold(key); });
    if (!counter)
        throw Failure(
            sqlstate::kNoCounter, "no room for another quota counter",
            "Raise pg_billing.max_counters, or end transactions that use very many tenants at once.");
    if (!counter_ready(counter))
        pg_call([&] {
            publish_counter(counter,
                            ledger::total_used(call.tenant, call.metric, quota.period_start, quota.scale));
        });
    return counter;
}

Decision check(const Call &call, const ledger::Quota &quota, Oid relation) {
    if (quota.refusal)
        return {"denied", false, quota.refusal, false, 0};
    int64 used;
    if (pg_call([] { return RecoveryInProgress(); })) {
        used = pg_call(
            [&] { return ledger::total_used(call.tenant, call.metric, quota.period_start, quota.scale); });
    } else {
        Counter *counter = hold_counter(call, quota, relation);
        used = counter_used(counter);
        journal::release_unused(counter);
    }
    int64 after;
    const bool allowed =
        !__builtin_add_overflow(used, call.units, &after) && (call.units <= 0 || after <= quota.limit);
    if (!allowed)
        return {"denied", false, reason_for_denial(quota), true, used};
    return {"allowed", true, pg_call([&] { return reason_for(quota, after); }), true, used};
}

Decision record(const Call &call, const ledger::Quota &quota, Oid relation, int64 limit) {
    Counter *counter = hold_counter(call, quota, relation);
    int64 used;
    switch (journal::reserve(counter, call.units, limit, &used)) {
        case Reserve::done:
            break;
        case Reserve::over_limit:
            journal::release_unused(counter);
            if (call.key && pg_call([&] { return ledger::key_known(call.tenant, call.key); }))
                return {"duplicate", true, pg_call([&] { return reason_for(quota, used); }), true, used};
            return {"denied", false, reason_for_denial(quota), true, used};
        case Reserve::overflow:
            throw Failure(sqlstate::kQuantityOutOfRange,
                          "quantity " + shown(call.quantity) + " is more than the counter of metric \"" +
                              shown(call.metric_text) + "\" can hold",
                          "Give the metric a smaller scale in billing.metrics.");
    }
    const ledger::Event event{call.tenant, call.metric,       NumericGetDatum(call.quantity),
                              call.key,    call.properties,   call.occurred_at,
                              call.now,    quota.period_start};
    if (pg_call([&] { return ledger::write_event(event); }))
        return {"recorded", true, pg_call([&] { return reason_for(quota, used); }), true, used};
    journal::undo(counter, call.units);
    used -= call.units;
    journal::release_unused(counter);
    return {"duplicate", true, pg_call([&] { return reason_for(quota, used); }), true, used};
}

Datum decide(FunctionCallInfo fcinfo, Verb verb, bool raise_denial = false) {
    Call call = read_call(fcinfo);
    if (verb != Verb::check)
        read_event(fcinfo, call);
    const Oid relation = pg_call([] { return ledger::events_relation(); });
    if (!OidIsValid(relation))
        throw Failure(sqlstate::kNotInstalled, "pg_billing has no tables in this database",
                      "Run SELECT billing.install() as a superuser.");
    check_caller(call);
    const ledger::Quota quota = find_quota(call);

    Decision decision;
    if (verb == Verb::check)
        decision = check(call, quota, relation);
    else if (verb == Verb::record)
        decision = record(call, quota, relation, PG_INT64_MAX);
    else if (!quota.refusal)
        decision = record(call, quota, relation, quota.limit);
    else if (call.key && pg_call([&] { return ledger::key_known(call.tenant, call.key); }))
        decision = {"duplicate", true, quota.refusal, false, 0};
    else
        decision = {"denied", false, quota.refusal, false, 0};

    if (raise_denial && !decision.allowed) {
        std::string detail = std::string("Reason: ") + decision.reason + ".";
        if (decision.used_known)
            detail += " Used " + shown(pg_call([&] { return from_units(decision.used, quota.scale); })) +
                      " of " + shown(quota.quota) +
                      (quota.is_gauge ? "." : "; resets at " + shown(quota.period_end) + ".");
        throw Failure(sqlstate::kQuotaExceeded,
                      "quota exceeded: tenant \"" + shown(call.tenant_text) + "\" asked for " +
                          shown(call.quantity) + " of \"" + shown(call.metric_text) + "\"",
                      "Move the tenant to a larger plan, raise its quota with billing.set_quota(), or wait "
                      "for the reset.",
                      detail);
    }
    return pg_call([&] { return decision_datum(fcinfo, quota, decision); });
}

}  // namespace
}  // namespace pg_billing

using pg_billing::Verb;

PG_BILLING_FUNCTION(pg_billing_record_usage) {
    return pg_billing::pg_entry([&] { return pg_billing::decide(fcinfo, Verb::record); });
}

PG_BILLING_FUNCTION(pg_billing_try_consume) {
    return pg_billing::pg_entry([&] { return pg_billing::decide(fcinfo, Verb::consume); });
}

PG_BILLING_FUNCTION(pg_billing_consume) {
    return pg_billing::pg_entry([&] { return pg_billing::decide(fcinfo, Verb::consume, true); });
}

PG_BILLING_FUNCTION(pg_billing_check_quota) {
    return pg_billing::pg_entry([&] { return pg_billing::decide(fcinfo, Verb::check); });
}
