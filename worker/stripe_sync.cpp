// The stripe job: makes requests of what is due, sends them, many at a time, and settles them by their answers, until
// nothing is due any more. What is due and what an answer changes is SQL's business (billing._stripe_*).
//
// Invariants:
//   - No transaction is open while Stripe is waited for: planning, claiming and settling are transactions of their own,
//     and interrupts are served at least every quarter of a second.
//   - No more requests are sent in a second than the pace allows, and none to a Stripe that does not answer: then the
//     run fails, the launcher starts the next one later and later, and that one begins with a single request.
//   - A request is sent only after its claim has committed, and always as its row holds it, so that a repeat after
//     a crash is the same request with the same idempotency key. Rows for the event stream go many in a request, without
//     a key: each is an event with an identifier of its own.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "stripe/form.hpp"
#include "stripe/pace.hpp"
#include "stripe/retry.hpp"
#include "worker/event_stream.hpp"
#include "worker/key_file.hpp"
#include "worker/settlements.hpp"
#include "worker/transfer.hpp"

#include "worker/session.hpp"
#include "worker/settings.hpp"

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
constexpr auto kTogether = 100ms;
// So many seconds' worth of requests are planned ahead.
constexpr int kStockSeconds = 10, kLeastStock = 1000;
// So many requests of the event stream are under way at once.
constexpr std::size_t kStreamRequests = 4;

// What may be under way at once, and how fast. The event stream has limits of its own, which count events.
struct Channel {
    const char *streams;  // as _stripe_claim takes it
    std::size_t concurrency;
    stripe::Pace pace;
    stripe::Breaker breaker;
    std::size_t under_way = 0;  // claimed rows
    std::size_t room = 0;       // for more
    bool dry = true;            // the latest claim got less than it asked for
};

// What one transfer carries: a request's row, or events and the session that they are sent under.
struct Sent {
    std::vector<Claim> claims;
    int session = 0;
};

class StripeSync {
  public:
    StripeSync(Session &session, const ApiKey &key)
        : session_(session),
          timeout_(number_setting("pg_billing.stripe_timeout")),
          stock_(std::max(kLeastStock, number_setting("pg_billing.stripe_rate") * kStockSeconds)),
          api_{"false", static_cast<std::size_t>(number_setting("pg_billing.stripe_concurrency")),
               stripe::Pace(number_setting("pg_billing.stripe_rate"), Clock::now()),
               stripe::Breaker(session.previous_failed())},
          stream_{"true", kStreamRequests * EventStream::kPerRequest,
                  stripe::Pace(number_setting("pg_billing.stripe_stream_rate"), Clock::now()),
                  stripe::Breaker(false)},
          transfers_(
              {text_setting("pg_billing.stripe_api_base"), text_setting("pg_billing.stripe_stream_base"),
               text_setting("pg_billing.stripe_api_version"), text_setting("pg_billing.stripe_ca_file"),
               timeout_},
              key),
          settlements_(session) {}

    void run();

  private:
    Session &session_;
    const std::chrono::seconds timeout_;
    const int stock_;
    Channel api_, stream_;
    Transfers transfers_;
    EventStream events_;
    std::optional<std::size_t> opening_;  // the transfer that opens a session of the stream
    Clock::time_point opening_since_;
    std::map<std::size_t, Sent> under_way_;
    Settlements settlements_;
    std::size_t next_tag_ = 0;
    bool stopping_ = false;  // claim nothing more: Stripe refuses us, or cannot be reached

    void look(Channel &channel, Clock::time_point now);
    std::chrono::milliseconds patience() const;
    bool plan();
    bool claim_all(Clock::time_point now);
    std::size_t claim(const Channel &channel);
    void send(const Row &row);
    void stream();
    bool take_answers(std::chrono::milliseconds slice);
    void take(const Finished &finished);
    void take_session(const stripe::Answer &answer);
    void heed(const stripe::Verdict &verdict, const std::string &what);
};

// Sees how many rows may be claimed now, and so sent at once; one, to find out whether Stripe is back.
void StripeSync::look(Channel &channel, Clock::time_point now) {
    const std::size_t lanes = !api_.breaker.probing()       ? channel.concurrency
                              : transfers_.in_flight() == 0 ? 1
                                                            : 0;
    const std::size_t room = std::min(lanes - std::min(lanes, channel.under_way), channel.pace.room(now));
    channel.room = stopping_ || channel.breaker.open() ? 0 : room;
}

