#include <gtest/gtest.h>

#include "stripe/retry.hpp"

namespace pg_billing::stripe {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::string error(const char *type, const char *code, const char *message) {
    nlohmann::json e = {{"type", type}, {"message", message}};
    if (*code)
        e["code"] = code;
    return nlohmann::json{{"error", e}}.dump();
}

const std::string kDuplicate =
    error("invalid_request_error", "", "An event already exists with identifier pgb_1.");
const std::string kRateLimit = error("rate_limit_error", "rate_limit", "Too many requests");

struct Case {
    const char *name;
    int status;
    std::string body;
    std::optional<bool> should_retry;
    Outcome outcome;
};

const Case kCases[] = {
    {"success", 200, R"({"id":"cus_1"})", {}, Outcome::delivered},
    {"success is not retried even if asked", 200, R"({"id":"cus_1"})", true, Outcome::delivered},
    {"success that is not JSON", 200, "<html>", {}, Outcome::retry},
    {"success without a body", 200, "", {}, Outcome::retry},
    {"no answer", 0, "", {}, Outcome::retry},
    {"unknown parameter", 400, error("invalid_request_error", "parameter_unknown", "x"), {}, Outcome::failed},
    {"duplicate meter event", 400, kDuplicate, false, Outcome::delivered},
    {"duplicate meter event, with a code",
     400,
     error("invalid_request_error", "duplicate_meter_event", "x"),
     {},
     Outcome::delivered},
    {"a message that only mentions a duplicate",
     400,
     error("invalid_request_error", "", "No. An event already exists with identifier a"),
     {},
     Outcome::failed},
    {"existing product",
     400,
     error("invalid_request_error", "resource_already_exists", "x"),
     {},
     Outcome::failed},
    {"idempotency key misused", 400, error("idempotency_error", "", "x"), {}, Outcome::failed},
    {"bad key", 401, error("invalid_request_error", "", "Invalid API Key provided: sk_test_abc"), false,
     Outcome::pause},
    {"session of the event stream has expired",
     401,
     error("temporary_session_expired", "billing_meter_event_session_expired", "x"),
     {},
     Outcome::retry},
    {"card declined", 402, error("card_error", "card_declined", "x"), {}, Outcome::failed},
    {"missing permission", 403, error("invalid_request_error", "", "x"), {}, Outcome::pause},
    {"missing object", 404, error("invalid_request_error", "resource_missing", "x"), {}, Outcome::failed},
    {"missing object, retry asked", 404, error("invalid_request_error", "resource_missing", "x"), true,
     Outcome::retry},
    {"key in use", 409, error("idempotency_error", "idempotency_key_in_use", "x"), {}, Outcome::retry},
    {"conflict, retry refused", 409, error("invalid_request_error", "", "x"), false, Outcome::failed},
    {"external dependency", 424, error("api_error", "", "x"), {}, Outcome::retry},
    {"rate limit", 429, kRateLimit, {}, Outcome::retry},
    {"rate limit, retry at once refused", 429, kRateLimit, false, Outcome::retry},
    {"server error", 500, error("api_error", "", "x"), {}, Outcome::retry},
    {"server error that is not JSON", 502, "Bad Gateway", {}, Outcome::retry},
    {"server error, retry refused", 500, error("api_error", "", "x"), false, Outcome::failed},
    {"a redirect is never followed", 302, "", {}, Outcome::failed},
};

TEST(StripeRetry, JudgesEveryKindOfAnswer) {
    for (const Case &c : kCases) {
        Answer answer;
        answer.status = c.status;
        answer.body = c.body;
        answer.should_retry = c.should_retry;
        const Verdict verdict = judge(answer);
        EXPECT_STREQ(outcome_name(verdict.outcome), outcome_name(c.outcome)) << c.name;
        EXPECT_EQ(verdict.reason.empty(), c.status == 200 && c.outcome == Outcome::delivered) << c.name;
    }
}

TEST(StripeRetry, AServerErrorThatIsRememberedWantsAnotherKey) {
    Answer answer;
    answer.status = 500;
    answer.replayed = true;
    EXPECT_EQ(judge(answer).outcome, Outcome::renew);
    answer.should_retry = false;
    EXPECT_EQ(judge(answer).outcome, Outcome::failed);
    answer.should_retry = {};
    answer.status = 409;
    EXPECT_EQ(judge(answer).outcome, Outcome::retry);
}

TEST(StripeRetry, KeepsWhatACallerActsOn) {
    Answer answer;
    answer.status = 400;
    answer.request_id = "req_9";
    answer.body = R"({"error":{"type":"invalid_request_error","code":"resource_already_exists","param":"id",
                      "message":"Product already exists."}})";
    const Verdict verdict = judge(answer);
    EXPECT_EQ(verdict.error_type, "invalid_request_error");
    EXPECT_EQ(verdict.error_code, "resource_already_exists");
    EXPECT_EQ(verdict.error_param, "id");
    EXPECT_EQ(verdict.response["error"]["param"], "id");
    EXPECT_EQ(verdict.reason,
              "HTTP 400 invalid_request_error resource_already_exists: Product already exists. (req_9)");
}

