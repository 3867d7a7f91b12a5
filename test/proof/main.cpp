// The overshoot proof: clients drive pg_billing with everything applications do, while their backends are terminated and
// the server is killed; then every event they know of is compared with what is in the tables.
//
// Needs an empty database with pg_billing installed, and to run as the user who owns the server. Ends with one line of
// totals; exit status 0 only if nothing was overshot, lost or counted twice.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <thread>

#include "test/proof/chaos.hpp"
#include "test/proof/client.hpp"
#include "test/proof/monitor.hpp"
#include "test/proof/verify.hpp"

namespace pg_billing::proof {
namespace {

class Proof {
  public:
    explicit Proof(const Settings &settings) : run_(settings), db_(run_, "proof"), random_(settings.seed) {}

    int go();

  private:
    void rounds();
    template <class Work>
    std::jthread thread(Work work);

    Run run_;
    Connection db_;
    std::mt19937_64 random_;
    std::mutex mutex_;
    std::exception_ptr failure_;
};

// Runs some work beside the rest; what goes wrong there ends the proof.
template <class Work>
std::jthread Proof::thread(Work work) {
    return std::jthread([this, work] {
        try {
            work();
        } catch (...) {
            {
                const std::lock_guard lock(mutex_);
                failure_ = failure_ ? failure_ : std::current_exception();
            }
            run_.stop();
        }
    });
}

// Between two kills: fire for a while, rest, compare, fire.
void Proof::rounds() {
    const auto slice = std::chrono::milliseconds(1000 * run_.settings.seconds / (run_.settings.kills + 1));
    const long many = 20 * run_.settings.clients;
    for (unsigned round = 0; round <= run_.settings.kills; round++) {
        if (!run_.pause(slice))
            return;
        run_.await_transactions(many);
        run_.close_gate();
        db_.persistently([&] { compare_counters(run_, db_); });
        run_.open_gate();
        if (round < run_.settings.kills) {
            run_.await_transactions(many);
            kill_server(run_, db_, random_);
        }
    }
    if (run_.settings.naive)
        run_.await("an overshoot", [this] { return run_.totals.overshoot > 0; });
}

int Proof::go() {
    db_.reconnect();
    set_up(run_, db_);
    std::vector<std::unique_ptr<Client>> clients;
    for (unsigned i = 1; i <= run_.settings.clients; i++)
        clients.push_back(std::make_unique<Client>(run_, i));
    {
        std::vector<std::jthread> threads;
        for (const auto &client : clients)
            threads.push_back(thread([&client] { client->work(); }));
        threads.push_back(thread([this] { Monitor(run_).work(); }));
        threads.push_back(thread([this] { terminate_clients(run_); }));
        threads.push_back(thread([this] {
            rounds();
            run_.stop();
        }));
    }
    if (failure_)
        std::rethrow_exception(failure_);

    std::vector<Event> ledger, items;
    for (const auto &client : clients) {
        ledger.insert(ledger.end(), client->ledger().begin(), client->ledger().end());
        items.insert(items.end(), client->items().begin(), client->items().end());
    }
    verify(run_, db_, ledger, items);

    const Totals &totals = run_.totals;
    const long faults =
        totals.overshoot + totals.lost + totals.twice + totals.ghosts + totals.drift + totals.other;
    printf(
        "%u clients, %ld transactions (%ld rolled back, %ld refused, %ld in doubt), %zu keys (%ld denied), "
        "%ld looks, %ld terminations, %ld server kills: overshoot %ld, lost %ld, double %ld, ghosts %ld, "
        "drift %ld, "
        "other %ld\n",
        run_.settings.clients, totals.transactions.load(), totals.rolled_back.load(), totals.refused.load(),
        totals.in_doubt.load(), ledger.size(), totals.denied.load(), totals.looks.load(),
        totals.terminations.load(), totals.kills.load(), totals.overshoot.load(), totals.lost.load(),
        totals.twice.load(), totals.ghosts.load(), totals.drift.load(), totals.other.load());
    return faults == 0 ? 0 : 1;
}

}  // namespace
}  // namespace pg_billing::proof

int main(int argc, char **argv) {
    using namespace pg_billing::proof;
    Settings settings;
    settings.seed = std::random_device{}();
    CLI::App app{"Proves that pg_billing never overshoots a hard cap, loses an event or counts one twice."};
    app.add_option("--database", settings.database, "libpq connection string of a superuser")->required();
    app.add_option("--restart", settings.restart_command,
                   "command that stops the server immediately and starts it")
        ->required();
    app.add_option("--clients", settings.clients, "concurrent clients")->check(CLI::Range(1, 64));
    app.add_option("--tenants", settings.tenants, "tenants")->check(CLI::Range(8, 1000));
    app.add_option("--kills", settings.kills, "server kills");
    app.add_option("--seconds", settings.seconds, "how long the clients work, restarts not counted");
    app.add_option("--terminations", settings.terminations, "terminated clients a second")
        ->check(CLI::Range(0, 1000));
    app.add_option("--seed", settings.seed, "of the random choices");
    app.add_flag("--naive", settings.naive, "check_quota, then record_usage, until that overshoots");
    CLI11_PARSE(app, argc, argv);
    printf("seed %llu\n", static_cast<unsigned long long>(settings.seed));
    fflush(stdout);
    try {
        return Proof(settings).go();
    } catch (const std::exception &e) {
        fprintf(stderr, "pg_billing_proof: %s\n", e.what());
        return 2;
    }
}
