// The stripe job: makes requests of what is due, sends them, many at a time, and settles them by their answers, until
// nothing is due any more. What is due and what an answer changes is SQL's business (billing._stripe_*).
//
// Invariants:
//   - No transaction is open while Stripe is waited for: planning, claiming and settling are transactions of their own,
//     and interrupts are served at least every quarter of a second.
//   - No more requests are sent in a second than the pace allows, and none to a Stripe that does not answer: then the
//     run fails, the launcher starts the next one later and later, and that one begins with a single request.
//   - A request is sent only after its claim has committed, and always as its row holds it, so that a repeat after
//     a crash is the same request with the same idempotency key.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "stripe/form.hpp"
#include "stripe/pace.hpp"
#include "stripe/retry.hpp"
#include "worker/key_file.hpp"
#include "worker/transfer.hpp"

#include "worker/session.hpp"
#include "worker/settings.hpp"

extern "C" {
#include "common/pg_prng.h"
}

namespace pg_billing {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::chrono::milliseconds kSlice = 250ms, kShortSlice = 50ms;
// While transfers are under way: how soon to plan again after one has ended, for its answer may make the next request
// possible, and how soon to look for new work and retries when none ends. Planning is no more than a tenth of the work.
constexpr auto kPlanAfterAnswer = 250ms;
constexpr auto kLookEvery = 2s;
constexpr int kPlanShare = 10;
// Answers that come this soon after each other are settled together: a commit costs more than an answer.
constexpr auto kTogether = 50ms;
// So many seconds' worth of requests are planned ahead.
constexpr int kStockSeconds = 10, kLeastStock = 1000;

// A claimed row of the outbox, as much of it as settling needs.
struct Claim {
    std::string tenant, id, what;
    int attempt;
};

// What became of one attempt, as _stripe_settle takes it.
struct Settlement {
    Claim claim;
    stripe::Outcome outcome = stripe::Outcome::failed;
    Value status, response, error;
    std::chrono::milliseconds retry_in{0};
};

class StripeSync {
  public:
    StripeSync(Session &session, const ApiKey &key)
        : session_(session),
          timeout_(number_setting("pg_billing.stripe_timeout")),
          concurrency_(static_cast<std::size_t>(number_setting("pg_billing.stripe_concurrency"))),
          stock_(std::max(kLeastStock, number_setting("pg_billing.stripe_rate") * kStockSeconds)),
          pace_(number_setting("pg_billing.stripe_rate"), Clock::now()),
          breaker_(session.previous_failed()),
          transfers_(
              {text_setting("pg_billing.stripe_api_base"), text_setting("pg_billing.stripe_api_version"),
               text_setting("pg_billing.stripe_ca_file"), timeout_},
              key) {}

    void run();

  private:
    Session &session_;
    const std::chrono::seconds timeout_;
    const std::size_t concurrency_;
    const int stock_;
    stripe::Pace pace_;
    stripe::Breaker breaker_;
    Transfers transfers_;
    std::map<std::size_t, Claim> under_way_;
    std::vector<Settlement> settlements_;  // not written yet
    std::size_t next_tag_ = 0;
    std::size_t delivered_ = 0, retried_ = 0, failed_ = 0;
    bool stopping_ = false;  // claim nothing more: Stripe refuses us, or cannot be reached
    std::string trouble_;    // the latest