TEST(StripeRetry, NeverRepeatsTheKeyStripeQuotes) {
    Answer answer;
    answer.status = 401;
    answer.body = error("invalid_request_error", "", "Invalid API Key provided: sk_test_secret");
    const Verdict verdict = judge(answer);
    EXPECT_EQ(verdict.reason.find("sk_test"), std::string::npos);
    EXPECT_TRUE(verdict.response.is_null());
}

TEST(StripeRetry, ReadsHeadersAsTheyArrive) {
    Answer answer;
    for (const char *line :
         {"HTTP/1.1 103 Early Hints\r\n", "Retry-After: 99\r\n", "\r\n", "HTTP/1.1 429 Too Many Requests\r\n",
          "STRIPE-SHOULD-RETRY: true\r\n", "retry-after:  7 \r\n", "Request-Id: req_1\r\n",
          "Stripe-Rate-Limited-Reason: global-rate\r\n", "Idempotent-Replayed: true\r\n", "nonsense\r\n",
          "\r\n"})
        answer.read_header(line);
    EXPECT_EQ(answer.should_retry, true);
    EXPECT_EQ(answer.retry_after, seconds(7));
    EXPECT_EQ(answer.request_id, "req_1");
    EXPECT_EQ(answer.rate_limited_reason, "global-rate");
    EXPECT_TRUE(answer.replayed);

    Answer final;
    for (const char *line : {"HTTP/1.1 103 Early Hints\r\n", "Idempotent-Replayed: true\r\n",
                             "Request-Id: req_0\r\n", "HTTP/1.1 200 OK\r\n"})
        final.read_header(line);
    EXPECT_FALSE(final.replayed) << "an interim answer leaves nothing behind";
    EXPECT_EQ(final.request_id, "");

    Answer other;
    for (const char *line :
         {"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n", "Stripe-Should-Retry: perhaps\r\n"})
        other.read_header(line);
    EXPECT_FALSE(other.retry_after || other.should_retry);
    other.read_header("Retry-After: 100000000\r\n");
    EXPECT_EQ(other.retry_after, seconds(24 * 3600)) << "no answer stops us for longer than a day";
}

TEST(StripeRetry, DelayDoublesToItsCapWithJitter) {
    const Backoff backoff{milliseconds(1000), milliseconds(60000)};
    EXPECT_EQ(retry_delay(1, {}, 0.5, backoff), milliseconds(1000));
    EXPECT_EQ(retry_delay(2, {}, 0.5, backoff), milliseconds(2000));
    EXPECT_EQ(retry_delay(6, {}, 0.5, backoff), milliseconds(32000));
    EXPECT_EQ(retry_delay(7, {}, 0.5, backoff), milliseconds(60000));
    EXPECT_EQ(retry_delay(1000000, {}, 0.5, backoff), milliseconds(60000));
    EXPECT_EQ(retry_delay(1, {}, 0.0, backoff), milliseconds(870));
    EXPECT_NEAR(static_cast<double>(retry_delay(1, {}, 0.999999, backoff).count()), 1130, 1);
    EXPECT_EQ(retry_delay(1, seconds(30), 0.0, backoff), milliseconds(30000)) << "never before Retry-After";
    EXPECT_EQ(retry_delay(7, seconds(1), 0.5, backoff), milliseconds(60000))
        << "nor sooner than our own delay";
}

}  // namespace
}  // namespace pg_billing::stripe
