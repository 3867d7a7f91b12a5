#include "test/proof/client.hpp"

#include <utility>

namespace pg_billing::proof {

namespace {

constexpr const char *kNoCounter = "UB051", *kDenied = "UB001", *kSerialization = "40001";

constexpr const char *kRecord = "SELECT status FROM billing.record_usage($1, $2, $3, $4)";
constexpr const char *kTryConsume = "SELECT status FROM billing.try_consume($1, $2, $3, $4)";
constexpr const char *kConsume = "SELECT status FROM billing.consume($1, $2, $3, $4)";
constexpr const char *kQuota = "SELECT quota FROM billing.check_quota($1, $2, 0)";
constexpr const char *kCheck = "SELECT status FROM billing.check_quota($1, $2, $3)";

std::vector<std::string> arguments(const Event &event) {
    return {event.tenant, event.metric, quantity(event.quarters), event.key};
}

}  // namespace

Client::Client(Run &run, unsigned number)
    : run_(run),
      name_("proof client " + std::to_string(number)),
      db_(run, name_),
      random_(run.settings.seed * 1000 + number),
      keys_(static_cast<long>(number) * 100'000'000) {}

void Client::work() {
    db_.reconnect();
    while (run_.enter()) {
        transaction();
        run_.totals.transactions++;
        run_.leave();
    }
}

void Client::transaction() {
    pending_.clear();
    in_block_ = in_doubt_ = false;
    try {
        switch (const unsigned dice = below(20)) {
            case 0:
                return check();
            case 1:
                in_doubt_ = true;
                batch();
                break;
            case 2:
            case 3:
                shared_event();
                break;
            case 4:
                resend();
                break;
            default:
                dice < 11 ? single() : block();
        }
        settle_from(0, true);
    } catch (const Broken &) {
        db_.reconnect();
        in_doubt_ ? find_out() : settle_from(0, false);
    } catch (const SqlError &e) {
        // A call that failed in a transaction of its own, or a block that is lost: nothing of it may remain.
        if (e.state != kNoCounter && e.state != kSerialization)
            run_.wrong(run_.totals.other, e.what());
        run_.totals.refused++;
        try {
            if (in_block_)
                db_.command("ROLLBACK");
        } catch (const Broken &) {
            db_.reconnect();
        }
        settle_from(0, false);
    }
}

// Transactions.

void Client::single() {
    in_doubt_ = true;
    chance(15) ? guarded(new_event()) : take(new_event());
}

// Many events in one call, one of them twice.
void Client::batch() {
    std::vector<Event> events;
    for (unsigned n = 1 + below(8); events.size() < n;)
        if (Event event = new_event(); event.metric == kOpen)
            events.push_back(std::move(event));
    const std::size_t first = pending_.size();
    std::string json;
    for (std::size_t i = 0; i <= events.size(); i++) {
        const Event &event = events[i % events.size()];
        json += (i ? ", " : "[") + ("{\"tenant_id\": \"" + event.tenant) + "\", \"metric\": \"" +
                event.metric + "\", \"quantity\": " + quantity(event.quarters) + ", \"idempotency_key\": \"" +
                event.key + "\"}";
    }
    // Until the answer is there they may be in the tables, all of them.
    pending_.insert(pending_.end(), events.begin(), events.end());
    const Rows rows =
        db_.query("SELECT status, reason FROM billing.record_usage_batch($1) ORDER BY ordinal", {json + "]"});
    pending_.resize(first);
    // The last is the first once more: recorded only where there was no room for the first.
    for (std::size_t i = 0; i < events.size(); i++) {
        const auto &row = i == 0 && rows[0][0] == "rejected" ? rows.back() : rows[i];
        if (row[0] == "rejected" && row[1].starts_with(kNoCounter))
            settle(events[i], false);
        else
            count_answer(events[i], row[0]);
    }
    if (rows.back()[0] == "recorded" && rows.front()[0] == "recorded")
        run_.wrong(run_.totals.twice, "a batch counts key " + events[0].key + " twice");
}

// The same event from several clients at about the same time.
void Client::shared_event() {
    const long number = run_.shared_events++ / 4;
    Event event{"shared-" + std::to_string(number), tenant_name(1 + number % kHotTenants), kCapped, 4};
    event.shared = true;
    in_doubt_ = true;
    pending_ = {event};
    const std::string status = db_.query(kTryConsume, arguments(event))[0][0];
    pending_.clear();
    event.answered = status == "recorded";
    settle(event, status != "denied");
}

// A key whose fate is known, once more: it is a duplicate if it counts, else it is as good as new.
void Client::resend() {
    if (ledger_.empty())
        return;
    const std::size_t chosen = below(static_cast<unsigned>(ledger_.size()));
    Event event = ledger_[chosen];
    if (event.counts || event.shared || event.quarters < 0)
        return repeat_known();
    ledger_[chosen] = ledger_.back();
    ledger_.pop_back();
    in_doubt_ = true;
    take(std::move(event));
}

void Client::block() {
    const unsigned dice = below(10);
    in_block_ = true;
    db_.command(dice < 5   ? "BEGIN"
                : dice < 9 ? "BEGIN ISOLATION LEVEL REPEATABLE READ"
                           : "BEGIN ISOLATION LEVEL SERIALIZABLE");
    steps(0);
    if (chance(25)) {
        db_.command("ROLLBACK");
        run_.totals.rolled_back++;
        settle_from(0, false);
        return;
    }
    in_doubt_ = true;
    if (const std::string tag = db_.command("COMMIT"); tag != "COMMIT")
        run_.wrong(run_.totals.other, "COMMIT answers " + tag);
}

void Client::steps(int depth) {
    for (unsigned n = 1 + below(3); n > 0; n--) {
        const unsigned dice = below(20);
        if (dice < 5 && depth < 2)
            savepoint(depth);
        else if (dice < 7)
            guarded(new_event());
        else if (dice < 8)
            batch();
        else if (dice < 10)
            repeat_known();
        else if (dice < 11)
            check();
        else
            take(new_event());
    }
}

void Client::savepoint(int depth) {
    const std::string name = "s" + std::to_string(depth);
    const std::size_t first = pending_.size();
    db_.command("SAVEPOINT " + name);
    steps(depth + 1);
    if (chance(50)) {
        db_.command("ROLLBACK TO " + name);
        settle_from(first, false);
    } else {
        db_.command("RELEASE " + name);
    }
}

// A call inside a PL/pgSQL block with an exception handler, which may undo it.
void Client::guarded(Event event) {
    auto parameters = arguments(event);
    parameters.push_back(chance(50) ? "true" : "false");
    pending_.push_back(event);
    const std::string status = db_.query("SELECT proof.guarded($1, $2, $3, $4, $5)", parameters)[0][0];
    pending_.pop_back();
    status == "undone" ? settle(std::move(event), false) : count_answer(std::move(event), status);
}

// Calls.

unsigned Client::any_tenant() {
    return 1 + below(chance(60) ? kHotTenants : run_.settings.tenants);
}

Event Client::new_event() {
    Event event{std::to_string(++keys_), tenant_name(any_tenant()), kCapped,
                static_cast<int>(4 * (1 + below(4)))};
    const unsigned dice = below(10);
    if (dice < 3) {
        event.metric = kOpen;
    } else if (dice < 6) {
        event.metric = kGauge;
        event.quarters = static_cast<int>(1 + below(8));
        int &level = returns_[event.tenant];
        if (level >= event.quarters && chance(60)) {
            level -= event.quarters;
            event.quarters = -event.quarters;
        }
    }
    return event;
}

std::string Client::send(const Event &event) {
    if (event.metric == kOpen)
        return db_.query(kRecord, arguments(event))[0][0];
    if (run_.settings.naive) {
        const Rows answer = db_.query(kCheck, {event.tenant, event.metric, quantity(event.quarters)});
        return answer[0][0] == "denied" ? "denied" : db_.query(kRecord, arguments(event))[0][0];
    }
    if (chance(70))
        return db_.query(kTryConsume, arguments(event))[0][0];
    if (in_block_)
        return consume_in_block(event);
    try {
        return db_.query(kConsume, arguments(event))[0][0];
    } catch (const SqlError &e) {
        if (e.state != kDenied)
            throw;
        return "denied";
    }
}

std::string Client::consume_in_block(const Event &event) {
    db_.command("SAVEPOINT consume");
    std::string status = "denied";
    try {
        status = db_.query(kConsume, arguments(event))[0][0];
    } catch (const SqlError &e) {
        if (e.state != kDenied)
            throw;
        db_.command("ROLLBACK TO consume");
    }
    db_.command("RELEASE consume");
    return status;
}

void Client::take(Event event) {
    pending_.push_back(event);
    const std::string status = send(event);
    pending_.pop_back();
    count_answer(std::move(event), status);
}

// Notes what a new key was answered.
void Client::count_answer(Event event, const std::string &status) {
    if (status == "recorded") {
        event.answered = true;
        pending_.push_back(std::move(event));
    } else if (status == "denied") {
        run_.totals.denied++;
        settle(std::move(event), false);
    } else {
        run_.wrong(run_.totals.ghosts, "new key " + event.key + " is answered " + status);
        settle(std::move(event), false);
    }
}

// Sends some key that counts already.
void Client::repeat_known() {
    if (ledger_.empty())
        return;
    const Event event = ledger_[below(static_cast<unsigned>(ledger_.size()))];
    if (!event.counts)
        return;
    const char *verb = event.metric == kOpen ? kRecord : kTryConsume;
    if (const std::string status = db_.query(verb, arguments(event))[0][0]; status != "duplicate")
        run_.wrong(status == "recorded" ? run_.totals.twice : run_.totals.lost,
                   "known key " + event.key + " is answered " + status);
}

void Client::check() {
    const unsigned tenant = any_tenant();
    const int lowest = run_.quotas[tenant].lowest;
    const int quota = std::stoi(db_.query(kQuota, {tenant_name(tenant), kCapped})[0][0]);
    const int highest = run_.quotas[tenant].highest;
    if (quota < lowest || quota > highest)
        run_.wrong(run_.totals.other, "the quota of " + tenant_name(tenant) + " is " + std::to_string(quota) +
                                          ", not between " + std::to_string(lowest) + " and " +
                                          std::to_string(highest));
}

// Fates.

void Client::settle(Event event, bool counts) {
    if ((event.quarters > 0) == counts && event.metric == kGauge)
        returns_[event.tenant] += event.quarters > 0 ? event.quarters : -event.quarters;
    event.counts = counts;
    event.answered = event.answered && counts;
    ledger_.push_back(std::move(event));
}

void Client::settle_from(std::size_t first, bool counts) {
    for (std::size_t i = first; i < pending_.size(); i++)
        settle(pending_[i], counts);
    pending_.resize(first);
}

// Sends the keys of a transaction again whose outcome was not learnt.
void Client::find_out() {
    run_.totals.in_doubt++;
    in_block_ = false;
    int known = 0, unknown = 0;
    for (Event &event : pending_) {
        bool first = true;  // an answer that got lost may itself have recorded the key
        const std::string status = db_.persistently([&]() -> std::string {
            const bool clean = std::exchange(first, false);
            for (int attempts = 1;; attempts++)
                try {
                    const auto answer =
                        db_.query(event.metric == kOpen ? kRecord : kTryConsume, arguments(event))[0][0];
                    if (clean)
                        (answer == "duplicate" ? known : unknown)++;
                    return answer;
                } catch (const SqlError &e) {
                    if (e.state != kNoCounter || attempts > 10'000)
                        throw Stuck(e.what());
                }
        });
        event.answered = status == "recorded";
        settle(event, status != "denied");
    }
    if (known > 0 && unknown > 0)
        run_.wrong(run_.totals.other, "a transaction was committed in part, with key " + pending_[0].key);
    pending_.clear();
}

}  // namespace pg_billing::proof
