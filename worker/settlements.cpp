#include "worker/settlements.hpp"

#include <nlohmann/json.hpp>
#include <utility>

extern "C" {
#include "common/pg_prng.h"
}

namespace pg_billing {

void Settlements::note(std::vector<Claim> claims, const stripe::Verdict &verdict,
                       const stripe::Answer &answer, bool at_once) {
    using stripe::Outcome;
    // A pause is not the request's fault: it is sent again when submission is resumed.
    const Outcome outcome = verdict.outcome == Outcome::pause ? Outcome::retry : verdict.outcome;
    const double random = pg_prng_double(&pg_global_prng_state);
    (outcome == Outcome::delivered ? delivered_
     : outcome == Outcome::failed  ? failed_
                                   : retried_) += claims.size();
    for (Claim &claim : claims) {
        if (outcome != Outcome::delivered)
            trouble_ = claim.what + ": " + verdict.reason;
        Settlement settlement;
        settlement.outcome = outcome;
        if (!at_once)
            settlement.retry_in = stripe::retry_delay(claim.attempt, answer.retry_after, random);
        settlement.status = answer.status;
        // The body itself, not the parsed one: its numbers keep their digits.
        if (verdict.response.is_object())
            settlement.response = answer.body;
        if (!verdict.reason.empty())
            settlement.error = verdict.reason;
        settlement.claim = std::move(claim);
        noted_.push_back(std::move(settlement));
    }
}

void Settlements::write() {
    if (noted_.empty())
        return;
    const std::vector<Settlement> settlements = std::exchange(noted_, {});
    const auto write_all = [&](auto first, auto last) {
        std::string all;
        for (; first != last; ++first)
            all += (all.empty() ? '[' : ',') + as_json(*first);
        session_.transaction("settling requests to Stripe", [&] {
            session_.query("SELECT billing._stripe_settle_all($1::jsonb)", {all + ']'});
        });
    };
    // An answer that this database cannot hold (say, a character its encoding lacks) would come again with every repeat.
    // Anything else (a lock timeout, a shutdown) ends the run; the claims run out.
    const auto unfit = [&](const PgError &e) {
        if (ERRCODE_TO_CATEGORY(e.data()->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
            throw;
        session_.abandon();
    };
    try {
        write_all(settlements.begin(), settlements.end());
        return;
    } catch (const PgError &e) {
        unfit(e);
    }
    for (auto one = settlements.begin(); one != settlements.end(); ++one) {
        try {
            write_all(one, one + 1);
        } catch (const PgError &e) {
            Settlement failed = *one;
            failed.outcome = stripe::Outcome::failed;
            failed.response.reset();
            failed.error = trouble_ = one->claim.what + ": the answer cannot be stored: " + e.what();
            unfit(e);
            failed_++;
            write_all(&failed, &failed + 1);
        }
    }
}

std::string Settlements::as_json(const Settlement &s) {
    nlohmann::json object = {{"tenant_id", s.claim.tenant},
                             {"id", s.claim.id},
                             {"attempt", s.claim.attempt},
                             {"outcome", stripe::outcome_name(s.outcome)},
                             {"retry_in", std::to_string(s.retry_in.count()) + " milliseconds"}};
    if (s.status)
        object["http_status"] = s.status;
    if (s.error)
        object["error"] = *s.error;
    std::string text = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    if (s.response)
        text.replace(text.size() - 1, 1, ",\"response\":" + *s.response + "}");
    return text;
}

void Settlements::report() const {
    if (retried_ + failed_ == 0)
        return;
    pg_call([&] {
        ereport(WARNING,
                errmsg("not all requests were accepted by Stripe: %zu delivered, %zu to be sent again, "
                       "%zu failed",
                       delivered_, retried_, failed_),
                errdetail("The latest trouble was: %s", trouble_.c_str()),
                errhint("See billing.stripe_outbox for each request."));
    });
}

}  // namespace pg_billing
