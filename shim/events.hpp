// Usage events as a client sends them: one object, or an array with a result for each.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shim/database.hpp"
#include "shim/json.hpp"

namespace pg_billing::shim {

struct Event {
    std::string metric;
    std::optional<std::string> quantity, idempotency_key, occurred_at, properties;  // as text
};

// Reads one event. Throws a Problem that names the member at fault.
Event read_event(const Json &json);

// A batch on its way: what goes to the database, and the results of the events that do not.
//
// An event that cannot be read is rejected by itself; the others are recorded all the same.
class Batch {
  public:
    // Throws Problem 422 if there are too many events.
    explicit Batch(const Json &array);

    // Returns the readable events as billing.record_usage_batch() takes them, but for the tenant.
    const std::string &payload() const { return payload_; }

    // Returns the answer's body; rows are that function's results.
    std::string results(const Rows &rows) const;

  private:
    struct Result {
        std::optional<std::string> idempotency_key;
        std::string status, reason, code, field;
    };

    std::vector<Result> results_;    // by ordinal
    std::vector<std::size_t> sent_;  // which of them each event of the payload is
    std::string payload_;
};

}  // namespace pg_billing::shim
