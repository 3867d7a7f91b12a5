// CloudEvents 1.0 as usage: what the three content modes become, and the rules for attributes.
#include <gtest/gtest.h>

#include "shim/cloud_events.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {
namespace {

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
        return std::to_string(problem.status) + " " + problem.code + " " + problem.field;
    }
    return "accepted";
}

std::string structured(const std::string &members) {
    const std::string base = R"("specversion":"1.0","id":"7","source":"/gateway/1","type":"llm_tokens")";
    return refusal([&] { read_cloud_event(parse_json("{" + base + members + "}")); });
}

TEST(CloudEvents, AreToldByContentTypeAndHeaders) {
    const auto mode = [](http::Fields fields) { return cloud_events_mode(request_with(std::move(fields))); };
    EXPECT_EQ(mode({{"content-type", "application/json"}}), CloudEventsMode::none);
    EXPECT_EQ(mode({{"content-type", "Application/CloudEvents+JSON; charset=UTF-8"}}),
              CloudEventsMode::structured);
    EXPECT_EQ(mode({{"content-type", "application/cloudevents-batch+json"}}), CloudEventsMode::batched);
    EXPECT_EQ(mode({{"content-type", "application/json"}, {"ce-id", "1"}}), CloudEventsMode::binary);
    EXPECT_EQ(mode({{"content-type", "application/cloudevents+json"}, {"ce-id", "1"}}),
              CloudEventsMode::structured);
    for (const char *other :
         {"application/cloudevents+avro", "application/cloudevents", "application/cloudevents-batch+xml"})
        EXPECT_EQ(refusal([&] {
                      mode({{"content-type", other}});
                  }),
                  "415 unsupported_media_type Content-Type")
            << other;
}

TEST(CloudEvents, BecomeUsage) {
    const Event event = read_cloud_event(parse_json(R"({"specversion":"1.0","id":"7","source":"/gateway/1",
        "type":"llm_tokens","subject":"acme","time":"2026-11-22T10:00:00.5+01:00","dataschema":"https://x.example/s",
        "traceparent":"00-1","sampled":true,"hops":-3,"nothing":null,"datacontenttype":"application/vnd.x+json",
        "data":{"quantity":12345678901234567890.10,"model":"m","nested":{"quantity":1}}})"));
    EXPECT_EQ(event.metric, "llm_tokens");
    EXPECT_EQ(event.tenant, "acme");
    EXPECT_EQ(event.idempotency_key, "/gateway/1 7");
    EXPECT_EQ(event.occurred_at, "2026-11-22T10:00:00.5+01:00");
    EXPECT_EQ(event.quantity, "12345678901234567890.10");
    EXPECT_EQ(event.properties, R"({"model":"m","nested":{"quantity":1}})");
    const Event bare =
        read_cloud_event(parse_json(R"({"specversion":"1.0","id":"7","source":"a","type":"m","data":{}})"));
    EXPECT_FALSE(bare.tenant || bare.quantity || bare.properties || bare.occurred_at);
}

TEST(CloudEvents, AreHeldToTheSpecification) {
    EXPECT_EQ(structured(""), "accepted");
    const auto without = [](const std::string &json) {
        return refusal([&] { read_cloud_event(parse_json(json)); });
    };
    EXPECT_EQ(without("[]"), "400 invalid_type ");
    EXPECT_EQ(without(R"({"id":"1","source":"s","type":"t"})"), "400 missing_field specversion");
    EXPECT_EQ(without(R"({"specversion":"0.3","id":"1","source":"s","type":"t"})"),
              "400 invalid_value specversion");
    EXPECT_EQ(without(R"({"specversion":"1.0","source":"s","type":"t"})"), "400 missing_field id");
    EXPECT_EQ(without(R"({"specversion":"1.0","id":"","source":"s","type":"t"})"), "400 invalid_value id");
    EXPECT_EQ(without(R"({"specversion":"1.0","id":7,"source":"s","type":"t"})"), "400 invalid_type id");
    EXPECT_EQ(without(R"({"specversion":"1.0","id":"1","source":"a b","type":"t"})"),
              "400 invalid_value source");
    EXPECT_EQ(without(R"({"specversion":"1.0","id":"1","source":"s"})"), "400 missing_field type");
    EXPECT_EQ(structured(R"(,"subject":"")"), "400 invalid_value subject");
    EXPECT_EQ(structured(R"(,"time":"yesterday")"), "400 invalid_type time");
    EXPECT_EQ(structured(R"(,"time":"2026-02-29T00:00:00Z")"), "400 invalid_type time");
    EXPECT_EQ(structured(R"(,"dataschema":"relative")"), "400 invalid_value dataschema");
    EXPECT_EQ(structured(R"(,"datacontenttype":"text/plain")"), "400 invalid_value datacontenttype");
    EXPECT_EQ(structured(R"(,"Trace":"x")"), "400 unknown_field Trace");
    EXPECT_EQ(structured(R"(,"my_ext":"x")"), "400 unknown_field my_ext");
    EXPECT_EQ(structured(R"(,"ext":{})"), "400 invalid_type ext");
    EXPECT_EQ(structured(R"(,"ext":1.5)"), "400 invalid_type ext");
    EXPECT_EQ(structured(R"(,"ext":2147483647)"), "accepted");
    EXPECT_EQ(structured(R"(,"ext":2147483648)"), "400 invalid_type ext");
    EXPECT_EQ(structured(R"(,"data":7)"), "400 invalid_type data");
    EXPECT_EQ(structured(R"(,"data":{"quantity":"many"})"), "400 invalid_type quantity");
}

