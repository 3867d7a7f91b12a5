// What every request goes through: routing, credentials, content type, query, idempotency keys, and batches of events.
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "shim/caller.hpp"
#include "shim/events.hpp"
#include "shim/problem.hpp"
#include "shim/query.hpp"
#include "shim/router.hpp"
#include "shim/webhook_secrets.hpp"

namespace pg_billing::shim {
namespace {

using boost::asio::awaitable;

http::Request request_with(http::Fields fields, std::string body = {}) {
    http::Request request;
    request.method = "POST";
    request.fields = std::move(fields);
    request.body = std::move(body);
    return request;
}

template <class F>
std::string refusal(F &&f) {
    try {
        f();
    } catch (const Problem &problem) {
        return std::to_string(problem.status) + " " + problem.code;
    }
    return "accepted";
}

class Routing : public testing::Test {
  protected:
    Routing() {
        router.add("GET", "/things", answer("list"));
        router.add("POST", "/things", answer("new"));
        router.add("GET", "/things/:id", answer("one"));
        router.add("GET", "/fails", [](const Call &) -> awaitable<http::Response> {
            throw std::runtime_error("secret");
            co_return http::Response();
        });
        router.add("GET", "/refuses", [](const Call &) -> awaitable<http::Response> {
            throw PgFailure("UB031", "exists already");
            co_return http::Response();
        });
    }

    static Endpoint answer(std::string name) {
        return [name](const Call &call) -> awaitable<http::Response> {
            http::Response response;
            response.body = name + (call.captures.empty() ? "" : " " + call.captures[0]);
            co_return response;
        };
    }

    http::Response ask(std::string method, std::string path, http::Fields fields = {}) {
        http::Request request = request_with(std::move(fields));
        request.method = std::move(method);
        request.path = std::move(path);
        http::Response response;
        boost::asio::io_context context;
        boost::asio::co_spawn(context, router.handle(std::move(request)),
                              [&](std::exception_ptr, http::Response given) { response = std::move(given); });
        context.run();
        return response;
    }

    static std::string header(const http::Response &response, const std::string &name) {
        for (const auto &[key, value] : response.fields)
            if (key == name)
                return value;
        return "";
    }

