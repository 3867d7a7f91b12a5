// Claimed meter events on their way through Stripe's event stream: gathered into requests of up to 100, which are sent
// under a session. Its token stands in for the API key, at the stream's host only, for 15 minutes.
//
// Invariants:
//   - The token is in memory only, and wiped there: never in a table, a log line or an error text.
//   - An event is in one request at a time, and in every request as its row holds it, with the same identifier.
//   - One that was refused in company is sent alone from then on, so that it alone is refused for its fault. That is
//     remembered for a run of the job: a run does not end while such events are due.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "worker/settlements.hpp"

namespace pg_billing {

class EventStream {
  public:
    using Time = std::chrono::steady_clock::time_point;
    static constexpr std::size_t kPerRequest = 100;
    static constexpr const char *kSessionPath = "/v2/billing/meter_event_session";
    static constexpr const char *kPath = "/v2/billing/meter_event_stream";

    EventStream() = default;
    EventStream(const EventStream &) = delete;
    ~EventStream() { forget_token(); }

    // Takes an event, as JSON.
    void add(Claim claim, std::string event);

    // Whether a session has to be opened before anything else can happen; the caller asks Stripe for one.
    bool wants_session(Time now);
    // Takes the answer; false: there is no token in it.
    bool opened(const nlohmann::json &answer, Time asked_at);
    // There is none to be had: returns the events that waited for it.
    std::vector<Claim> not_opened();

    struct Batch {
        std::vector<Claim> claims;
        std::string body;
    };
    // Returns the next request; nothing if no event waits or there is no session.
    std::optional<Batch> next();

    // The session that is open, of which there is one after the other, and its token.
    int session() const { return session_; }
    std::string_view token() const { return token_; }

    // Stripe does not accept a session any more.
    void expired(int session);
    // Notes that a request was refused for good.
    void refused(const std::vector<Claim> &claims);

  private:
    struct Event {
        Claim claim;
        std::string json;
    };
    void forget_token();

    std::deque<Event> waiting_, waiting_alone_;
    std::set<std::string> alone_;  // the ids of rows
    std::string token_;
    int session_ = 0;
    Time renew_at_;
    bool opening_ = false;
};

}  // namespace pg_billing
