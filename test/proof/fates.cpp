// What becomes of a client's events when the outcome of their transaction is known, and how it finds out.
#include <utility>

#include "test/proof/client.hpp"

namespace pg_billing::proof {

void Client::conclude(Event event, bool committed) {
    switch (event.act) {
        case Act::use:
        case Act::set:
            event.counts = committed;
            break;
        case Act::hold:
            if (committed && !event.abandoned) {
                held_.push_back(std::move(event));
                return;
            }
            break;
        case Act::settle:
        case Act::release:
            if (!committed) {
                event.act = Act::hold;
                held_.push_back(std::move(event));
                return;
            }
            event.counts = event.act == Act::settle;
            break;
        case Act::retract:
            event.retracted = committed;
            break;
        case Act::insert:
        case Act::remove:
        case Act::move:
            if (committed && event.act == Act::move)
                event.tenant = event.to;
            if (committed == (event.act != Act::remove) || event.act == Act::move)
                items_.push_back(std::move(event));
            return;
    }
    event.answered = event.answered && event.counts;
    if (event.act != Act::set)
        event.act = Act::use;
    // What a gauge rose by may be taken down again, by nobody else; what it did not fall by, still.
    if (event.metric == kGauge && (event.quarters > 0) == event.counts)
        returns_[event.tenant] += std::abs(event.quarters);
    ledger_.push_back(std::move(event));
}

void Client::conclude_from(std::size_t first, bool committed) {
    const std::vector<Event> events(pending_.begin() + static_cast<std::ptrdiff_t>(first), pending_.end());
    pending_.resize(first);
    for (const Event &event : events)
        conclude(event, committed);
}

// Sends again what was done in a transaction whose outcome was not learnt.
void Client::find_out() {
    run_.totals.in_doubt++;
    in_block_ = false;
    int known = 0, unknown = 0;
    std::string answers;
    for (Event &event : std::exchange(pending_, {})) {
        // An answer that got lost may itself have taken effect; and a row that moves to where it is tells nothing.
        bool first = event.act != Act::move || event.to != event.tenant;
        const std::string status = db_.persistently([&]() -> std::string {
            const bool clean = std::exchange(first, false);
            for (int attempts = 1;; attempts++)
                try {
                    const auto answer = event.metric == kItems ? look_up(event) : send(event);
                    if (clean) {
                        (answer == "duplicate" ? known : unknown)++;
                        answers += " " + event.key + " (" + event.metric + "): " + answer;
                    }
                    return answer;
                } catch (const SqlError &e) {
                    // Refused for now: no room for another counter, a deadlock.
                    if ((e.state != "UB051" && e.state != "40P01") || attempts > 10'000)
                        throw Stuck(e.what());
                }
        });
        event.answered = status == "recorded";
        conclude(event, status != "denied");
    }
    if (known > 0 && unknown > 0)
        run_.wrong(run_.totals.other, "a transaction was committed in part:" + answers);
}

// A row needs no key: it is there or not.
std::string Client::look_up(const Event &event) {
    const Rows rows = db_.query("SELECT tenant FROM proof.items WHERE id = $1", {event.key});
    const bool done = event.act == Act::insert   ? !rows.empty()
                      : event.act == Act::remove ? rows.empty()
                                                 : rows.at(0)[0] == event.to;
    return done ? "duplicate" : "denied";
}

}  // namespace pg_billing::proof
