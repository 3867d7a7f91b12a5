// record_usage_batch: many events in one call, each with its own result.
//
// Invariants:
//   - An event is recorded as record_usage() would: never denied, once per key. One that is wrong is rejected and does
//     nothing to the others; any other error fails the call, and nothing is left.
//   - Keys are written first, in their order, all in one statement: two batches with the same keys never wait for each
//     other in a circle. What they add up to is reserved on the counters then, and the events are written last. So
//     a duplicate is never counted, not for a moment.
//   - Counters are held before anything is written: an event for whose counter there is no room is rejected.
//   - Results are those of single calls in the order given.
#include <algorithm>
#include <iterator>

#include "extension/batch_events.hpp"
#include "extension/decision.hpp"
#include "extension/event_key.hpp"
#include "extension/metering.hpp"
#include "extension/ticks.hpp"

extern "C" {
#include "access/xlog.h"
#include "funcapi.h"
}

namespace pg_billing {

// Events of a tenant and metric with the same terms.
struct Group {
    const Call *call;  // the first
    Terms terms;
    const char *rejection;      // of all its events
    int64 largest;              // of the numbers on its counters, when they were held
    int64 admitted;             // units of its events
    int64 fresh;                // units of those that are recorded
    int64 recorded, duplicate;  // events
    Group *period;   // the first group with the same counter of the period, which alone has the next two
    int64 reserved;  // units of them all
    int64 used;      // what that counter says after an event, in the order given
    Group *next;
};

namespace {

// Runs f and returns what it finds wrong with an event, or null.
template <class F>
const char *rejection_by(F &&f) {
    detail::Report report;
    try {
        f();
        return nullptr;
    } catch (const Failure &failure) {
        report.sqlstate = failure.sqlstate();
        detail::Report::copy(report.message, failure.message().c_str());
    }
    return pg_call([&] { return psprintf("%s: %s", unpack_sql_state(report.sqlstate), report.message); });
}

// The groups of one tenant at a time: few, so they are searched one by one.
class Groups {
  public:
    Group *first() const { return first_; }

    // Returns the event's group, with its counters held.
    Group *of(const Call &call) {
        if (tenant_ && tenant_->call->tenant_text != call.tenant_text)
            tenant_ = nullptr;
        for (Group *group = tenant_; group; group = group->next)
            if (group->call->metric_text == call.metric_text && group->terms.valid_from <= call.occurred_at &&
                call.occurred_at < group->terms.valid_until)
                return group;
        return add(call);
    }

  private:
    Group *add(const Call &call) {
        check_caller(call.tenant_text);
        Terms &cached = *pg_call([&] {
            return terms::in_force(call.relation, call.tenant_text, call.metric_text, call.occurred_at);
        });
        auto *group = static_cast<Group *>(pg_call([] { return palloc0(sizeof(Group)); }));
        group->call = &call;
        if (cached.tenant_known && cached.metric_known && cached.adds_up())
            group->rejection = rejection_by([&] { group->largest = hold_counters(call, cached); });
        group->terms = cached;
        group->period = group;
        for (Group *other = tenant_; other; other = other->next)
            if (other->call->metric_text == call.metric_text &&
                other->terms.period().start == cached.period().start) {
                group->period = other->period;
                break;
            }
        (last_ ? last_->next : first_) = group;
        last_ = group;
        if (!tenant_)
            tenant_ = group;
        return group;
    }

