// The notify job: sends what is waiting in billing.notifications, many at a time, and settles each by its answer, until
// nothing is due any more. What is due and what an answer changes is SQL's business (billing._notify_*).
//
// Invariants:
//   - No transaction is open while a receiver is waited for: claiming and each settling are transactions of their own, and
//     interrupts are served at least every quarter of a second.
//   - A notification is sent only after its claim has committed, always as its row holds it and under its id, so that a
//     repeat after a crash or a lost answer is known as one.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "stripe/retry.hpp"
#include "worker/delivery.hpp"

#include "worker/session.hpp"
#include "worker/settings.hpp"

extern "C" {
#include "common/pg_prng.h"
}

namespace pg_billing {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kLanes = 32;
constexpr auto kSlice = 250ms;
constexpr auto kLookEvery = 2s;
constexpr stripe::Backoff kBackoff{2s, 6h};

// A claimed row, as much of it as settling needs.
struct Claim {
    std::string tenant, id;
    int attempt;
};

class Notify {
  public:
    explicit Notify(Session &session)
        : session_(session),
          timeout_(number_setting("pg_billing.notify_timeout")),
          deliveries_({text_setting("pg_billing.smtp_url"), text_setting("pg_billing.smtp_user"),
                       text_setting("pg_billing.smtp_password_file"), text_setting("pg_billing.mail_from"),
                       text_setting("pg_billing.sms_url"), text_setting("pg_billing.sms_body"),
                       text_setting("pg_billing.sms_token_file"), text_setting("pg_billing.notify_ca_file"),
                       switch_setting("pg_billing.notify_private_addresses"), timeout_}) {}

    void run();

  private:
    Session &session_;
    const std::chrono::seconds timeout_;
    Deliveries deliveries_;
    std::map<std::size_t, Claim> under_way_;
    std::size_t next_tag_ = 0;
    std::size_t delivered_ = 0, retried_ = 0, dead_ = 0;
    std::string trouble_;  // the latest

    std::size_t claim();
    void send(const Row &row);
    void settle(const Claim &claim, const notify::Verdict &verdict, int status,
                std::optional<std::chrono::seconds> retry_after);
    void report() const;
};

void Notify::run() {
    std::chrono::steady_clock::time_point looked;
    bool freed = true;  // a delivery has ended since the latest claim
    for (;;) {
        session_.serve_interrupts();
        const auto now = std::chrono::steady_clock::now();
        if (deliveries_.in_flight() < kLanes && (freed || now - looked >= kLookEvery)) {
            const std::size_t taken = claim();
            looked = now;
            freed = false;
            if (taken == 0 && deliveries_.in_flight() == 0)
                break;
        }
        for (const Delivered &done : deliveries_.poll(kSlice)) {
            const Claim claim = std::move(under_way_.extract(done.tag).mapped());
            settle(claim, done.verdict, done.status, done.retry_after);
            freed = true;
        }
        freed = freed || deliveries_.in_flight() == 0;
    }
    report();
}

std::size_t Notify::claim() {
    session_.begin_round();
    // Long enough that no row is claimed anew while its delivery may still end.
    const std::string lease = std::to_string((timeout_ * 2 + 60s).count()) + " seconds";
    const std::vector<Row> rows = session_.transaction("claiming notifications", [&] {
        return session_.query(
            "SELECT tenant_id, id, attempt, kind, address, title, message, payload, to_json(secrets)"
            " FROM billing._notify_claim($1::int, $2::interval)",
            {std::to_string(kLanes - deliveries_.in_flight()), lease});
    });
    for (const Row &row : rows)
        send(row);
    return rows.size();
}

void Notify::send(const Row &row) {
    Claim claim{*row[0], *row[1], std::stoi(*row[2])};
    Notification notification;
    notification.tag = next_tag_;
    notification.kind = *row[3];
    notification.address = *row[4];
    notification.id = claim.id;
    notification.title = *row[5];
    notification.message = *row[6];
    notification.payload = *row[7];
    notification.secrets = nlohmann::json::parse(*row[8]).get<std::vector<std::string>>();
    notification.of_tenant = !claim.tenant.empty();
    try {
        deliveries_.start(notification);
    } catch (const std::exception &e) {
        settle(claim, {notify::Outcome::retry, std::string("it cannot be sent: ") + e.what()}, 0, {});
        return;
    }
    under_way_.emplace(next_tag_++, std::move(claim));
}

void Notify::settle(const Claim &claim, const notify::Verdict &verdict, int status,
                    std::optional<std::chrono::seconds> retry_after) {
    using notify::Outcome;
    (verdict.outcome == Outcome::delivered ? delivered_
     : verdict.outcome == Outcome::retry   ? retried_
                                           : dead_)++;
    if (verdict.outcome != Outcome::delivered)
        trouble_ = claim.id + ": " + verdict.reason;
    const auto retry_in =
        stripe::retry_delay(claim.attempt, retry_after, pg_prng_double(&pg_global_prng_state), kBackoff);
    session_.transaction("settling notifications", [&] {
        session_.query(
            "SELECT billing._notify_settle($1, $2, $3::int, $4, $5::int, $6, $7::interval)",
            {claim.tenant, claim.id, std::to_string(claim.attempt), notify::outcome_name(verdict.outcome),
             status ? Value(std::to_string(status)) : Value(),
             verdict.reason.empty() ? Value() : Value(verdict.reason),
             std::to_string(retry_in.count()) + " milliseconds"});
    });
}

// One line for a run that had trouble; each notification's own error is in its row.
void Notify::report() const {
    if (retried_ + dead_ == 0)
        return;
    pg_call([&] {
        ereport(
            WARNING,
            errmsg("not all notifications were accepted: %zu delivered, %zu to be sent again, %zu given up",
                   delivered_, retried_, dead_),
            errdetail("The latest trouble was: %s", trouble_.c_str()),
            errhint("See billing.stat_notifications for each channel."));
    });
}

// Returns when the job is to run next: at its interval, or earlier if a retry is waiting.
TimestampTz send_notifications(Session &session) {
    const Value reason = session.transaction("looking for notifications", [&] {
        return session.query("SELECT billing._notify_ready()").at(0).at(0);
    });
    session.notice(reason ? "notifications are held back: " + *reason : "");
    if (reason)
        return next_tick(kNotifyJob, GetCurrentTimestamp());
    Notify(session).run();
    const Value wait = session.transaction("looking for retries", [&] {
        return session
            .query(
                "SELECT ceil(extract(epoch FROM billing._notify_next_due() - clock_timestamp()) * "
                "1000)::bigint")
            .at(0)
            .at(0);
    });
    const TimestampTz now = GetCurrentTimestamp();
    const TimestampTz regular = next_tick(kNotifyJob, now);
    return wait ? std::min<TimestampTz>(regular, TimestampTzPlusMilliseconds(now, std::stoll(*wait)))
                : regular;
}

}  // namespace
}  // namespace pg_billing

extern "C" PGDLLEXPORT void notify_main(Datum database) {
    pg_billing::run_job(pg_billing::kNotifyJob, DatumGetObjectId(database), pg_billing::send_notifications);
}