    std::size_t room(Clock::time_point now);
    bool plan();
    std::size_t claim(std::size_t room);
    void send(const Row &row);
    bool take_answers(std::chrono::milliseconds slice);
    void take(const Finished &finished);
    void note(Claim claim, const stripe::Verdict &verdict, const stripe::Answer &answer);
    void settle();
    void write(const Settlement &settlement);
    void pause(const std::string &reason);
    void report() const;
};

// How many requests may be claimed now, and so sent at once.
std::size_t StripeSync::room(Clock::time_point now) {
    const std::size_t lanes = breaker_.probing() ? 1 : concurrency_;
    return std::min(lanes - std::min(lanes, transfers_.in_flight()), pace_.room(now));
}

void StripeSync::run() {
    Clock::time_point planned, claimed;
    Clock::duration planning{};  // how long the latest plan took
    bool answered = false;       // a transfer has ended since the latest plan
    bool freed = true;           // one has ended since the latest claim
    bool dry = true;             // the latest claim got less than it asked for
    for (;;) {
        session_.serve_interrupts();
        const auto now = Clock::now();
        const std::size_t room = stopping_ ? 0 : this->room(now);
        const bool idle = transfers_.in_flight() == 0;
        bool found = idle && room == 0 && !stopping_;  // the pace holds us up: nobody knows yet what is due
        // With more to send than there is room for, planning waits until nothing moves: it is how we notice, too, that the
        // extension is gone.
        if (idle
                ? room > 0
                : !stopping_ && now - (dry ? planned : std::max(planned, claimed)) >=
                                    std::max<Clock::duration>(dry && answered ? kPlanAfterAnswer : kLookEvery,
                                                              planning * kPlanShare)) {
            found = plan();
            planned = Clock::now();
            planning = planned - now;
            answered = false;
        }
        if (room > 0 && (found || freed || !dry || now - claimed >= kLookEvery)) {
            const std::size_t taken = claim(room);
            pace_.sent(taken);
            dry = taken < room;
            found = found || taken > 0;
            claimed = now;
            freed = false;
        }
        if (transfers_.in_flight() == 0 && !found)
            break;
        // With lanes free and more to send, only until the pace allows some again.
        const bool held_up = !dry && transfers_.in_flight() < concurrency_ && !breaker_.probing();
        const auto slice = held_up ? std::clamp(pace_.until_room(), kShortSlice, kSlice) : kSlice;
        if (take_answers(slice))
            answered = freed = true;
    }
    report();
    // Every row has its own retry; a Stripe that nobody reaches is the job's failure, with the job's backoff.
    if (breaker_.outage())
        throw Failure(ERRCODE_CONNECTION_FAILURE, "cannot reach Stripe: " + trouble_);
}

bool StripeSync::plan() {
    session_.begin_round();
    return session_.transaction("planning requests to Stripe", [&] {
        return session_.query("SELECT billing._stripe_plan($1::int)", {std::to_string(stock_)}).at(0).at(0) !=
               "0";
    });
}

std::size_t StripeSync::claim(std::size_t room) {
    // Long enough that no row is claimed anew while its transfer may still end.
    const std::string lease = std::to_string((timeout_ * 2 + 60s).count()) + " seconds";
    const std::vector<Row> rows = session_.transaction("claiming requests to Stripe", [&] {
        return session_.query(
            "SELECT tenant_id, id, attempt, method, path, params, idempotency_key"
            " FROM billing._stripe_claim($1::int, $2::interval)",
            {std::to_string(room), lease});
    });
    for (const Row &row : rows)
        send(row);
    settle();
    return rows.size();
}

void StripeSync::send(const Row &row) {
    Claim claim{row[0].value(), row[1].value(), *row[3] + " " + *row[4], std::stoi(row[2].value())};
    try {
        Request request{next_tag_, *row[3], *row[4], stripe::encode_form(nlohmann::json::parse(*row[5])),
                        *row[6]};
        transfers_.start(request);
    } catch (const stripe::FormError &e) {
        stripe::Verdict unsendable;
        unsendable.outcome = stripe::Outcome::failed;
        unsendable.reason = e.what();
        note(std::move(claim), unsendable, {});
        return;
    }
    under_way_.emplace(next_tag_++, std::move(claim));
}

// Waits for answers, at most the slice and a moment more, and settles them together; returns whether there were any.
bool StripeSync::take_answers(std::chrono::milliseconds slice) {
    std::vector<Finished> finished = transfers_.poll(slice);
    if (finished.empty())
        return false;
    const auto until = Clock::now() + kTogether;
    const auto left = [&] { return std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()); };
    while (transfers_.in_flight() > 0 && left() > 0ms)
        for (Finished &more : transfers_.poll(left()))
            finished.push_back(std::move(more));
    for (const Finished &one : finished)
        take(one);
    settle();
    return true;
}

void StripeSync::take(const Finished &finished) {
    Claim claim = std::move(under_way_.extract(finished.tag).mapped());
    const stripe::Verdict verdict = stripe::judge(finished.answer);
    pace_.answered(finished.answer, Clock::now());
    breaker_.answered(finished.answer);
    if (verdict.outcome == stripe::Outcome::pause && !stopping_)
        pause(claim.what + ": " + verdict.reason);
    stopping_ = stopping_ || breaker_.open();
    note(std::move(claim), verdict, finished.answer);
}

