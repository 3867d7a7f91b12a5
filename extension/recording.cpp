#include "extension/recording.hpp"

#include <optional>

#include "extension/ledger_write.hpp"
#include "extension/metering.hpp"
#include "extension/sqlstate.hpp"
#include "extension/ticks.hpp"

namespace pg_billing {
namespace {

bool key_known(const Call &call) {
    return call.key && pg_call([&] { return ledger::key_known(call.tenant, call.key); });
}

}  // namespace

Decision record(const Call &call, Terms &cached, int64 units, bool enforced, Terms &terms) {
    terms = cached;
    if (enforced && terms.refusal != Refusal::none) {
        Decision decision = decide_refused(terms);
        if (key_known(call)) {
            decision.status = "duplicate";
            decision.allowed = true;
        }
        return decision;
    }
    const bool counted = terms.adds_up();
    Fit fit{true, 0, 0};
    std::optional<Failure> below_zero;
    try {
        if (counted && enforced) {
            fit = reserve_room(call, cached, units, terms);
        } else if (counted) {
            fit = reserve(call, cached, units, false);
            terms = cached;
        }
    } catch (const Failure &failure) {
        if (failure.sqlstate() != sqlstate::kBelowZero)
            throw;
        below_zero = failure;
    }
    if (below_zero) {
        if (!key_known(call))
            throw *below_zero;
        return decide_allowed("duplicate", terms, pg_billing::fit(call, cached, 0).used);
    }
    if (!fit.fits && call.key) {
        // What is in the way may be this key's first attempt: once that has ended, either it is known or there is room.
        if (key_known(call))
            return decide_allowed("duplicate", terms, fit.used);
        fit = reserve_room(call, terms_of(call), units, terms);
    }
    if (!fit.fits)
        return decide_denied(terms, terms.limits[fit.limit], fit.used);
    const bool fresh = pg_call([&] {
        return ledger::write_event({call.tenant, call.metric, NumericGetDatum(call.quantity), call.key,
                                    call.properties, ticks::join(), call.occurred_at, call.now,
                                    terms.period().start});
    });
    if (!fresh && counted) {
        take_back(terms, units);
        fit.used -= units;
    }
    Decision decision = decide_allowed(fresh ? "recorded" : "duplicate", terms, fit.used);
    if (!counted)
        decision.limit = nullptr;
    return decision;
}

}  // namespace pg_billing