// How long to wait for answers: with lanes free and more to send, only until the pace allows some again.
std::chrono::milliseconds StripeSync::patience() const {
    auto slice = kSlice;
    for (const Channel *channel : {&api_, &stream_})
        if (!channel->dry && channel->under_way < channel->concurrency && !api_.breaker.probing() &&
            !channel->breaker.open())
            slice = std::min(slice, std::clamp(channel->pace.until_room(), kShortSlice, kSlice));
    return slice;
}

void StripeSync::run() {
    Clock::time_point planned, claimed;
    Clock::duration planning{};  // how long the latest plan took
    bool answered = false;       // a transfer has ended since the latest plan
    bool freed = true;           // one has ended since the latest claim
    for (;;) {
        session_.serve_interrupts();
        const auto now = Clock::now();
        look(api_, now);
        look(stream_, now);
        const bool room = api_.room > 0 || stream_.room > 0, dry = api_.dry && stream_.dry;
        const bool idle = transfers_.in_flight() == 0;
        // the pace holds us up: nobody knows yet what is due
        const bool held =
            idle && !stopping_ && (api_.room == 0 || (stream_.room == 0 && !stream_.breaker.open()));
        bool found = false;
        // With more to send than there is room for, planning waits until nothing moves: it is how we notice, too, that the
        // extension is gone.
        if (idle
                ? room
                : !stopping_ && now - (dry ? planned : std::max(planned, claimed)) >=
                                    std::max<Clock::duration>(dry && answered ? kPlanAfterAnswer : kLookEvery,
                                                              planning * kPlanShare)) {
            found = plan();
            planned = Clock::now();
            planning = planned - now;
            answered = false;
        }
        if (room && (found || freed || !dry || now - claimed >= kLookEvery)) {
            found = claim_all(now) || found;
            claimed = now;
            freed = false;
        }
        if (transfers_.in_flight() == 0 && !found && !held)
            break;
        if (take_answers(patience()))
            answered = freed = true;
    }
    settlements_.report();
    // Every row has its own retry; a Stripe that nobody reaches is the job's failure, with the job's backoff.
    if (api_.breaker.outage())
        throw Failure(ERRCODE_CONNECTION_FAILURE, "cannot reach Stripe: " + settlements_.trouble());
}

bool StripeSync::plan() {
    session_.begin_round();
    return session_.transaction("planning requests to Stripe", [&] {
        return session_.query("SELECT billing._stripe_plan($1::int)", {std::to_string(stock_)}).at(0).at(0) !=
               "0";
    });
}

// Claims and sends what there is room for; returns whether there was any.
bool StripeSync::claim_all(Clock::time_point now) {
    bool found = false;
    for (Channel *channel : {&api_, &stream_}) {
        look(*channel, now);
        if (channel->room == 0)
            continue;
        const std::size_t taken = claim(*channel);
        channel->pace.sent(taken);
        channel->dry = taken < channel->room;
        found = found || taken > 0;
    }
    return found;
}

std::size_t StripeSync::claim(const Channel &channel) {
    // Long enough that no row is claimed anew while its transfer may still end, nor that of a session it waits for.
    const std::string lease = std::to_string((timeout_ * 2 + 60s).count()) + " seconds";
    const std::vector<Row> rows = session_.transaction("claiming requests to Stripe", [&] {
        return session_.query(
            "SELECT tenant_id, id, attempt, method, path, params, idempotency_key"
            " FROM billing._stripe_claim($1::int, $2::interval, $3::boolean)",
            {std::to_string(channel.room), lease, channel.streams});
    });
    for (const Row &row : rows)
        send(row);
    stream();
    settlements_.write();
    return rows.size();
}

