#include "stripe/retry.hpp"

#include <algorithm>
#include <charconv>

namespace pg_billing::stripe {
namespace {

using nlohmann::json;

constexpr std::chrono::seconds kLongestRetryAfter = std::chrono::hours(24);

std::string_view trim(std::string_view text) {
    const auto first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos)
        return {};
    return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::string text_at(const json &object, const char *name) {
    const auto value = object.find(name);
    return value != object.end() && value->is_string() ? value->get<std::string>() : std::string();
}

// Stripe gives this 400 no code on v1 (docs name duplicate_meter_event for v2), so the message has to tell.
bool duplicate_meter_event(const Verdict &verdict, const std::string &message) {
    return verdict.error_code == "duplicate_meter_event" ||
           (verdict.error_type == "invalid_request_error" &&
            message.starts_with("An event already exists with identifier"));
}

Outcome outcome_of_error(const Answer &answer) {
    if (answer.status == 429)
        return Outcome::retry;
    if (answer.should_retry)
        return *answer.should_retry ? Outcome::retry : Outcome::failed;
    if (answer.status >= 500 && answer.replayed)
        return Outcome::renew;
    return answer.status == 409 || answer.status == 424 || answer.status >= 500 ? Outcome::retry
                                                                                : Outcome::failed;
}

}  // namespace

void Answer::read_header(std::string_view line) {
    if (line.starts_with("HTTP/")) {
        *this = Answer{};
        return;
    }
    const auto colon = line.find(':');
    if (colon == std::string_view::npos)
        return;
    std::string name(trim(line.substr(0, colon)));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
    const std::string_view value = trim(line.substr(colon + 1));
    if (name == "stripe-should-retry" && (value == "true" || value == "false")) {
        should_retry = value == "true";
    } else if (name == "retry-after") {
        // Stripe sends seconds; HTTP's other form, a date, is left to our own backoff.
        long seconds = 0;
        const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
        if (error == std::errc{} && end == value.data() + value.size() && seconds >= 0)
            retry_after = std::min(std::chrono::seconds(seconds), kLongestRetryAfter);
    } else if (name == "stripe-rate-limited-reason") {
        rate_limited_reason = value;
    } else if (name == "request-id") {
        request_id = value;
    } else if (name == "idempotent-replayed") {
        replayed = value == "true";
    }
}

Verdict judge(const Answer &answer) {
    Verdict verdict;
    if (answer.status == 0) {
        verdict.reason =
            "no answer: " + (answer.network_error.empty() ? "connection lost" : answer.network_error);
        return verdict;
    }
    verdict.response = json::parse(answer.body, nullptr, false);
    if (!verdict.response.is_object())
        verdict.response = nullptr;
    const bool success = answer.status >= 200 && answer.status < 300;
    if (success && verdict.response.is_object()) {
        verdict.outcome = Outcome::delivered;
        return verdict;
    }
    verdict.reason = "HTTP " + std::to_string(answer.status);
    if (success) {
        verdict.reason += " without a JSON object";
        return verdict;
    }
    const json error = verdict.response.is_object() ? verdict.response.value("error", json()) : json();
    std::string message;
    if (error.is_object()) {
        verdict.error_type = text_at(error, "type");
        verdict.error_code = text_at(error, "code");
        verdict.error_param = text_at(error, "param");
        message = text_at(error, "message");
    }
    if (answer.status == 401 && verdict.error_code != "billing_meter_event_session_expired") {
        // Stripe's message quotes part of the key: it goes no further.
        verdict.response = nullptr;
        verdict.outcome = Outcome::pause;
        verdict.reason += ": Stripe does not accept the API key";
        return verdict;
    }
    for (const std::string &part : {verdict.error_type, verdict.error_code, answer.rate_limited_reason})
        if (!part.empty())
            verdict.reason += " " + part;
    if (!message.empty())
        verdict.reason += ": " + message;
    if (!answer.request_id.empty())
        verdict.reason += " (" + answer.request_id + ")";
    if (answer.replayed)
        verdict.reason += ", replayed for this idempotency key";

    if (answer.status == 403)
        verdict.outcome = Outcome::pause;
    else if (answer.status == 401)
        verdict.outcome = Outcome::retry;
    else if (answer.status == 400 && duplicate_meter_event(verdict, message))
        verdict.outcome = Outcome::delivered;
    else
        verdict.outcome = outcome_of_error(answer);
    return verdict;
}

const char *outcome_name(Outcome outcome) {
    switch (outcome) {
        case Outcome::delivered:
            return "delivered";
        case Outcome::retry:
            return "retry";
        case Outcome::renew:
            return "renew";
        case Outcome::failed:
            return "failed";
        case Outcome::pause:
            return "pause";
    }
    return "retry";
}

std::chrono::milliseconds retry_delay(int attempt, std::optional<std::chrono::seconds> retry_after,
                                      double random, const Backoff &backoff) {
    using Milliseconds = std::chrono::duration<double, std::milli>;
    Milliseconds delay = backoff.base;
    for (int i = 1; i < attempt && delay < backoff.cap; ++i)
        delay *= 2;
    delay = std::min<Milliseconds>(delay, backoff.cap) * (0.87 + 0.26 * random);
    if (retry_after)
        delay = std::max<Milliseconds>(delay, *retry_after * (1 + 0.13 * random));
    return std::chrono::duration_cast<std::chrono::milliseconds>(delay);
}

}  // namespace pg_billing::stripe