    Router router;
};

TEST_F(Routing, FindsTheEndpoint) {
    EXPECT_EQ(ask("GET", "/things").body, "list");
    EXPECT_EQ(ask("POST", "/things").body, "new");
    EXPECT_EQ(ask("HEAD", "/things").body, "list");
    EXPECT_EQ(ask("GET", "/things/a%20b%2Fc").body, "one a b/c");
    EXPECT_EQ(ask("GET", "/th%69ngs").body, "list");
}

TEST_F(Routing, RefusesOtherPathsAndMethods) {
    for (const char *path : {"", "/", "/thing", "/things/", "/things/1/2", "//things", "*"})
        EXPECT_EQ(ask("GET", path).status, 404u) << path;
    EXPECT_EQ(ask("GET", "/things/%4").status, 400u);
    const http::Response response = ask("DELETE", "/things");
    EXPECT_EQ(response.status, 405u);
    EXPECT_EQ(header(response, "Allow"), "OPTIONS, GET, HEAD, POST");
    EXPECT_EQ(ask("BREW", "/things").status, 405u);
    EXPECT_EQ(ask("GET", "/things/a%00b").status, 400u) << "PostgreSQL would read it as a";
}

TEST_F(Routing, TellsTheMethodsOfAnAddress) {
    const http::Response response = ask("OPTIONS", "/things");
    EXPECT_EQ(response.status, 204u);
    EXPECT_EQ(header(response, "Allow"), "OPTIONS, GET, HEAD, POST");
    EXPECT_EQ(ask("OPTIONS", "/nope").status, 404u);
}

TEST_F(Routing, TellsBrowsersThatNothingIsToBeShownOrKept) {
    for (const char *path : {"/things", "/nope", "/refuses", "/fails"}) {
        const http::Response response = ask("GET", path);
        EXPECT_EQ(header(response, "Cache-Control"), "no-store");
        EXPECT_EQ(header(response, "X-Content-Type-Options"), "nosniff");
        EXPECT_EQ(header(response, "Content-Security-Policy"), "default-src 'none'; frame-ancestors 'none'");
        EXPECT_EQ(header(response, "Referrer-Policy"), "no-referrer");
        EXPECT_EQ(header(response, "Strict-Transport-Security"), "");
        EXPECT_EQ(header(response, "Vary"), "");
    }
}

TEST(Browsers, LetTheirPagesCallIfTheirOriginMay) {
    const BrowserRules rules{{"https://app.example.com", "http://localhost:5173"}, true};
    const auto fields = [&rules](const char *origin, bool preflight) {
        http::Response response{204, {{"Allow", "OPTIONS, GET"}}, {}};
        add_security_fields(response, rules);
        add_cors_fields(response, rules, origin, preflight);
        return std::map<std::string, std::string>(response.fields.begin(), response.fields.end());
    };
    for (const char *origin :
         {"", "https://app.example.com.evil.example", "http://app.example.com", "null"}) {
        EXPECT_FALSE(fields(origin, true).contains("Access-Control-Allow-Origin")) << origin;
        EXPECT_EQ(fields(origin, true)["Vary"], "Origin");
    }
    auto answer = fields("http://localhost:5173", false);
    EXPECT_EQ(answer["Access-Control-Allow-Origin"], "http://localhost:5173");
    EXPECT_EQ(answer["Access-Control-Expose-Headers"],
              "Location, RateLimit, RateLimit-Policy, Retry-After, traceresponse, X-Request-Id");
    EXPECT_FALSE(answer.contains("Access-Control-Allow-Methods"));
    EXPECT_FALSE(answer.contains("Access-Control-Allow-Credentials"));
    EXPECT_EQ(answer["Strict-Transport-Security"], "max-age=31536000");
    answer = fields("https://app.example.com", true);
    EXPECT_EQ(answer["Access-Control-Allow-Methods"], "OPTIONS, GET");
    EXPECT_NE(answer["Access-Control-Allow-Headers"].find("Authorization"), std::string::npos);
}

TEST(Browsers, WriteAnOriginInOneWay) {
    for (const char *good : {"https://app.example.com", "http://localhost:5173", "http://[::1]:8080"})
        EXPECT_TRUE(is_origin(good)) << good;
    for (const char *bad :
         {"", "*", "null", "app.example.com", "https://app.example.com/", "https://App.example.com",
          "https://app.example.com:", "https://*.example.com", "ftp://example.com", "https://a b"})
        EXPECT_FALSE(is_origin(bad)) << bad;
}

TEST_F(Routing, TurnsExceptionsIntoProblems) {
    EXPECT_EQ(ask("GET", "/refuses").status, 409u);
    const http::Response response = ask("GET", "/fails");
    EXPECT_EQ(response.status, 500u);
    EXPECT_EQ(response.body.find("secret"), std::string::npos);
}

TEST_F(Routing, HandsBackOrMakesTheRequestId) {
    EXPECT_EQ(header(ask("GET", "/things", {{"x-request-id", "abc-1"}}), "X-Request-Id"), "abc-1");
    EXPECT_EQ(header(ask("GET", "/nope", {{"x-request-id", "abc-1"}}), "X-Request-Id"), "abc-1");
    const std::string made = header(ask("GET", "/things", {{"x-request-id", "bad id\"\n"}}), "X-Request-Id");
    EXPECT_EQ(made.size(), 32u);
    EXPECT_NE(made, header(ask("GET", "/things"), "X-Request-Id"));
}

TEST(Caller, PresentsTheHashOfTheWholeKey) {
    const Statement statement = begin_request(
        {request_with({{"authorization", "bearer  pgb_abc "}, {"x-tenant-id", "acme"}}), {}}, "usage:read");
    // printf pgb_abc | sha256sum
    EXPECT_EQ(statement.parameters[0], "\\x5831850ace844f0156759aee1abcdb3924ce0f2ad96b0c96692c91b4ce0b0d0e");
    EXPECT_EQ(statement.parameters[1], "acme");
    EXPECT_EQ(statement.parameters[2], "usage:read");
    EXPECT_EQ(begin_request({request_with({{"x-api-key", "pgb_abc"}}), {}}, "").parameters[0],
              statement.parameters[0]);
    EXPECT_EQ(begin_request({request_with({{"x-api-key", "pgb_abc"}}), {}}, "").parameters[1], std::nullopt);
}

TEST(Caller, RefusesOtherCredentials) {
    const auto ask = [](http::Fields fields) {
        return refusal([&] { begin_request({request_with(std::move(fields)), {}}, "s"); });
    };
    EXPECT_EQ(ask({}), "401 missing_api_key");
    EXPECT_EQ(ask({{"authorization", "Basic cGdiXzE6"}}), "401 invalid_api_key");
    EXPECT_EQ(ask({{"authorization", "Bearer"}}), "401 invalid_api_key");
    EXPECT_EQ(ask({{"authorization", "Bearer sk_live_1"}}), "401 invalid_api_key");
    EXPECT_EQ(ask({{"x-api-key", ""}}), "401 invalid_api_key");
}

TEST(Caller, WantsJsonInUtf8) {
    const auto ask = [](const char *type) {
        return refusal([&] { json_body(request_with({{"content-type", type}}, "{}")); });
    };
    for (const char *good : {"application/json", "Application/JSON", "application/json; charset=utf-8",
                             "application/json;charset=UTF-8", "application/json;charset=\"utf-8\""})
        EXPECT_EQ(ask(good), "accepted") << good;
    for (const char *bad :
         {"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1",
          "application/jsonp", "application/cloudevents+json"})
        EXPECT_EQ(ask(bad), "415 unsupported_media_type") << bad;
    EXPECT_EQ(refusal([&] { json_body(request_with({}, "{}")); }), "415 unsupported_media_type");
}

TEST(Caller, ReadsTheIdempotencyKeyQuotedOrBare) {
    const auto ask = [](const char *value) {
        return idempotency_key(request_with({{"idempotency-key", value}}));
    };
    EXPECT_EQ(ask("abc"), "abc");
    EXPECT_EQ(ask(" \"abc\" "), "abc");
    EXPECT_EQ(ask("\"a\\\"b\\\\c\""), "a\"b\\c");
    EXPECT_EQ(ask("\""), "\"");
    EXPECT_EQ(idempotency_key(request_with({})), std::nullopt);
}

http::Request request_for(std::string query) {
    http::Request request;
    request.query = std::move(query);
    return request;
}

TEST(Query, ReadsParametersByType) {
    const Query query(request_for("metric=a+b%2Bc&quantity=1.50&limit=007&flag=false&&empty="),
                      {"metric", "quantity", "limit", "flag", "empty", "absent"});
    EXPECT_EQ(query.required_text("metric"), "a b+c");
    EXPECT_EQ(query.decimal("quantity"), "1.50");
    EXPECT_EQ(query.integer("limit", 1, 100), "7");
    EXPECT_EQ(query.boolean("flag"), "false");
    EXPECT_EQ(query.text("empty"), "");
    EXPECT_EQ(query.text("absent"), std::nullopt);
    EXPECT_EQ(query.integer("absent", 1, 2), std::nullopt);
}

TEST(Query, NamesTheParameterAtFault) {
    const auto ask = [](std::string text) {
        try {
            const Query query(request_for(std::move(text)), {"n", "q", "f", "t"});
            query.integer("n", 1, 100);
            query.decimal("q");
            query.boolean("f");
            query.required_text("t");
        } catch (const Problem &problem) {
            return std::to_string(problem.status) + " " + problem.code + " " + problem.field;
        }
        return std::string("accepted");
    };
    EXPECT_EQ(ask("n=1&q=-1e3&f=true&t="), "accepted");
    for (const char *n : {"0", "101", "-1", "+1", "1.0", "", "x", "1x", "99999999999999999999"})
        EXPECT_EQ(ask(std::string("t&n=") + n), "400 invalid_type n") << n;
    for (const char *q : {"", "x", "0x1", ".5", "1,5", "NaN", "Infinity", "%201"})
        EXPECT_EQ(ask(std::string("t&q=") + q), "400 invalid_type q") << q;
    for (const char *f : {"", "1", "yes", "TRUE"})
        EXPECT_EQ(ask(std::string("t&f=") + f), "400 invalid_type f") << f;
    EXPECT_EQ(ask(""), "400 missing_parameter t");
    EXPECT_EQ(ask("t=1&u=2"), "400 unknown_parameter u");
    EXPECT_EQ(ask("t=1&T=2"), "400 unknown_parameter T");
    EXPECT_EQ(ask("t=1&n=1&t=1"), "400 duplicate_parameter t");
    EXPECT_EQ(ask("t=a%00b"), "400 invalid_value t");
    EXPECT_EQ(ask("t=%4"), "400 malformed_request ");
    EXPECT_EQ(refusal([] { refuse_query(request_for("x=1")); }), "400 unknown_parameter");
    EXPECT_EQ(refusal([] { refuse_query(request_for("")); }), "accepted");
}

TEST(Query, TakesAFlagHereOrFromTheBody) {
    const Json json = parse_json(R"({"f": true})"), none = parse_json("{}");
    const Members body(json, {"f"}), empty(none, {"f"});
    EXPECT_EQ(Query(request_for(""), {"f"}).boolean("f", body), "true");
    EXPECT_EQ(Query(request_for("f=false"), {"f"}).boolean("f", empty), "false");
    EXPECT_EQ(Query(request_for(""), {"f"}).boolean("f", empty), std::nullopt);
    EXPECT_EQ(refusal([&] { Query(request_for("f=true"), {"f"}).boolean("f", body); }),
              "400 duplicate_parameter");
}

http::Request json_request(std::string body) {
    return request_with({{"content-type", "application/json"}}, std::move(body));
}

TEST(Post, RejectsEventsOneByOne) {
    Post post(json_request(R"([
        {"metric":"m","quantity":"1.50","idempotencyKey":"a","occurredAt":"2026-11-22T10:00:00Z","properties":{"x":1.0}},
        {"metric":"m","nope":1,"idempotencyKey":"b"},
        7,
        {"metric":"m2"}])"));
    const std::vector<Event> events = post.take_events();
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0].quantity, "1.50");
    EXPECT_EQ(events[0].properties, R"({"x":1.0})");
    EXPECT_EQ(events[1].metric, "m2");
    const std::vector<Recorded> recorded = {{"a", {"duplicate", "within_quota"}},
                                            {std::nullopt, {"rejected", "UB011: unknown metric \"m2\""}}};
    Rejections rejections;
    EXPECT_EQ(nlohmann::json::parse(post.answer(recorded, rejections).body),
              nlohmann::json::parse(R"({"results":[
        {"ordinal":1,"idempotencyKey":"a","status":"duplicate"},
        {"ordinal":2,"idempotencyKey":"b","status":"rejected","code":"unknown_field","field":"nope",
         "reason":"There is no member \"nope\" here."},
        {"ordinal":3,"idempotencyKey":null,"status":"rejected","code":"invalid_type",
         "reason":"A JSON object is expected here."},
        {"ordinal":4,"idempotencyKey":null,"status":"rejected","code":"unknown_metric","field":"metric",
         "reason":"unknown metric \"m2\""}]})"));
    EXPECT_EQ(rejections.count, 3u);
    EXPECT_EQ(rejections.code, "unknown_field");
}