void StripeSync::send(const Row &row) {
    Claim claim{row[0].value(), row[1].value(), *row[3] + " " + *row[4], std::stoi(row[2].value())};
    if (*row[4] == EventStream::kPath) {
        stream_.under_way++;
        events_.add(std::move(claim), *row[5]);
        return;
    }
    try {
        Request request{next_tag_, *row[3], *row[4], stripe::encode_form(nlohmann::json::parse(*row[5])),
                        *row[6]};
        transfers_.start(request);
    } catch (const stripe::FormError &e) {
        stripe::Verdict unsendable;
        unsendable.outcome = stripe::Outcome::failed;
        unsendable.reason = e.what();
        settlements_.note({std::move(claim)}, unsendable, {});
        return;
    }
    api_.under_way++;
    under_way_.emplace(next_tag_++, Sent{{std::move(claim)}});
}

// Sends the events that wait, once there is a session for them.
void StripeSync::stream() {
    const auto now = Clock::now();
    if (events_.wants_session(now)) {
        Request request{next_tag_, "POST", EventStream::kSessionPath, "{}"};
        request.json = true;
        transfers_.start(request);
        api_.pace.sent(1);
        opening_since_ = now;
        opening_ = next_tag_++;
    }
    while (std::optional<EventStream::Batch> batch = events_.next()) {
        Request request{next_tag_, "POST", EventStream::kPath, std::move(batch->body)};
        request.json = true;
        request.token = events_.token();
        transfers_.start(request);
        under_way_.emplace(next_tag_++, Sent{std::move(batch->claims), events_.session()});
    }
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
    stream();
    settlements_.write();
    return true;
}

void StripeSync::take(const Finished &finished) {
    if (finished.tag == opening_) {
        opening_.reset();
        take_session(finished.answer);
        return;
    }
    Sent sent = std::move(under_way_.extract(finished.tag).mapped());
    const bool streams = sent.session > 0;
    Channel &channel = streams ? stream_ : api_;
    stripe::Verdict verdict = stripe::judge(finished.answer);
    channel.under_way -= sent.claims.size();
    channel.pace.answered(finished.answer, Clock::now());
    channel.breaker.answered(finished.answer);
    if (streams && finished.answer.status == 401) {
        events_.expired(sent.session);
        verdict.outcome = stripe::Outcome::retry;
    }
    heed(verdict, sent.claims.front().what);
    // Which of the events it is about, the refusal does not say.
    const bool in_company = verdict.outcome == stripe::Outcome::failed && sent.claims.size() > 1;
    if (in_company) {
        events_.refused(sent.claims);
        verdict.outcome = stripe::Outcome::retry;
    }
    settlements_.note(std::move(sent.claims), verdict, finished.answer, in_company);
}

// The answer holds the token: whatever it says, it is not stored.
void StripeSync::take_session(const stripe::Answer &answer) {
    stripe::Verdict verdict = stripe::judge(answer);
    api_.pace.answered(answer, Clock::now());
    api_.breaker.answered(answer);
    if (verdict.outcome == stripe::Outcome::delivered) {
        if (events_.opened(verdict.response, opening_since_))
            return;
        verdict.outcome = stripe::Outcome::retry;
        verdict.reason = "there is no token in the answer";
    }
    verdict.reason = "no session for the event stream: " + verdict.reason;
    verdict.response = nullptr;
    heed(verdict, std::string("POST ") + EventStream::kSessionPath);
    std::vector<Claim> claims = events_.not_opened();
    stream_.under_way -= claims.size();
    settlements_.note(std::move(claims), verdict, answer);
}

// Stops where nothing else would fare better.
void StripeSync::heed(const stripe::Verdict &verdict, const std::string &what) {
    const bool pauses = verdict.outcome == stripe::Outcome::pause && !stopping_;
    stopping_ = stopping_ || pauses || api_.breaker.open();
    if (pauses)
        session_.transaction("pausing submission to Stripe", [&] {
            session_.query("SELECT billing._stripe_pause($1)", {what + ": " + verdict.reason});
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
    if (not_ready())
        return next_tick(kStripeJob, GetCurrentTimestamp());
    StripeSync(session, key).run();
    return not_ready() ? next_tick(kStripeJob, GetCurrentTimestamp()) : next_run(session);
}

}  // namespace
}  // namespace pg_billing

extern "C" PGDLLEXPORT void stripe_main(Datum database) {
    pg_billing::run_job(pg_billing::kStripeJob, DatumGetObjectId(database), pg_billing::sync_with_stripe);
}