void StripeSync::note(Claim claim, const stripe::Verdict &verdict, const stripe::Answer &answer) {
    using stripe::Outcome;
    Settlement settlement;
    // A pause is not the request's fault: it is sent again when submission is resumed.
    settlement.outcome = verdict.outcome == Outcome::pause ? Outcome::retry : verdict.outcome;
    (settlement.outcome == Outcome::delivered ? delivered_
     : settlement.outcome == Outcome::failed  ? failed_
                                              : retried_)++;
    if (settlement.outcome != Outcome::delivered)
        trouble_ = claim.what + ": " + verdict.reason;
    settlement.retry_in =
        stripe::retry_delay(claim.attempt, answer.retry_after, pg_prng_double(&pg_global_prng_state));
    if (answer.status)
        settlement.status = std::to_string(answer.status);
    // The body itself, not the parsed one: its numbers keep their digits.
    if (verdict.response.is_object())
        settlement.response = answer.body;
    if (!verdict.reason.empty())
        settlement.error = verdict.reason;
    settlement.claim = std::move(claim);
    settlements_.push_back(std::move(settlement));
}

void StripeSync::settle() {
    if (settlements_.empty())
        return;
    const std::vector<Settlement> settlements = std::exchange(settlements_, {});
    const auto write_all = [&](auto first, auto last) {
        session_.transaction("settling requests to Stripe",
                             [&] { std::for_each(first, last, [&](const Settlement &s) { write(s); }); });
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

void StripeSync::write(const Settlement &s) {
    session_.query(
        "SELECT billing._stripe_settle($1, $2::bigint, $3::int, $4, $5::int, $6::jsonb, $7, $8::interval)",
        {s.claim.tenant, s.claim.id, std::to_string(s.claim.attempt), stripe::outcome_name(s.outcome),
         s.status, s.response, s.error, std::to_string(s.retry_in.count()) + " milliseconds"});
}

void StripeSync::pause(const std::string &reason) {
    stopping_ = true;
    session_.transaction("pausing submission to Stripe",
                         [&] { session_.query("SELECT billing._stripe_pause($1)", {reason}); });
}

// One line for a run that had trouble; every request's own error is in its row.
void StripeSync::report() const {
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

// Returns when the job is to run next: at its interval, or earlier if a retry is waiting.
TimestampTz next_run(Session &session) {
    const TimestampTz now = GetCurrentTimestamp();
    const Value wait = session.transaction("looking for retries", [&] {
        return session
            .query(
                "SELECT ceil(extract(epoch FROM billing._stripe_next_due() - clock_timestamp()) * "
                "1000)::bigint")
            .at(0)
            .at(0);
    });
    const TimestampTz regular = next_tick(kStripeJob, now);
    return wait ? std::min<TimestampTz>(regular, TimestampTzPlusMilliseconds(now, std::stoll(*wait)))
                : regular;
}

// Returns whether the key is for live mode, as its prefix tells (sk_live_…, rk_test_…); null where it tells neither.
Value live_mode(const ApiKey &key) {
    const std::string_view text = key.text();
    const std::string_view mode = text.substr(std::min(text.find('_'), text.size()));
    return mode.starts_with("_live_") ? Value("true") : mode.starts_with("_test_") ? Value("false") : Value();
}

TimestampTz sync_with_stripe(Session &session) {
    const std::string path = text_setting("pg_billing.stripe_api_key_file");
    if (path.empty())
        return next_tick(kStripeJob, GetCurrentTimestamp());
    const auto not_ready = [&] {
        const Value reason = session.transaction("looking at Stripe's state", [&] {
            return session.query("SELECT billing._stripe_ready()").at(0).at(0);
        });
        session.notice(reason ? "submission to Stripe is paused: " + *reason : "");
        return reason.has_value();
    };
    if (not_ready())
        return next_tick(kStripeJob, GetCurrentTimestamp());
    const ApiKey key(path);
    session.transaction("noting the API key's mode", [&] {
        session.query("SELECT billing._stripe_note_mode($1::boolean)", {live_mode(key)});
    });
    StripeSync(session, key).run();
    return not_ready() ? next_tick(kStripeJob, GetCurrentTimestamp()) : next_run(session);
}

}  // namespace
}  // namespace pg_billing

extern "C" PGDLLEXPORT void stripe_main(Datum database) {
    pg_billing::run_job(pg_billing::kStripeJob, DatumGetObjectId(database), pg_billing::sync_with_stripe);
}
