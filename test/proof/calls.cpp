// What a client asks of billing: which events, and by which verb.
#include "test/proof/client.hpp"

namespace pg_billing::proof {

namespace {

constexpr const char *kRecord = "SELECT status FROM billing.record_usage($1, $2, $3, $4)";
constexpr const char *kTryConsume = "SELECT status FROM billing.try_consume($1, $2, $3, $4)";
constexpr const char *kConsume = "SELECT status FROM billing.consume($1, $2, $3, $4)";
constexpr const char *kCheck = "SELECT status FROM billing.check_quota($1, $2, $3)";
constexpr const char *kSet = "SELECT status FROM billing.set_usage($1, $2, $3, $4)";
constexpr const char *kReserve = "SELECT status, reservation_id FROM billing.reserve($1, $2, $3, $5, $4)";
constexpr const char *kSettle = "SELECT status FROM billing.settle($1, $2)";
constexpr const char *kRelease = "SELECT status FROM billing.release($1)";
constexpr const char *kVoid = "SELECT status FROM billing.void_usage($1, $2, 'a mistake')";
constexpr const char *kInsert = "INSERT INTO proof.items VALUES ($1, $2) RETURNING 'recorded'";
constexpr const char *kDelete = "DELETE FROM proof.items WHERE id = $1 RETURNING 'recorded'";
constexpr const char *kMove = "UPDATE proof.items SET tenant = $2 WHERE id = $1 RETURNING 'recorded'";

// A denial by consume or a trigger, and a gauge that would fall below zero.
bool is_refusal(const SqlError &e) {
    return e.state == "UB001" || e.state == "UB035";
}

// Takes some element out of a list whose order does not matter.
Event take_out(std::vector<Event> &list, std::size_t chosen) {
    Event event = std::move(list[chosen]);
    list[chosen] = std::move(list.back());
    list.pop_back();
    return event;
}

}  // namespace

unsigned Client::any_tenant() {
    return 1 + below(chance(60) ? kHotTenants : run_.settings.tenants);
}

Event Client::new_event() {
    const unsigned dice = below(20);
    return new_event(dice < 6 ? kOpen : dice < 11 ? kGauge : dice < 14 ? kSeats : kCapped);
}

Event Client::new_event(const char *metric) {
    Event event;
    event.key = std::to_string(++keys_);
    event.tenant = tenant_name(any_tenant());
    event.metric = metric;
    event.quarters = static_cast<int>(metric == kGauge ? 1 + below(8) : 4 * (1 + below(4)));
    return event;
}

// Makes the event lower its gauge: by what this client raised it, or, where it may well be refused, by anything.
void Client::turn_down(Event &event) {
    if (event.metric == kSeats) {
        event.quarters = -event.quarters;
    } else if (int &level = returns_[event.tenant]; event.metric == kGauge && level >= event.quarters) {
        level -= event.quarters;
        event.quarters = -event.quarters;
    }
}

// Chooses a reservation of this client's to settle or release; false: it has none.
bool Client::any_end(Event &event) {
    if (held_.empty())
        return false;
    event = take_out(held_, below(static_cast<unsigned>(held_.size())));
    event.act = chance(70) ? Act::settle : Act::release;
    // Settled with more than was held, a cap may be passed; so only where there is none.
    const unsigned step = event.metric == kGauge ? 1 : 4;
    const unsigned most = static_cast<unsigned>(event.held) / step * (event.metric == kOpen ? 2 : 1);
    event.quarters = static_cast<int>(step * (1 + below(most)));
    return true;
}

// Chooses a recorded event of this client's to take back. Of a counter without limit: there the monitor does not expect
// that usage only grows.
bool Client::any_retraction(Event &event) {
    if (ledger_.empty())
        return false;
    const std::size_t chosen = below(static_cast<unsigned>(ledger_.size()));
    const Event &known = ledger_[chosen];
    if (!known.counts || known.retracted || known.metric != kOpen)
        return false;
    event = take_out(ledger_, chosen);
    event.act = Act::retract;
    return true;
}

// Chooses a row to insert, or one of this client's to delete or to give to another tenant.
Event Client::any_item() {
    if (items_.empty() || chance(40)) {
        Event event = new_event(kItems);
        event.act = Act::insert;
        return event;
    }
    Event event = take_out(items_, below(static_cast<unsigned>(items_.size())));
    event.act = chance(50) ? Act::remove : Act::move;
    event.to = tenant_name(any_tenant());
    return event;
}

Event Client::any_act() {
    if (chance(10))
        return any_item();
    Event event;
    if ((chance(12) && any_end(event)) || (chance(20) && any_retraction(event)))
        return event;
    event = new_event();
    if (chance(50)) {
        turn_down(event);
    } else if (event.metric != kSeats && chance(40) && !run_.settings.naive) {
        event.act = Act::hold;
        event.held = event.quarters;
        event.abandoned = chance(20);
    }
    return event;
}

// Does what the event says and returns the status that is answered, "denied" for a refusal.
std::string Client::send(Event &event) {
    const std::string amount = quantity(event.quarters);
    switch (event.act) {
        case Act::use:
            return use(event);
        case Act::set:
            return db_.query(kSet, {event.tenant, event.metric, amount, event.key})[0][0];
        case Act::hold: {
            const Rows rows = db_.query(kReserve, {event.tenant, event.metric, amount, event.key,
                                                   event.abandoned ? "50 milliseconds" : "10 minutes"});
            event.reservation = rows[0][1];
            return rows[0][0];
        }
        case Act::settle:
            return db_.query(kSettle, {event.reservation, amount})[0][0];
        case Act::release:
            return db_.query(kRelease, {event.reservation})[0][0];
        case Act::retract:
            return db_.query(kVoid, {event.tenant, event.key})[0][0];
        case Act::insert:
            return try_call(kInsert, {event.key, event.tenant});
        case Act::remove:
            return db_.query(kDelete, {event.key})[0][0];
        case Act::move:
            return try_call(kMove, {event.key, event.to});
    }
    throw Stuck("an act is unknown");
}

std::string Client::use(const Event &event) {
    const std::vector<std::string> arguments = {event.tenant, event.metric, quantity(event.quarters),
                                                event.key};
    const bool naive = run_.settings.naive && event.quarters > 0 && !event.shared && !event.counts;
    if (naive && db_.query(kCheck, {event.tenant, event.metric, quantity(event.quarters)})[0][0] == "denied")
        return "denied";
    const char *verb = event.metric == kOpen || naive ? kRecord : chance(70) ? kTryConsume : kConsume;
    if (verb != kConsume && event.quarters > 0)
        return db_.query(verb, arguments)[0][0];
    return try_call(verb, arguments);
}

// Makes a call that may be refused by an error; in a block, in a savepoint of its own.
std::string Client::try_call(const char *statement, const std::vector<std::string> &arguments) {
    if (in_block_)
        db_.command("SAVEPOINT call");
    std::string status = "denied";
    try {
        status = db_.query(statement, arguments)[0][0];
    } catch (const SqlError &e) {
        if (!is_refusal(e))
            throw;
        if (in_block_)
            db_.command("ROLLBACK TO call");
    }
    if (in_block_)
        db_.command("RELEASE call");
    return status;
}

// Does what the event says, and notes the answer.
void Client::take(Event event) {
    pending_.push_back(event);
    const std::string status = send(event);
    pending_.pop_back();
    note(std::move(event), status);
}

// Notes what was answered to something that was not known before.
void Client::note(Event event, const std::string &status) {
    const bool allows = event.act == Act::hold || event.act == Act::release;
    if (status == (allows ? "allowed" : "recorded")) {
        event.answered = true;
        pending_.push_back(std::move(event));
    } else if (status == "denied" && (event.act == Act::use || event.act == Act::hold ||
                                      event.act == Act::insert || event.act == Act::move)) {
        run_.totals.denied++;
        conclude(std::move(event), false);
    } else {
        run_.wrong(run_.totals.ghosts, "new key " + event.key + " is answered " + status);
        conclude(std::move(event), false);
    }
}

}  // namespace pg_billing::proof
