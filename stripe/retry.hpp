// What an answer of Stripe's means for the attempt that got it, and when to try again. Pure functions.
//
// The rules, in order (docs.stripe.com/error-low-level, /rate-limits, and the behaviour of Stripe's own clients):
//   no answer                retry: the effect is unknown, the same key makes the repeat harmless
//   2xx with a JSON object   delivered
//   2xx with anything else   retry: something between us and Stripe answered
//   401 session expired      retry: with another session of the event stream
//   401, 403                 pause: the key is wrong or lacks a permission; nothing else would fare better
//   429                      retry: refused before any effect, whatever Stripe-Should-Retry says about retrying at once
//   400 duplicate identifier delivered: an earlier attempt of this meter event arrived
//   Stripe-Should-Retry      decides, where present
//   5xx replayed             renew: Stripe remembers this answer for the key and would give it again for a day
//   409, 424, 5xx            retry with the same key
//   anything else            failed, with error type and code kept so that a caller can act on them
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace pg_billing::stripe {

// What came back from one attempt.
struct Answer {
    int status = 0;             // 0: nothing came back, network_error says why
    std::string network_error;  // e.g. "Operation timed out"
    std::string body;
    std::optional<bool> should_retry;  // Stripe-Should-Retry
    std::optional<std::chrono::seconds> retry_after;
    std::string rate_limited_reason;  // Stripe-Rate-Limited-Reason
    std::string request_id;           // Request-Id
    bool replayed = false;            // Idempotent-Replayed: true

    // Takes one raw header line ("Name: value\r\n") as it arrives; a status line resets what earlier lines
    // left.
    void read_header(std::string_view line);
};

enum class Outcome { delivered, retry, renew, failed, pause };

// What to do, and what to tell a person.
struct Verdict {
    Outcome outcome = Outcome::retry;
    std::string reason;       // empty if delivered by this attempt; never holds a key
    nlohmann::json response;  // the body, where it is a JSON object, else null
    std::string error_type, error_code, error_param;
};

// Judges one attempt's answer.
Verdict judge(const Answer &answer);

// Returns the outcome's name as billing._stripe_settle() takes it.
const char *outcome_name(Outcome outcome);

struct Backoff {
    std::chrono::milliseconds base{1'000};
    std::chrono::milliseconds cap{15 * 60'000};
};

// Returns how long to wait after the attempt-th failure (from 1): doubling up to the cap, spread by 13 %
// either way, and never less than Retry-After. `random` is uniform in [0, 1).
std::chrono::milliseconds retry_delay(int attempt, std::optional<std::chrono::seconds> retry_after,
                                      double random, const Backoff &backoff = {});

}  // namespace pg_billing::stripe
