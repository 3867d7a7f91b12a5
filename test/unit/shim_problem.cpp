// Which SQLSTATE becomes which problem, how a problem looks on the wire, and the RateLimit fields.
#include "shim/problem.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "shim/rate_limit.hpp"

namespace pg_billing::shim {
namespace {

std::string header(const http::Response &response, const std::string &name) {
    for (const auto &[key, value] : response.fields)
        if (key == name)
            return value;
    return "";
}

TEST(Problem, MapsEverySqlstateOfTheContract) {
    const struct {
        const char *sqlstate;
        unsigned status;
        const char *code;
    } cases[] = {
        {"UB001", 429, "quota_exceeded"},
        {"UB010", 404, "unknown_tenant"},
        {"UB011", 422, "unknown_metric"},
        {"UB012", 422, "unknown_plan"},
        {"UB020", 422, "invalid_quantity"},
        {"UB021", 422, "quantity_out_of_range"},
        {"UB022", 422, "occurred_at_out_of_window"},
        {"UB023", 422, "invalid_idempotency_key"},
        {"UB024", 400, "invalid_tenant_id"},
        {"UB025", 422, "invalid_properties"},
        {"UB026", 422, "malformed_event"},
        {"UB027", 422, "not_consumable"},
        {"UB028", 404, "unknown_reservation"},
        {"UB029", 409, "reservation_ended"},
        {"UB030", 409, "customer_exists"},
        {"UB031", 409, "subscription_exists"},
        {"UB032", 422, "invalid_argument"},
        {"UB033", 404, "unknown_idempotency_key"},
        {"UB034", 410, "usage_not_kept"},
        {"UB035", 422, "gauge_below_zero"},
        {"UB036", 404, "no_subscription"},
        {"UB040", 403, "tenant_not_permitted"},
        {"UB041", 401, "invalid_api_key"},
        {"UB042", 403, "insufficient_scope"},
        {"UB043", 400, "tenant_required"},
        {"UB050", 503, "not_installed"},
        {"UB051", 503, "capacity_exhausted"},
        {"UB060", 503, "stripe_sync_timed_out"},
        {"UB061", 503, "stripe_paused"},
        {"3F000", 503, "not_installed"},
        {"42883", 503, "not_installed"},
        {"22008", 400, "invalid_value"},
        {"22021", 400, "invalid_value"},
        {"08006", 503, "unavailable"},
        {"40001", 503, "unavailable"},
        {"40P01", 503, "unavailable"},
        {"53300", 503, "unavailable"},
        {"57014", 503, "unavailable"},
        {"57P01", 503, "unavailable"},
        {"25006", 503, "unavailable"},
    };
    for (const auto &one : cases) {
        const Problem problem = to_problem(PgFailure(one.sqlstate, "message"));
        EXPECT_EQ(problem.status, one.status) << one.sqlstate;
        EXPECT_EQ(problem.code, one.code) << one.sqlstate;
        EXPECT_EQ(problem.detail == "message", one.sqlstate[0] == 'U') << one.sqlstate;
    }
}

TEST(Problem, TellsNothingOfAnUnknownError) {
    for (const char *sqlstate : {"XX000", "42501", "23505", "42601", "P0001", ""}) {
        const http::Response response =
            to_response(to_problem(PgFailure(sqlstate, "SELECT secret FROM hidden")));
        EXPECT_EQ(response.status, 500u) << sqlstate;
        EXPECT_EQ(response.body.find("secret"), std::string::npos);
    }
}

TEST(Problem, LooksLikeRfc9457) {
    const http::Response response = to_response(to_problem(PgFailure("UB011", "unknown metric \"x\"")));
    EXPECT_EQ(response.status, 422u);
    EXPECT_EQ(header(response, "Content-Type"), "application/problem+json");
    EXPECT_EQ(nlohmann::json::parse(response.body),
              nlohmann::json::parse(R"({"type": "urn:problem-type:pg_billing:unknown_metric", "status": 422,
                  "title": "Unknown metric", "detail": "unknown metric \"x\"", "code": "unknown_metric",
                  "field": "metric"})"));
}

TEST(Problem, CarriesTheDecisionDigitByDigit) {
    Problem problem(429, "hard_cap", "no more");
    problem.policy = "seats";
    problem.decision = R"({"used":99999999999999999999.125})";
    const std::string body = to_response(problem).body;
    EXPECT_NE(body.find(R"(,"decision":{"used":99999999999999999999.125}})"), std::string::npos) << body;
    const auto json = nlohmann::json::parse(body);
    EXPECT_EQ(json["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    EXPECT_EQ(json["violated-policies"], nlohmann::json::array({"seats"}));
}

TEST(Problem, SurvivesInvalidUtf8) {
    const http::Response response = to_response(Problem(400, "invalid_value", "\xff"));
    EXPECT_NO_THROW(nlohmann::json::parse(response.body));
}

TEST(Problem, AddsTheHeadersItsStatusNeeds) {
    EXPECT_NE(header(to_response(to_problem(PgFailure("UB041", ""))), "WWW-Authenticate"), "");
    EXPECT_EQ(header(to_response(unavailable("")), "Retry-After"), "1");
    EXPECT_EQ(header(to_response(Problem(400, "x", "")), "Retry-After"), "");
}

TEST(RateLimit, FormatsStructuredFields) {
    const auto fields = rate_limit_fields("llm_tokens", {"10000", "41", "30"});
    ASSERT_EQ(fields.size(), 2u);
    EXPECT_EQ(fields[0], std::pair(std::string("RateLimit-Policy"), std::string("\"llm_tokens\";q=10000")));
    EXPECT_EQ(fields[1], std::pair(std::string("RateLimit"), std::string("\"llm_tokens\";r=41;t=30")));
}

TEST(RateLimit, OmitsWhatThereIsNot) {
    EXPECT_EQ(rate_limit_fields("seats", {"3", "0", std::nullopt})[1].second, "\"seats\";r=0");
    EXPECT_TRUE(rate_limit_fields("seats", {std::nullopt, std::nullopt, "30"}).empty());
}

TEST(RateLimit, StaysWithinWhatAStructuredFieldMayHold) {
    const auto fields = rate_limit_fields("a\"b\\c", {"1234567890123456", "123456789012345", "1"});
    EXPECT_EQ(fields[0].second, "\"a\\\"b\\\\c\";q=999999999999999");
    EXPECT_EQ(fields[1].second, "\"a\\\"b\\\\c\";r=123456789012345;t=1");
    EXPECT_TRUE(rate_limit_fields("tok\xc3\xa9n", {"1", "1", "1"}).empty());
    EXPECT_TRUE(rate_limit_fields("a\r\nX: y", {"1", "1", "1"}).empty());
}

}  // namespace
}  // namespace pg_billing::shim
