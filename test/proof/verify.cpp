#include "test/proof/verify.hpp"

#include <poll.h>

#include <map>

#include "test/proof/queries.hpp"

namespace pg_billing::proof {

namespace {

// Tells of each row a query returns, for there should be none.
void expect_none(Run &run, Connection &db, std::atomic<long> &kind, const char *what, const char *query) {
    try {
        for (const auto &row : db.query(query)) {
            std::string text = what;
            for (const auto &value : row)
                text += " " + value;
            run.wrong(kind, text);
        }
    } catch (const SqlError &e) {
        run.wrong(kind, what + (" " + std::string(e.what())));
    }
}

// Waits until what was held and abandoned has expired; else it would while counters and tables are compared.
void await_expiry(Connection &db) {
    const auto deadline = std::chrono::steady_clock::now() + Run::kPatience;
    for (;; poll(nullptr, 0, 20)) {
        db.query("SELECT billing.expire_reservations()");
        if (db.query(kAbandoned).empty())
            return;
        if (std::chrono::steady_clock::now() > deadline)
            throw Stuck("reservations do not expire");
    }
}

// One row per key, for COPY: clients that shared one must agree. Of a level that was stated, the client does not know the
// difference to the one before, which is what counts.
std::string merged(Run &run, const std::vector<Event> &ledger) {
    std::map<std::string, std::pair<Event, int>> fates;
    for (const Event &event : ledger) {
        auto &[fate, answered] = fates.try_emplace(event.key, event, 0).first->second;
        fate.counts |= event.counts;
        answered += event.answered;
        if (answered > 1)
            run.wrong(run.totals.twice, "key " + event.key + " was answered \"recorded\" twice");
    }
    std::string rows;
    for (const auto &[key, known] : fates) {
        const Event &fate = known.first;
        rows += key + '\t' + fate.tenant + '\t' + fate.metric + '\t' +
                (fate.act == Act::set ? "\\N" : quantity(fate.quarters)) + '\t' + (fate.counts ? "t" : "f") +
                '\t' + (fate.retracted ? "t" : "f") + '\n';
    }
    return rows;
}

}  // namespace

void set_up(Run &run, Connection &db) {
    db.command("BEGIN");
    db.command(kSchema);
    for (unsigned i = 1; i <= run.settings.tenants; i++) {
        db.query(kTenant, {tenant_name(i), std::to_string(kFirstCap), std::to_string(kGaugeCap),
                           std::to_string(kSeatsCap), std::to_string(kItemsCap)});
        run.quotas[i].lowest = run.quotas[i].highest = kFirstCap;
    }
    db.command(kTwoDaysAgo);
    for (unsigned i = kHotTenants + 1; i <= run.settings.tenants; i++)
        if (i % 4 < 2)
            db.query(kWindow,
                     {tenant_name(i), std::to_string(i % 4 ? kDayCap : kHourCap), i % 4 ? "day" : "hour"});
    db.command("COMMIT");
}

void compare_counters(Run &run, Connection &db) {
    await_expiry(db);
    expect_none(run, db, run.totals.drift, "counter, committed, held:", kCounters);
    expect_none(run, db, run.totals.drift, "counter, committed, held, within", kWindowCounters);
    expect_none(run, db, run.totals.drift, "counters pinned by nobody:", kPinned);
}

void verify(Run &run, Connection &db, const std::vector<Event> &ledger, const std::vector<Event> &items) {
    Totals &totals = run.totals;
    compare_counters(run, db);
    db.query("SELECT billing.run_rollup()");
    compare_counters(run, db);
    expect_none(run, db, totals.drift, "held by nobody:", kHeld);
    expect_none(run, db, totals.overshoot, "used, quota:", kOvershoot);
    expect_none(run, db, totals.overshoot, "used, quota, within", kWindowOvershoot);
    expect_none(run, db, totals.drift, "events, aggregated:", kAggregates);
    expect_none(run, db, totals.drift, "events, beside the quota:", kQuotas);

    expect_none(run, db, totals.drift, "rows, counted:", kItemCounts);

    std::string rows;
    for (const Event &item : items)
        rows += item.key + '\t' + item.tenant + '\n';
    db.copy("COPY proof.known_items FROM STDIN", rows);
    db.copy("COPY proof.fates FROM STDIN", merged(run, ledger));
    for (const char *query : {kFates, kItemFates})
        for (const auto &row : db.query(query))
            run.wrong(row[0] == "twice"  ? totals.twice
                      : row[0] == "lost" ? totals.lost
                                         : totals.ghosts,
                      "key " + row[1] + ": " + row[0]);
}

}  // namespace pg_billing::proof
