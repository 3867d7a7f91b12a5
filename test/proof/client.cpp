#include "test/proof/client.hpp"

namespace pg_billing::proof {

namespace {

constexpr const char *kNoCounter = "UB051", *kSerialization = "40001", *kDeadlock = "40P01";

constexpr const char *kQuota = "SELECT quota FROM billing.check_quota($1, $2, 0)";
constexpr const char *kBatch =
    "SELECT status, reason FROM billing.record_usage_batch($1::jsonb) ORDER BY ordinal";
constexpr const char *kArrays =
    "SELECT status, reason FROM billing.record_usage_batch($1::text[], $2::text[], $3::numeric[], $4::text[])"
    " ORDER BY ordinal";

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
    while (!held_.empty())
        attempt([this] {
            in_doubt_ = true;
            if (Event event; any_end(event))
                take(std::move(event));
        });
}

// Runs one transaction and learns its outcome.
template <class Work>
void Client::attempt(Work work) {
    pending_.clear();
    in_block_ = in_doubt_ = false;
    try {
        work();
        conclude_from(0, true);
    } catch (const Broken &) {
        db_.reconnect();
        in_doubt_ ? find_out() : conclude_from(0, false);
    } catch (const SqlError &e) {
        // A call that failed in a transaction of its own, or a block that is lost: nothing of it may remain.
        if (e.state != kNoCounter && e.state != kSerialization && e.state != kDeadlock)
            run_.wrong(run_.totals.other, e.what());
        run_.totals.refused++;
        try {
            if (in_block_)
                db_.command("ROLLBACK");
        } catch (const Broken &) {
            db_.reconnect();
        }
        conclude_from(0, false);
    }
}

void Client::transaction() {
    attempt([this] {
        switch (const unsigned dice = below(20)) {
            case 0:
                return check();
            case 1:
                in_doubt_ = true;
                return batch();
            case 2:
            case 3:
                return shared_event();
            case 4:
                return resend();
            default:
                dice < 11 ? single() : block();
        }
    });
}

void Client::single() {
    in_doubt_ = true;
    if (chance(10))
        return guarded(new_event());
    // Stating a level waits for whoever is changing it: in a block, clients would wait for each other in circles.
    Event event = any_act();
    if (event.metric == kSeats && event.act == Act::use && chance(20)) {
        event.act = Act::set;
        event.quarters = static_cast<int>(4 * below(kSeatsCap + 1));
    }
    take(std::move(event));
}

// Many events in one call, one of them twice.
void Client::batch() {
    std::vector<Event> events;
    for (unsigned n = 1 + below(8); events.size() < n;)
        events.push_back(new_event(kOpen));
    const std::size_t first = pending_.size();
    std::string json = "[", columns[4] = {"{", "{", "{", "{"};
    for (std::size_t i = 0; i <= events.size(); i++) {
        const Event &event = events[i % events.size()];
        const std::string amount = quantity(event.quarters), comma = i ? "," : "";
        json += comma + "{\"tenant_id\": \"" + event.tenant + "\", \"metric\": \"" + event.metric +
                "\", \"quantity\": " + amount + ", \"idempotency_key\": \"" + event.key + "\"}";
        columns[0] += comma + event.tenant;
        columns[1] += comma + event.metric;
        columns[2] += comma + amount;
        columns[3] += comma + event.key;
    }
    // Until the answer is there they may be in the tables, all of them.
    pending_.insert(pending_.end(), events.begin(), events.end());
    const Rows rows =
        chance(50)
            ? db_.query(kBatch, {json + "]"})
            : db_.query(kArrays, {columns[0] + "}", columns[1] + "}", columns[2] + "}", columns[3] + "}"});
    pending_.resize(first);
    // The last is the first once more: recorded only where there was no room for the first.
    for (std::size_t i = 0; i < events.size(); i++) {
        const auto &row = i == 0 && rows[0][0] == "rejected" ? rows.back() : rows[i];
        if (row[0] == "rejected" && row[1].starts_with(kNoCounter))
            conclude(events[i], false);
        else
            note(events[i], row[0]);
    }
    if (rows.back()[0] == "recorded" && rows.front()[0] == "recorded")
        run_.wrong(run_.totals.twice, "a batch counts key " + events[0].key + " twice");
}

// The same event from several clients at about the same time.
void Client::shared_event() {
    const long number = run_.shared_events++ / 4;
    Event event;
    event.key = "shared-" + std::to_string(number);
    event.tenant = tenant_name(1 + number % kHotTenants);
    event.metric = kCapped;
    event.quarters = 4;
    event.shared = true;
    in_doubt_ = true;
    pending_ = {event};
    const std::string status = send(event);
    pending_.clear();
    event.answered = status == "recorded";
    conclude(event, status != "denied");
}

// A key whose fate is known, once more: it is a duplicate if it counts, else it is as good as new.
void Client::resend() {
    if (ledger_.empty())
        return;
    const std::size_t chosen = below(static_cast<unsigned>(ledger_.size()));
    Event event = ledger_[chosen];
    if (event.counts || event.shared || event.act != Act::use || event.quarters < 0)
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
        conclude_from(0, false);
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
            take(any_act());
    }
}

void Client::savepoint(int depth) {
    const std::string name = "s" + std::to_string(depth);
    const std::size_t first = pending_.size();
    db_.command("SAVEPOINT " + name);
    steps(depth + 1);
    if (chance(50)) {
        db_.command("ROLLBACK TO " + name);
        conclude_from(first, false);
    } else {
        db_.command("RELEASE " + name);
    }
}

// A call inside a PL/pgSQL block with an exception handler, which may undo it.
void Client::guarded(Event event) {
    pending_.push_back(event);
    const std::string status = db_.query("SELECT proof.guarded($1, $2, $3, $4, $5)",
                                         {event.tenant, event.metric, quantity(event.quarters), event.key,
                                          chance(50) ? "true" : "false"})[0][0];
    pending_.pop_back();
    status == "undone" ? conclude(std::move(event), false) : note(std::move(event), status);
}

// Sends some key that counts already.
void Client::repeat_known() {
    if (ledger_.empty())
        return;
    Event event = ledger_[below(static_cast<unsigned>(ledger_.size()))];
    if (!event.counts)
        return;
    if (const std::string status = send(event); status != "duplicate")
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

}  // namespace pg_billing::proof
