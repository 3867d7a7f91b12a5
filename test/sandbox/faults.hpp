// Failures on demand, set through /_sandbox/faults.
//
//   409, 429      refused before any effect          500    failed before any effect
//   timeout       never answered, no effect          slow   answered after delay_ms
//   drop_before   hung up on, no effect              drop_after   the effect happens, then hung up on
// "effect": true makes 500 and timeout happen after the effect instead: the outcome a client cannot know.
// "stored": true keeps a 500 as the idempotency key's result, as Stripe does once an endpoint has begun; together they leave
// an effect behind whose answer nobody will ever see.
// A request with the header "Sandbox-Faults: none" meets none: a test's own.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace pg_billing::sandbox {

using nlohmann::json;

struct Fault {
    std::string method;       // "": any
    std::string path_prefix;  // "": any
    std::string kind;
    std::int64_t times = 1;  // how often yet; negative: for ever
    double probability = 1;
    std::optional<std::int64_t> retry_after;
    std::optional<bool> should_retry;  // sent as Stripe-Should-Retry
    std::chrono::milliseconds delay{0};
    bool effect = false, stored = false;
};

class Faults {
  public:
    explicit Faults(std::uint64_t seed) : random_(seed) {}

    // Adds a fault; throws ApiError naming the member that is wrong. Without times or probability it strikes once.
    void add(const json &description);
    void clear() { faults_.clear(); }
    // Returns the fault that strikes this request, counting it down.
    std::optional<Fault> next(const std::string &method, const std::string &path);

  private:
    std::vector<Fault> faults_;
    std::mt19937_64 random_;
};

}  // namespace pg_billing::sandbox
