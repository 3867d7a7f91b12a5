#include "extension/reservations.hpp"

#include "extension/clock.hpp"
#include "extension/ledger_write.hpp"
#include "extension/metering.hpp"
#include "extension/quantity.hpp"
#include "extension/reservation_ledger.hpp"
#include "extension/settings.hpp"
#include "extension/sqlstate.hpp"
#include "extension/ticks.hpp"

extern "C" {
#include "utils/fmgrprotos.h"
}

namespace pg_billing {
namespace {

using ledger::Reservation;
using State = ledger::ReservationState;

constexpr int kMaxDays = 7;      // of a reservation's life
constexpr int kMaxBatch = 1000;  // reservations that are marked as expired, or forgotten, in one statement

// Reads how long the reservation is to live, and returns when it expires.
TimestampTz read_expiry(FunctionCallInfo fcinfo, int n, TimestampTz now) {
    const char *text = "null";
    if (!PG_ARGISNULL(n)) {
        const Datum ttl = PG_GETARG_DATUM(n);
        const Interval none{}, most{0, kMaxDays, 0};
        const auto compare = [&](const Interval &other) {
            return pg_call([&] {
                return DatumGetInt32(DirectFunctionCall2(interval_cmp, ttl, IntervalPGetDatum(&other)));
            });
        };
        if (compare(none) > 0 && compare(most) <= 0)
            return pg_call([&] {
                return DatumGetTimestampTz(
                    DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now), ttl));
            });
        text = pg_call([&] { return DatumGetCString(DirectFunctionCall1(interval_out, ttl)); });
    }
    throw Failure(sqlstate::kInvalidArgument, std::string("ttl ") + text + " is not valid",
                  "A reservation is held for more than nothing and for 7 days at most.");
}

void refuse_negative(const Call &call, int64 units) {
    if (units < 0)
        throw Failure(sqlstate::kInvalidQuantity, "quantity " + shown(call.quantity) + " is negative",
                      "Only what is going to be used can be held.");
}

// Returns the usage that a reservation stands for: of its tenant and metric, when it was made.
Call call_of(const Reservation &reservation) {
    Call call = begin_call();
    call.tenant = reservation.tenant;
    call.metric = reservation.metric;
    call.tenant_text = text_view(call.tenant);
    call.metric_text = text_view(call.metric);
    call.quantity = reservation.quantity;
    call.occurred_at = reservation.reserved_at;
    return call;
}

int64 units_of(const Reservation &reservation, const Terms &terms) {
    return pg_call([&] { return total_to_units(reservation.quantity, terms.scale); });
}

// Gives back what the reservation holds. If its tenant or metric is gone, nobody will ask its counters again.
Fit give_back(const Reservation &reservation, const Call &call, Terms &terms) {
    if (!terms.tenant_known || !terms.metric_known)
        return {true, 0, 0};
    return reserve(call, terms, Change::hold(-units_of(reservation, terms)), false);
}

uint64 expire(Datum tenant, Datum metric, TimestampTz now, int limit) {
    uint64 count;
    const Reservation *expired =
        pg_call([&] { return ledger::lock_expired(tenant, metric, now, limit, &count); });
    for (uint64 i = 0; i < count; i++) {
        const Call call = call_of(expired[i]);
        Terms terms = with_period(terms_of(call), expired[i].period_start);
        give_back(expired[i], call, terms);
        // Not before: a counter that is loaded has to find it held.
        pg_call([&] { ledger::end_reservation(expired[i], State::expired, nullptr); });
    }
    return count;
}

Datum reserve_for_later(FunctionCallInfo fcinfo) {
    Call call = read_call(fcinfo);
    const TimestampTz expires_at = read_expiry(fcinfo, 3, call.now);
    read_key(fcinfo, 4, call);
    require_writable();
    Terms &cached = terms_of(call);
    const int64 units = check_terms(call, cached);
    refuse_negative(call, units);
    require_adding_up(call, cached);

    Terms terms = cached;
    Decision decision = decide_refused(terms);
    Fit fit{false, 0, 0};
    if (terms.refusal == Refusal::none) {
        fit = reserve_room(call, cached, Change::hold(units), terms);
        decision = fit.fits ? decide_allowed("allowed", terms, fit.used)
                            : decide_denied(terms, terms.limits[fit.limit], fit.used);
    }
    pg_uuid_t id;
    bool made = false;
    if (fit.fits) {
        mark_held(terms);
        made = pg_call([&] {
            id = *DatumGetUUIDP(DirectFunctionCall1(gen_random_uuid, 0));
            return ledger::write_reservation({id, call.tenant, call.metric, from_units(units, terms.scale),
                                              State::held, terms.period().start, call.now, expires_at,
                                              call.key});
        });
        if (!made) {
            take_back(terms, Change::hold(units));
            fit.used -= units;
        }
    }
    // What a known key stands for is held, or was: it is neither held again nor denied.
    const bool known =
        !made && call.key && pg_call([&] { return ledger::find_reservation(call.tenant, call.key, &id); });
    if (known && terms.refusal == Refusal::none)
        decision = decide_allowed("duplicate", terms, fit.used);
    if (known) {
        decision.status = "duplicate";
        decision.allowed = true;
    }
    if (fit.fits && !made && !known)
        throw Failure(ERRCODE_T_R_SERIALIZATION_FAILURE,
                      "the reservation with this idempotency key was just forgotten", "Try again.");
    return pg_call([&] { return reservation_datum(fcinfo, made || known ? &id : nullptr, terms, decision); });
}