    Group *first_ = nullptr, *last_ = nullptr;
    Group *tenant_ = nullptr;  // the first of the tenant's
};

// Adds the event to its group, or rejects it.
void admit(BatchEvent &event, Groups &groups) {
    event.group = groups.of(event.call);
    event.units = check_terms(event.call, event.group->terms);
    event.rejection = event.group->rejection;
    if (event.rejection || !event.group->terms.adds_up())
        return;
    int64 admitted, used;
    if (__builtin_add_overflow(event.group->admitted, event.units, &admitted) ||
        __builtin_add_overflow(event.group->largest, admitted, &used))
        raise_overflow(event.call);
    event.group->admitted = admitted;
}

struct Order {
    bool operator()(const BatchEvent *one, const BatchEvent *other) const {
        const int keys = ledger::compare(one->key, other->key);
        return keys ? keys < 0 : one->ordinal < other->ordinal;
    }
};

// The events that are admitted, in the order of their keys.
struct Admitted {
    BatchEvent **events;
    int count;
};

template <class T>
T *allocate(int count) {
    return static_cast<T *>(
        pg_call([&] { return MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * sizeof(T)); }));
}

Admitted admit_all(const Batch &batch, Groups &groups) {
    Admitted sound{allocate<BatchEvent *>(batch.count), 0};
    for (BatchEvent *event = batch.events; event < batch.events + batch.count; event++) {
        if (!event->rejection)
            event->rejection = rejection_by([&] {
                check_names(event->call);
                check_event(event->call);
            });
        if (!event->rejection)
            sound.events[sound.count++] = event;
    }
    for (int i = 0; i < sound.count; i++) {
        BatchEvent *event = sound.events[i];
        event->key.tenant = event->call.tenant;
        if (event->call.key)
            event->key.key = event_key(event->call.key_text);
    }
    std::sort(sound.events, sound.events + sound.count, Order());
    Admitted admitted{sound.events, 0};
    for (int i = 0; i < sound.count; i++) {
        BatchEvent *event = sound.events[i];
        if (const char *rejection = rejection_by([&] { admit(*event, groups); }))
            event->rejection = rejection;
        if (!event->rejection)
            admitted.events[admitted.count++] = event;
    }
    return admitted;
}

// Writes the keys; an event is fresh if it has none, or if its key was not known and it is the first with it.
void write_keys(const Admitted &admitted, TimestampTz tick) {
    auto *keys = allocate<ledger::Key>(admitted.count);
    auto *owners = allocate<BatchEvent *>(admitted.count);
    int count = 0;
    for (int i = 0; i < admitted.count; i++) {
        BatchEvent *event = admitted.events[i];
        event->fresh = !event->call.key;
        if (event->fresh || (count > 0 && ledger::compare(keys[count - 1], event->key) == 0))
            continue;
        owners[count] = event;
        keys[count++] = event->key;
    }
    pg_call([&] { ledger::write_keys(keys, count, tick); });
    for (int i = 0; i < count; i++)
        owners[i]->fresh = keys[i].fresh;
}

// Reserves what is new of gauges, one by one in the order given: what would take one below zero is rejected. Its key is
// the next event's with that key, or free again.
void reserve_on_gauges(const Batch &batch, const Admitted &admitted) {
    for (BatchEvent *event = batch.events; event < batch.events + batch.count; event++) {
        if (event->rejection || !event->fresh || !event->group->terms.is_gauge)
            continue;
        event->rejection =
            rejection_by([&] { reserve(event->call, event->group->terms, event->units, false); });
        if (!event->rejection)
            continue;
        event->fresh = false;
        if (!event->call.key)
            continue;
        BatchEvent **end = admitted.events + admitted.count;
        BatchEvent **next = std::find_if(admitted.events, end, [&](const BatchEvent *other) {
            return other->ordinal > event->ordinal && ledger::compare(other->key, event->key) == 0;
        });
        if (next != end)
            (*next)->fresh = true;
        else
            pg_call([&] { ledger::forget_key(event->key); });
    }
}

// Reserves what is new on the counters.
void reserve_all(const Batch &batch, const Admitted &admitted, const Groups &groups) {
    reserve_on_gauges(batch, admitted);
    for (int i = 0; i < admitted.count; i++) {
        const BatchEvent &event = *admitted.events[i];
        if (event.rejection)
            continue;
        if (event.fresh)
            event.group->fresh += event.units;
        (event.fresh ? event.group->recorded : event.group->duplicate)++;
    }
    for (Group *group = groups.first(); group; group = group->next) {
        if (group->recorded + group->duplicate == 0)
            continue;
        if (group->terms.adds_up()) {
            const int64 units = group->terms.is_gauge ? 0 : group->fresh;
            const Fit fit = reserve(*group->call, group->terms, units, false);
            group->period->reserved += group->fresh;
            group->period->used = fit.used - group->period->reserved;
        }
    }
}

void write_events(const Admitted &admitted, TimestampTz tick) {
    auto *rows = allocate<ledger::Event>(admitted.count);
    int count = 0;
    for (int i = 0; i < admitted.count; i++) {
        const BatchEvent &event = *admitted.events[i];
        const Call &call = event.call;
        if (event.fresh)
            rows[count++] = {call.tenant,      call.metric,     NumericGetDatum(call.quantity),
                             call.key,         call.properties, tick,
                             call.occurred_at, call.now,        event.group->terms.period().start};
    }
    pg_call([&] { ledger::write_events(rows, count); });
}

// What a row of results has: the status and its reason, or all of the decision.
enum class Answer { status, decision };

// Returns a row of results for each event, in the order given. Plain calls into PostgreSQL.
void put_results(FunctionCallInfo fcinfo, const Batch &batch, Answer answer) {
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    const MemoryContext row_context =
        AllocSetContextCreate(CurrentMemoryContext, "pg_billing result", ALLOCSET_DEFAULT_SIZES);
    for (int i = 0; i < batch.count; i++) {
        const BatchEvent &event = batch.events[i];
        const MemoryContext before = MemoryContextSwitchTo(row_context);
        Decision decision{"rejected", false, event.rejection};
        if (!event.rejection) {
            const Terms &terms = event.group->terms;
            Group &period = *event.group->period;
            if (event.fresh && terms.adds_up())
                period.used += event.units;
            decision = decide_allowed(event.fresh ? "recorded" : "duplicate", terms, period.used);
            if (!terms.adds_up())
                decision.limit = nullptr;
        }
        enum { ordinal, key, first };
        Datum values[first + kDecisionColumns] = {Int32GetDatum(event.ordinal), event.call.key};
        bool nulls[first + kDecisionColumns] = {false, !event.call.key};
        if (answer == Answer::status) {
            values[first] = CStringGetTextDatum(decision.status);
            values[first + 1] = CStringGetTextDatum(decision.reason);
        } else if (event.rejection) {
            std::fill(nulls + first, std::end(nulls), true);
            nulls[first + kStatus] = nulls[first + kReason] = false;
            values[first + kStatus] = CStringGetTextDatum(decision.status);
            values[first + kReason] = CStringGetTextDatum(decision.reason);
        } else {
            fill_decision(event.group->terms, decision, values + first, nulls + first);
        }
        MemoryContextSwitchTo(before);
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
        MemoryContextReset(row_context);
    }
}

Datum record_batch(FunctionCallInfo fcinfo, const Batch &batch, Answer answer = Answer::status) {
    require_writable();
    Groups groups;
    const Admitted admitted = admit_all(batch, groups);
    if (admitted.count > 0) {
        const TimestampTz tick = pg_call([] { return ticks::join(); });
        write_keys(admitted, tick);
        reserve_all(batch, admitted, groups);
        write_events(admitted, tick);
        for (Group *group = groups.first(); group; group = group->next) {
            stats::count(group->terms.stats, "recorded", nullptr, group->recorded);
            stats::count(group->terms.stats, "duplicate", nullptr, group->duplicate);
        }
    }
    pg_call([&] { put_results(fcinfo, batch, answer); });
    PG_RETURN_VOID();
}

}  // namespace
}  // namespace pg_billing

using namespace pg_billing;

PG_BILLING_FUNCTION(pg_billing_record_usage_batch_jsonb) {
    return pg_entry([&] { return record_batch(fcinfo, read_events_from_jsonb(fcinfo)); });
}

PG_BILLING_FUNCTION(pg_billing_record_usage_batch_arrays) {
    return pg_entry([&] { return record_batch(fcinfo, read_events_from_arrays(fcinfo)); });
}

PG_BILLING_FUNCTION(pg_billing_record_usage_decided) {
    return pg_entry([&] { return record_batch(fcinfo, read_events_from_arrays(fcinfo), Answer::decision); });
}