TEST(CloudEvents, MayCarryJsonInBase64) {
    const auto quantity = [](const std::string &text) {
        return read_cloud_event(parse_json(R"({"specversion":"1.0","id":"7","source":"a","type":"m",
            "datacontenttype":"application/json","data_base64":")" +
                                           text + "\"}"))
            .quantity;
    };
    EXPECT_EQ(quantity("eyJxdWFudGl0eSI6NX0="), "5");
    EXPECT_EQ(quantity("eyJxdWFudGl0eSI6MTJ9"), "12");
    EXPECT_EQ(quantity("eyJxdWFudGl0eSI6NSB9IA=="), "5");
    EXPECT_EQ(structured(R"(,"data_base64":"e30=")"), "400 invalid_value datacontenttype");
    const std::string json = R"(,"datacontenttype":"application/json")";
    EXPECT_EQ(structured(json + R"(,"data_base64":"e30")"), "400 invalid_value data_base64");
    EXPECT_EQ(structured(json + R"(,"data_base64":"====")"), "400 invalid_value data_base64");
    EXPECT_EQ(structured(json + R"(,"data_base64":"")"), "400 malformed_json ");
    EXPECT_EQ(structured(json + R"(,"data_base64":"e30=","data":{})"), "400 duplicate_field data_base64");
}

TEST(CloudEvents, AreReadFromHeaders) {
    const http::Fields fields = {{"ce-specversion", "1.0"},
                                 {"ce-id", "a%20b"},
                                 {"ce-source", "\"/g\\\"1\""},
                                 {"ce-type", "m%C3%A9"},
                                 {"ce-subject", "acme"},
                                 {"ce-traceparent", "00"},
                                 {"ce-time", "2026-11-22T10:00:00Z"},
                                 {"content-type", "application/json"}};
    const auto ask = [&](const std::string &name, const std::string &value, const std::string &body = "{}") {
        http::Fields changed;
        for (const auto &field : fields)
            if (field.first != name)
                changed.push_back(field);
        if (name == "twice")
            changed.push_back({"ce-id", "1"});
        else if (!value.empty())
            changed.push_back({name, value});
        return refusal([&] { read_binary_cloud_event(request_with(changed, body)); });
    };
    http::Fields good = fields;
    good[2].second = "/g/1";
    const Event event = read_binary_cloud_event(request_with(good, R"({"quantity":2,"x":1})"));
    EXPECT_EQ(event.metric, "m\xc3\xa9");
    EXPECT_EQ(event.idempotency_key, "/g/1 a b");
    EXPECT_EQ(event.tenant, "acme");
    EXPECT_EQ(event.quantity, "2");
    EXPECT_EQ(event.properties, R"({"x":1})");
    EXPECT_FALSE(read_binary_cloud_event(request_with(good)).quantity) << "data is optional";
    EXPECT_EQ(ask("ce-source", ""), "400 missing_field ce-source");
    EXPECT_EQ(ask("ce-source", "\"/g\\\"1\""), "400 invalid_value ce-source");
    EXPECT_EQ(ask("ce-source", "/g", "[]"), "400 invalid_type data");
    EXPECT_EQ(ask("twice", ""), "400 duplicate_field ce-id");
    const auto with = [&](const std::string &name, const std::string &value) {
        http::Fields more = good;
        more.push_back({name, value});
        return refusal([&] { read_binary_cloud_event(request_with(more)); });
    };
    EXPECT_EQ(with("ce-ext", "%zz"), "400 invalid_value ce-ext");
    EXPECT_EQ(with("ce-ext", "%ff"), "400 invalid_value ce-ext");
    EXPECT_EQ(with("ce-my_ext", "1"), "400 unknown_field ce-my_ext");
    EXPECT_EQ(with("ce-datacontenttype", "application/json"), "400 invalid_value ce-datacontenttype");
    good.back().second = "text/plain";
    EXPECT_EQ(refusal([&] { read_binary_cloud_event(request_with(good, "{}")); }),
              "415 unsupported_media_type Content-Type");
}

}  // namespace
}  // namespace pg_billing::shim
