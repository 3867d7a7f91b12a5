// What the threads of a proof share: its settings, its counts, the pauses, and the gate that brings the clients to rest.
//
// A client works only inside the gate, a whole transaction at a time, the finding out of its fate included. So when the
// gate is closed, nothing is in flight.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace pg_billing::proof {

struct Settings {
    std::string database;         // libpq connection string, of a superuser
    std::string restart_command;  // stops the server in mode "immediate" and starts it
    unsigned clients = 8;
    unsigned tenants = 40;
    unsigned kills = 2;
    unsigned seconds = 10;
    unsigned terminations = 4;  // a second
    std::uint64_t seed = 0;
    bool naive = false;  // ask first, record second: what the proof must catch
};

struct Totals {
    std::atomic<long> transactions, rolled_back, in_doubt, refused, denied, terminations, kills, looks;
    // What must stay 0. A ghost is an event that was denied or rolled back and counts nevertheless; drift is a counter,
    // an aggregate or a total that is not the sum of its events.
    std::atomic<long> overshoot, lost, twice, ghosts, drift, other;
};

// Between which bounds a quota that is only ever raised must be found: the last one whose commit was answered, and the
// last one whose commit was asked for.
struct Quota {
    std::atomic<int> lowest, highest;
};

// The proof cannot go on.
class Stuck : public std::runtime_error {
    using runtime_error::runtime_error;
};

class Run {
  public:
    explicit Run(const Settings &settings) : settings(settings), quotas(settings.tenants + 1) {}

    const Settings settings;
    Totals totals{};
    std::vector<Quota> quotas;  // of the capped metric, by the number of the tenant
    std::atomic<long> shared_events = 0;

    // Counts something that must not be, and tells of the first few.
    void wrong(std::atomic<long> &kind, const std::string &what, long times = 1);

    // Waits that long, or until the proof is stopped; tells whether it goes on.
    bool pause(std::chrono::milliseconds time);
    // Waits until a condition, looked at after each transaction of a client, holds or the proof is stopped.
    void await(const std::string &what, const std::function<bool()> &condition);
    void await_transactions(long more);
    void stop();
    bool stopped() const { return stopped_; }

    // Clients and the monitor: false when the proof is over.
    bool enter();
    void leave();

    // Lets clients end what they are at and holds them, until open_gate().
    void close_gate();
    void open_gate();

    // How long the server or a client may seem dead before the proof gives up.
    static constexpr std::chrono::seconds kPatience{60};

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<bool> stopped_ = false;
    bool closed_ = false;
    int inside_ = 0;
    std::mutex output_;
    int told_ = 0;
};

}  // namespace pg_billing::proof
