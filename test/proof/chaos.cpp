#include "test/proof/chaos.hpp"

#include <poll.h>
#include <signal.h>

#include <cstdlib>
#include <cstring>

namespace pg_billing::proof {

namespace {

// Waits until the server drops this connection.
bool dropped(Connection &db) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    try {
        for (; std::chrono::steady_clock::now() < deadline; poll(nullptr, 0, 5))
            db.query("SELECT 1");
        return false;
    } catch (const Broken &) {
        return true;
    }
}

// Any process the postmaster restarts everything for: of a client, of the monitor, of a rollup.
void kill_backend(Connection &db, std::mt19937_64 &random) {
    for (;;) {
        const Rows rows = db.query(
            "SELECT pid FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND (application_name LIKE 'proof %' OR backend_type = "
            "'pg_billing rollup')"
            " ORDER BY pid");
        if (rows.empty())
            throw Stuck("there is no backend to kill");
        if (kill(std::stoi(rows[random() % rows.size()][0]), SIGKILL) == 0) {
            if (dropped(db))
                return;
        } else if (errno != ESRCH) {
            throw Stuck(std::string("cannot kill a backend: ") + strerror(errno));
        }
        // It had come to its end by itself; another one.
    }
}

}  // namespace

void terminate_clients(Run &run) {
    if (run.settings.terminations == 0)
        return;
    Connection db(run, "proof terminator");
    db.reconnect();
    while (run.pause(std::chrono::milliseconds(1000 / run.settings.terminations)))
        run.totals.terminations += static_cast<long>(
            db.persistently([&] {
                  return db.query(
                      "SELECT FROM (SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'proof "
                      "client %'"
                      "             ORDER BY random() LIMIT 1) c WHERE pg_terminate_backend(c.pid)");
              }).size());
}

void kill_server(Run &run, Connection &db, std::mt19937_64 &random) {
    if (run.totals.kills % 2 == 0) {
        db.persistently([&] { kill_backend(db, random); });
    } else {
        const bool plenty = run.totals.kills % 4 == 1;
        db.persistently([&] {
            db.command(plenty ? "ALTER SYSTEM SET pg_billing.max_counters = 20000"
                              : "ALTER SYSTEM RESET pg_billing.max_counters");
        });
        if (std::system(run.settings.restart_command.c_str()) != 0)
            throw Stuck("the server cannot be restarted: " + run.settings.restart_command);
    }
    db.reconnect();
    run.totals.kills++;
}

}  // namespace pg_billing::proof
