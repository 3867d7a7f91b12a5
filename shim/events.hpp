// Usage events as a client posts them: one object, an array with a result for each, or CloudEvents.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shim/database.hpp"
#include "shim/http_server.hpp"
#include "shim/json.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

struct Event {
    std::string metric;
    std::optional<std::string> tenant;                                              // if it names one itself
    std::optional<std::string> quantity, idempotency_key, occurred_at, properties;  // as text
};

// What became of an event: its key, and the columns kDecisionColumns (decision.hpp). One that is rejected has "SQLSTATE: message" for
// a reason.
struct Recorded {
    std::optional<std::string> idempotency_key;
    Row decision;
};

// How many events of a request were rejected, and the code of the first.
struct Rejections {
    std::size_t count = 0;
    std::string code;
};

// A request to record usage: the events that go to the database, and the results of those that do not.
//
// An event of many that cannot be read is rejected by itself; the others are recorded all the same.
class Post {
  public:
    // Reads the request by its content type. Throws a Problem that names the member, attribute or header at fault, if it
    // is one event that cannot be read; 415 for other content, 422 if there are too many events.
    explicit Post(const http::Request &request);

    // Hands out the readable events, in the order given.
    std::vector<Event> take_events() { return std::move(events_); }

    // Returns the answer, of what became of them, and tells which of many were rejected. Throws a Problem or PgFailure if that is none.
    http::Response answer(const std::vector<Recorded> &recorded, Rejections &rejections) const;

  private:
    struct Result {
        std::optional<std::string> idempotency_key;
        std::string status, reason, code, field;
    };

    void read_many(const Json &array);
    Problem problem_of(const Recorded &recorded) const;

    bool cloud_events_ = false;
    bool many_ = false;
    std::string metric_;             // of one event
    std::vector<Result> results_;    // of many, by ordinal
    std::vector<std::size_t> sent_;  // which of them each event sent is
    std::vector<Event> events_;
};

}  // namespace pg_billing::shim
