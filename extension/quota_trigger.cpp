// billing.enforce_quota(): counts the rows of any table, or the sum of a column, per tenant against a metric's quota, in
// the transaction that changes them.
//
// Each firing nets what it adds to and takes from each tenant, and records one event per tenant whose net is not zero:
// a row of an UPDATE nets its old against its new form, a statement trigger all of its rows. What is added is enforced
// as consume() does it. What is taken is a fact: it is never refused, lowers a gauge no further than to zero (the table
// may have had rows before the trigger), and leaves a counter as it is.
//
// Who may fire it is not asked: whoever made the trigger had the right to, and decided.
#include "extension/ledger.hpp"
#include "extension/metering.hpp"
#include "extension/quantity.hpp"
#include "extension/recording.hpp"
#include "extension/sqlstate.hpp"
#include "extension/tally.hpp"
#include "extension/trigger_spec.hpp"

extern "C" {
#include "commands/trigger.h"
}

namespace pg_billing {
namespace {

Datum text_datum(std::string_view value) {
    return pg_call([&] {
        return PointerGetDatum(cstring_to_text_with_len(value.data(), static_cast<int>(value.size())));
    });
}

Call make_call(const TriggerSpec &spec, std::string_view tenant) {
    require_writable();
    Call call = begin_call();
    call.tenant = text_datum(tenant);
    call.tenant_text = tenant;
    call.metric = spec.metric;
    call.metric_text = text_view(spec.metric);
    call.properties = spec.properties;
    return call;
}

void add(const TriggerSpec &spec, std::string_view tenant, Numeric quantity) {
    Call call = make_call(spec, tenant);
    call.quantity = quantity;
    check_names(call);
    Terms &cached = terms_to_record(call);
    const int64 units = check_terms(call, cached);
    require_adding_up(call, cached);
    if (cached.aggregation == Aggregation::count && (spec.quantity || !spec.each_row))
        throw Failure(
            sqlstate::kInvalidArgument,
            "metric \"" + shown(call.metric_text) + "\" counts events, not quantities",
            "Make the trigger FOR EACH ROW without a quantity column, so that each row is one event.");
    Terms terms;
    const Decision decision = record(call, cached, units, true, terms);
    if (!decision.allowed)
        raise_denial(call, terms, decision);
}

void lower(Call &call, int64 units) {
    Terms &cached = terms_to_record(call);
    call.quantity = pg_call([&] { return from_units(-units, cached.scale); });
    Terms terms;
    if (check_terms(call, cached) < 0)
        record(call, cached, -units, false, terms);
}

// Rows that nobody could have counted must stay deletable: those of unknown tenants, or with more decimals than the
// metric keeps.
void take(const TriggerSpec &spec, std::string_view tenant, Numeric quantity) {
    if (tenant.empty() || tenant.size() > kMaxTenantBytes)
        return;
    Call call = make_call(spec, tenant);
    check_names(call);
    const Terms &terms = terms_of(call);
    if (terms.metric_known && !terms.is_gauge)  // an unknown tenant has no gauge either
        return;
    const int64 units = Min(pg_call([&] { return limit_to_units(quantity, terms.scale); }), kMaxQuantity);
    try {
        lower(call, units);
        return;
    } catch (const Failure &failure) {
        if (failure.sqlstate() != sqlstate::kBelowZero)
            throw;
    }
    // That has locked the gauge: nobody else changes its level now.
    Terms locked = terms_of(call);
    lower(call, Min(units, level_of(call, locked)));
}

void count_changes(TriggerData *data, FmgrInfo *function) {
    TriggerSpec &spec = trigger_spec(data, function);
    Tally tally(spec);
    if (TRIGGER_FIRED_BY_TRUNCATE(data->tg_event)) {
        tally.take_all(data->tg_relation);
    } else if (spec.each_row) {
        tally.count(data->tg_trigslot, TRIGGER_FIRED_BY_INSERT(data->tg_event) ? 1 : -1);
        if (TRIGGER_FIRED_BY_UPDATE(data->tg_event))
            tally.count(data->tg_newslot, 1);
    } else {
        const TupleDesc row = RelationGetDescr(data->tg_relation);
        if (data->tg_oldtable)
            tally.count(data->tg_oldtable, row, -1);
        if (data->tg_newtable)
            tally.count(data->tg_newtable, row, 1);
    }
    tally.each([&](std::string_view tenant, int sign, Numeric quantity) {
        (sign > 0 ? add : take)(spec, tenant, quantity);
    });
}

extern "C" void tell_trigger(void *argument) {
    const auto *data = static_cast<const TriggerData *>(argument);
    const Trigger &trigger = *data->tg_trigger;
    errcontext("quota trigger \"%s\" on table \"%s\", tenant column \"%s\"", trigger.tgname,
               RelationGetRelationName(data->tg_relation), trigger.tgnargs > 1 ? trigger.tgargs[1] : "");
}

}  // namespace
}  // namespace pg_billing

using namespace pg_billing;

PG_BILLING_FUNCTION(pg_billing_enforce_quota) {
    if (!CALLED_AS_TRIGGER(fcinfo))
        ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
                        errmsg("billing.enforce_quota() was not called by the trigger manager")));
    auto *data = reinterpret_cast<TriggerData *>(fcinfo->context);
    ErrorContextCallback context{error_context_stack, tell_trigger, data};
    error_context_stack = &context;
    pg_entry([&] { count_changes(data, fcinfo->flinfo); });
    error_context_stack = context.previous;
    return PointerGetDatum(nullptr);
}
