// Traces are taken on where they are stated as W3C Trace Context has them, and the log tells of requests in JSON.
#include "shim/trace.hpp"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "shim/log.hpp"
#include "shim/problem.hpp"
#include "shim/router.hpp"

namespace pg_billing::shim {
namespace {

const std::string kTraceId = "4bf92f3577b34da6a3ce929d0e0e4736", kParentId = "00f067aa0ba902b7";
const std::string kGood = "00-" + kTraceId + "-" + kParentId + "-01";

TEST(Traceparent, IsReadAsTheStandardHasIt) {
    EXPECT_EQ(parse_traceparent(kGood), (Trace{kTraceId, kParentId, "", true}));
    const auto with = [](std::size_t at, const std::string &text) {
        return parse_traceparent(std::string(kGood).replace(at, text.size(), text));
    };
    EXPECT_FALSE(with(53, "00")->sampled);
    EXPECT_FALSE(with(53, "fe")->sampled) << "only the last bit tells";
    EXPECT_TRUE(with(53, "0b")->sampled);
    EXPECT_TRUE(with(0, "01")) << "a later version";
    EXPECT_TRUE(parse_traceparent("cc" + kGood.substr(2) + "-what-comes"));
    EXPECT_EQ(parse_traceparent("cc" + kGood.substr(2) + "-what-comes")->trace_id, kTraceId);
}

TEST(Traceparent, IsRefusedOtherwise) {
    const std::string zeros(32, '0');
    for (const std::string &bad : {std::string(),
                                   std::string("00"),
                                   kGood.substr(0, 54),
                                   kGood + "-",
                                   kGood + "-00",
                                   kGood + "0",
                                   " " + kGood,
                                   kGood + " ",
                                   "ff" + kGood.substr(2),
                                   "0x" + kGood.substr(2),
                                   "cc" + kGood.substr(2) + ".what",
                                   "cc" + kGood.substr(2) + "0",
                                   "00-" + zeros + "-" + kParentId + "-01",
                                   "00-" + kTraceId + "-" + zeros.substr(16) + "-01",
                                   "00-4BF92F3577B34DA6A3CE929D0E0E4736-" + kParentId + "-01",
                                   "00-" + kTraceId + "-00F067AA0BA902B7-01",
                                   "00-" + kTraceId + "-" + kParentId + "-0G",
                                   "00-" + kTraceId + "-" + kParentId + "-0A",
                                   "00_" + kTraceId + "-" + kParentId + "-01",
                                   "00-" + kTraceId + "_" + kParentId + "-01",
                                   "00-" + kTraceId + "-" + kParentId + "_01"})
        EXPECT_FALSE(parse_traceparent(bad)) << bad;
}

TEST(Trace, BeginsAnewWhereNoneCanBeTakenOn) {
    http::Request request;
    request.fields = {{"traceparent", kGood}};
    const Trace taken = trace_of(request);
    EXPECT_EQ(taken.trace_id, kTraceId);
    EXPECT_EQ(taken.parent_id, kParentId);
    EXPECT_EQ(traceresponse(taken), "00-" + kTraceId + "-" + taken.span_id + "-01");
    std::set<std::string> spans{taken.span_id, trace_of(request).span_id}, traces{kTraceId};
    for (const http::Fields &fields :
         {http::Fields{}, {{"traceparent", "00-x"}}, {{"traceparent", kGood}, {"traceparent", kGood}}}) {
        request.fields = fields;
        const Trace begun = trace_of(request);
        EXPECT_TRUE(begun.parent_id.empty());
        EXPECT_TRUE(parse_traceparent(traceresponse(begun))) << traceresponse(begun);
        spans.insert(begun.span_id);
        traces.insert(begun.trace_id);
    }
    EXPECT_EQ(spans.size(), 5u);
    EXPECT_EQ(traces.size(), 4u);
}

TEST(Log, IsOneObjectPerLine) {
    testing::internal::CaptureStderr();
    log("odd", {{"text", "a\n\"b\"\xff"}, {"number", 7u}});
    const std::string line = testing::internal::GetCapturedStderr();
    EXPECT_EQ(line.find('\n'), line.size() - 1);
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["event"], "odd");
    EXPECT_EQ(json["text"], "a\n\"b\"\ufffd");
    EXPECT_EQ(json["number"], 7);
    const std::string time = json["time"];
    EXPECT_TRUE(time.size() == 24 && time[10] == 'T' && time[19] == '.' && time.back() == 'Z') << time;
}

// What is logged of one request that an endpoint answers, or fails; null: nothing.
nlohmann::json logged(bool all, const std::function<http::Response()> &endpoint, http::Fields fields = {},
                      const std::string &path = "/secrets/s3cret") {
    Router router({}, nullptr, all);
    router.add("GET", "/secrets/:id",
               [&](const Call &) -> boost::asio::awaitable<http::Response> { co_return endpoint(); });
    http::Request request;
    request.method = "GET";
    request.path = path;
    request.query = "token=s3cret";
    request.body = "s3cret";
    request.fields = std::move(fields);
    request.fields.emplace_back("authorization", "Bearer s3cret");
    testing::internal::CaptureStderr();
    boost::asio::io_context context;
    boost::asio::co_spawn(context, router.handle(std::move(request)),
                          [](std::exception_ptr, http::Response) {});
    context.run();
    const std::string line = testing::internal::GetCapturedStderr();
    EXPECT_EQ(line.find("s3cret"), line.npos) << line;
    return line.empty() ? nlohmann::json() : nlohmann::json::parse(line);
}

TEST(Log, TellsOfEveryRequestIfItIsToDoSo) {
    const auto good = [] { return http::Response{}; };
    const auto line =
        logged(true, good, {{"x-request-id", "req-1"}, {"x-tenant-id", "acme"}, {"traceparent", kGood}});
    EXPECT_EQ(line["event"], "request");
    EXPECT_EQ(line["request_id"], "req-1");
    EXPECT_EQ(line["trace_id"], kTraceId);
    EXPECT_EQ(line["parent_id"], kParentId);
    EXPECT_EQ(line["method"], "GET");
    EXPECT_EQ(line["route"], "/secrets/:id");
    EXPECT_EQ(line["status"], 200);
    EXPECT_TRUE(line["duration_us"].is_number_unsigned());
    EXPECT_EQ(line["tenant"], "acme");
    const auto nowhere = logged(true, good, {}, "/nothing/s3cret");
    EXPECT_EQ(nowhere["status"], 404);
    for (const char *unknown : {"route", "tenant", "parent_id"})
        EXPECT_FALSE(nowhere.contains(unknown)) << unknown;
    EXPECT_TRUE(logged(false, good).is_null());
}

TEST(Log, TellsOfFailuresAlways) {
    const auto failing = logged(false, []() -> http::Response { throw std::runtime_error("broken"); });
    EXPECT_EQ(failing["status"], 500);
    EXPECT_EQ(failing["error"], "broken");
    const auto refused =
        logged(false, []() -> http::Response { throw PgFailure("XX000", "cache lookup failed"); });
    EXPECT_EQ(refused["sqlstate"], "XX000");
    EXPECT_EQ(refused["error"], "cache lookup failed");
    EXPECT_TRUE(logged(false, []() -> http::Response { throw Problem(404, "x", "x"); }).is_null());
    for (const char *status : {"401", "403"}) {
        const auto claim =
            logged(true, [&]() -> http::Response { throw Problem(std::stoul(status), "x", "x"); },
                   {{"x-tenant-id", "acme"}});
        EXPECT_FALSE(claim.contains("tenant")) << status;
    }
}

}  // namespace
}  // namespace pg_billing::shim