// Reads the reservation that the first argument names and locks it. Another tenant's is as good as none.
Reservation lock_named(FunctionCallInfo fcinfo) {
    begin_call();
    const std::string tenant(tenant_of_session());
    std::string id = "null";
    if (!PG_ARGISNULL(0)) {
        const pg_uuid_t &named = *PG_GETARG_UUID_P(0);
        Reservation reservation{};
        if (pg_call([&] {
                return ledger::lock_reservation(named, tenant.empty() ? nullptr : tenant.c_str(),
                                                &reservation);
            }))
            return reservation;
        id = shown(named);
    }
    throw Failure(sqlstate::kUnknownReservation, "unknown reservation " + id,
                  "billing.reserve() returns the id; an ended reservation is forgotten after some weeks.");
}

[[noreturn]] void refuse_ended(const Reservation &reservation) {
    throw Failure(sqlstate::kReservationEnded,
                  "reservation " + shown(reservation.id) + " was " +
                      ledger::kReservationStates[static_cast<int>(reservation.state)],
                  "A reservation ends once: settled with what was used, or released unused.");
}

Datum settle(FunctionCallInfo fcinfo) {
    require_writable();
    const Reservation reservation = lock_named(fcinfo);
    if (reservation.state == State::released)
        refuse_ended(reservation);
    Call call = call_of(reservation);
    if (PG_ARGISNULL(1))
        throw Failure(sqlstate::kInvalidQuantity, "quantity is null",
                      "Give the amount that was used; release the reservation if nothing was.");
    call.quantity = pg_call([&] { return PG_GETARG_NUMERIC(1); });
    read_properties(fcinfo, 2, call);
    Terms terms = with_period(terms_to_record(call), reservation.period_start);
    const int64 units = check_terms(call, terms);
    refuse_negative(call, units);
    Decision decision;
    if (reservation.state == State::settled) {
        decision = decide_allowed("duplicate", terms, fit(call, terms, 0).used);
    } else {
        // Work that outlived its reservation has happened all the same: it is recorded as any that comes late.
        if (reservation.state == State::expired)
            check_time(call);
        const std::string id = shown(reservation.id);
        call.key =
            reservation.key ? reservation.key : pg_call([&] { return CStringGetTextDatum(id.c_str()); });
        const int64 held = reservation.state == State::held ? units_of(reservation, terms) : 0;
        const Change change{units - held, units};
        Fit fit = reserve(call, terms, change, false);
        const bool fresh = pg_call([&] {
            return ledger::write_event({call.tenant, call.metric, NumericGetDatum(call.quantity), call.key,
                                        call.properties, ticks::join(), call.occurred_at, call.now,
                                        terms.period().start});
        });
        if (!fresh) {
            take_back(terms, change);
            fit = reserve(call, terms, Change::hold(-held), false);
        }
        pg_call([&] {
            ledger::end_reservation(reservation, State::settled, fresh ? call.quantity : int64_to_numeric(0));
        });
        decision = decide_allowed(fresh ? "recorded" : "duplicate", terms, fit.used);
    }
    return pg_call([&] { return decision_datum(fcinfo, terms, decision); });
}

Datum release(FunctionCallInfo fcinfo) {
    require_writable();
    const Reservation reservation = lock_named(fcinfo);
    if (reservation.state == State::settled)
        refuse_ended(reservation);
    const Call call = call_of(reservation);
    Terms terms = with_period(terms_of(call), reservation.period_start);
    const bool held = reservation.state == State::held;
    int64 used;
    if (held) {
        used = give_back(reservation, call, terms).used;
        pg_call([&] { ledger::end_reservation(reservation, State::released, nullptr); });
    } else {
        used = fit(call, terms, 0).used;
    }
    const Decision decision = decide_allowed(held ? "allowed" : "duplicate", terms, used);
    return pg_call([&] { return decision_datum(fcinfo, terms, decision); });
}

}  // namespace

bool give_back_expired(const Call &call) {
    return expire(call.tenant, call.metric, call.now, kMaxBatch) > 0;
}

}  // namespace pg_billing

using namespace pg_billing;

PG_BILLING_FUNCTION(pg_billing_reserve) {
    return pg_entry([&] { return reserve_for_later(fcinfo); });
}

PG_BILLING_FUNCTION(pg_billing_settle) {
    return pg_entry([&] { return settle(fcinfo); });
}

PG_BILLING_FUNCTION(pg_billing_release) {
    return pg_entry([&] { return release(fcinfo); });
}

// billing.expire_reservations() frees what some of the reservations that have expired hold, so many at once that their
// counters have room beside others', and forgets some that ended when nothing of their time can be recorded any more.
// Returns how many both were.
PG_BILLING_FUNCTION(pg_billing_expire_reservations) {
    return pg_entry([&]() -> Datum {
        require_writable();
        const TimestampTz now = begin_call().now;
        const uint64 expired = expire(0, 0, now, Min(kMaxBatch, settings::max_counters / 8 + 1));
        const int64 kept = Max(settings::late_limit * USECS_PER_SEC, kMaxDays * USECS_PER_DAY);
        PG_RETURN_INT64(expired +
                        pg_call([&] { return ledger::forget_reservations(now - kept, kMaxBatch); }));
    });
}