TEST(Post, FailsAsAWholeIfTheRequestLacksATenant) {
    Post post(json_request(R"([{"metric":"m"}])"));
    Rejections rejections;
    EXPECT_EQ(refusal([&] {
                  post.answer({{std::nullopt, {"rejected", "UB043: name the tenant"}}}, rejections);
              }),
              "400 tenant_required");
}

TEST(Post, IsBounded) {
    std::string text = "[{\"metric\":\"m\"}";
    for (int i = 1; i < 1000; ++i)
        text += ",{\"metric\":\"m\"}";
    EXPECT_EQ(refusal([&] { Post post(json_request(text + "]")); }), "accepted");
    EXPECT_EQ(refusal([&] { Post post(json_request(text + ",{}]")); }), "422 too_many_events");
    EXPECT_TRUE(Post(json_request("[]")).take_events().empty());
}

TEST(WebhookSecrets, AreReadAgainAndKeptWhenThatFails) {
    const std::string path = testing::TempDir() + "pg_billing_webhook_secrets";
    std::ofstream(path) << "whsec_old\n\n  whsec_new \r\n";
    WebhookSecrets secrets({path});
    EXPECT_EQ(secrets.get(), (std::vector<std::string>{"whsec_old", "whsec_new"}));
    std::ofstream(path) << "whsec_new\n";
    secrets.reload();
    EXPECT_EQ(secrets.get(), std::vector<std::string>{"whsec_new"});
    std::ofstream(path) << "\n";
    EXPECT_THROW(secrets.reload(), std::runtime_error);
    EXPECT_EQ(secrets.get(), std::vector<std::string>{"whsec_new"});
    const std::string thin = path + "_thin";
    std::ofstream(path) << "whsec_new\n";
    std::ofstream(thin) << "whsec_thin\n";
    EXPECT_EQ(WebhookSecrets({path, thin}).get(), (std::vector<std::string>{"whsec_new", "whsec_thin"}));
    EXPECT_THROW(WebhookSecrets({path, "/nonexistent/file"}), std::runtime_error) << "none is left out";
    std::remove(path.c_str());
    std::remove(thin.c_str());
    EXPECT_TRUE(WebhookSecrets({}).get().empty());
}

}  // namespace
}  // namespace pg_billing::shim
