// Corrections: set_usage states the level of a gauge, void_usage takes back an event.
//
// Both add an event and change none: a gauge's event is the difference to its level so far, a voided event's counterpart
// is the same with the quantity negated. So aggregates, Stripe and every reader see a correction as they see usage.
#include "extension/ledger_write.hpp"
#include "extension/metering.hpp"
#include "extension/quantity.hpp"
#include "extension/sqlstate.hpp"
#include "extension/ticks.hpp"
#include "extension/void_ledger.hpp"

namespace pg_billing {
namespace {

constexpr size_t kMaxReasonBytes = 1000;

Datum set_usage(FunctionCallInfo fcinfo) {
    if (PG_ARGISNULL(2))
        throw Failure(sqlstate::kInvalidQuantity, "level is null", "Give the level that the gauge has.");
    Call call = read_call(fcinfo);
    read_event(fcinfo, 3, call);
    require_writable();
    const Terms &cached = terms_of(call);
    check_terms(call, cached);
    if (!cached.is_gauge)
        throw Failure(sqlstate::kInvalidArgument,
                      "metric \"" + shown(call.metric_text) + "\" is a counter and has no level to set",
                      "Record its usage with billing.record_usage().");
    lock_level(call);
    Terms terms = terms_of(call);  // as of now: that may have waited
    const int64 level = check_terms(call, terms);
    if (level < 0)
        throw Failure(sqlstate::kInvalidQuantity, "level " + shown(call.quantity) + " is negative",
                      "A gauge is never below zero.");
    const int64 difference = level - level_of(call, terms);
    Fit fit = reserve(call, terms, difference, false);
    const bool fresh = pg_call([&] {
        return ledger::write_event(
            {call.tenant, call.metric, NumericGetDatum(from_units(difference, terms.scale)), call.key,
             call.properties, ticks::join(), call.occurred_at, call.now, terms.period().start});
    });
    if (!fresh) {
        take_back(terms, difference);
        fit.used -= difference;
    }
    const Decision decision = decide_allowed(fresh ? "recorded" : "duplicate", terms, fit.used);
    return pg_call([&] { return decision_datum(fcinfo, terms, decision); });
}

Datum read_reason(FunctionCallInfo fcinfo, int n) {
    if (!PG_ARGISNULL(n)) {
        const Datum reason = pg_call([&] { return PointerGetDatum(PG_GETARG_TEXT_PP(n)); });
        if (!text_view(reason).empty() && text_view(reason).size() <= kMaxReasonBytes)
            return reason;
    }
    throw Failure(sqlstate::kInvalidArgument, "the reason is null, empty or longer than 1000 bytes",
                  "Say why the usage is taken back; it is kept with the event.");
}

void require_voidable(const Call &call, const Terms &terms) {
    if (!terms.adds_up())
        throw Failure(sqlstate::kNotConsumable,
                      "metric \"" + shown(call.metric_text) + "\" bills the " +
                          kAggregationNames[static_cast<int>(terms.aggregation)] +
                          " of its events, from which none can be taken back",
                      "Only what adds up can be subtracted: sums, counts and gauges.");
}

Datum void_usage(FunctionCallInfo fcinfo) {
    Call call = read_tenant(fcinfo);
    read_key(fcinfo, 1, call);
    if (!call.key)
        throw Failure(sqlstate::kInvalidIdempotencyKey, "idempotency key is null",
                      "Only usage that was recorded with a key can be voided.");
    const Datum reason = read_reason(fcinfo, 2);
    require_writable();
    TimestampTz tick = 0;
    const ledger::KeyState state = pg_call([&] { return ledger::lock_key(call.tenant, call.key, &tick); });
    if (state == ledger::KeyState::unknown)
        throw Failure(sqlstate::kUnknownKey,
                      "tenant \"" + shown(call.tenant_text) + "\" has no usage with idempotency key \"" +
                          shown(call.key_text) + "\"",
                      "Only usage that was recorded with a key can be voided, as long as the key is kept.");
    ledger::Event event;
    if (!pg_call([&] { return ledger::find_event(call.tenant, call.key, tick, &event); }))
        throw Failure(sqlstate::kEventNotKept,
                      "the usage with idempotency key \"" + shown(call.key_text) + "\" is not kept any more",
                      "Its partition was dropped; what it adds up to stays in billing.usage_aggregates.");
    call.metric = event.metric;
    call.metric_text = text_view(event.metric);
    call.quantity = DatumGetNumeric(event.quantity);
    call.occurred_at = event.occurred_at;
    Terms terms = with_period(terms_to_record(call), event.period_start);
    const int64 units = check_terms(call, terms);
    require_voidable(call, terms);
    Decision decision;
    if (state == ledger::KeyState::voided) {
        decision = decide_allowed("duplicate", terms, fit(call, terms, 0).used);
    } else {
        const Fit fit = reserve(call, terms, -units, false);
        pg_call([&] {
            event.tenant = call.tenant;
            event.key = call.key;
            event.quantity = DirectFunctionCall1(numeric_uminus, event.quantity);
            event.tick = ticks::join();
            event.recorded_at = call.now;
            event.void_reason = reason;
            ledger::write_void(event);
        });
        decision = decide_allowed("recorded", terms, fit.used);
    }
    return pg_call([&] { return decision_datum(fcinfo, terms, decision); });
}

// Of billing.repair(), which has changed what counters are loaded from, and kept everybody else from using them.
Datum match_counters(FunctionCallInfo fcinfo) {
    Call call = read_names(fcinfo);
    call.occurred_at = PG_GETARG_TIMESTAMPTZ(2);
    Terms terms = with_period(terms_of(call), PG_GETARG_TIMESTAMPTZ(3));
    match_tables(call, terms);
    PG_RETURN_VOID();
}

}  // namespace
}  // namespace pg_billing

using namespace pg_billing;

PG_BILLING_FUNCTION(pg_billing_set_usage) {
    return pg_entry([&] { return set_usage(fcinfo); });
}

PG_BILLING_FUNCTION(pg_billing_void_usage) {
    return pg_entry([&] { return void_usage(fcinfo); });
}

PG_BILLING_FUNCTION(pg_billing_match_counters) {
    return pg_entry([&] { return match_counters(fcinfo); });
}
