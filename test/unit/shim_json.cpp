// Request bodies: what is refused, with which code and which member's name, and that numbers keep every digit.
#include "shim/json.hpp"

#include <gtest/gtest.h>

#include "shim/problem.hpp"

namespace pg_billing::shim {
namespace {

// Returns "code field" of the Problem, or "accepted".
template <class F>
std::string refusal(F &&f) {
    try {
        f();
    } catch (const Problem &problem) {
        EXPECT_EQ(problem.status, 400u);
        return problem.code + (problem.field.empty() ? "" : " " + problem.field);
    }
    return "accepted";
}

std::string parse_refusal(std::string_view text) {
    return refusal([&] { parse_json(text); });
}

std::string round_trip(std::string_view text) {
    std::string result;
    write_json(result, parse_json(text));
    return result;
}

TEST(Json, KeepsEveryDigit) {
    for (const char *text :
         {"0", "-7", "1.10", "12345678901234567890", "-12345678901234567890.000000000000000000001", "1e300",
          "1.5E-7", "9223372036854775808", "true", "false", "null", "\"a\\nb\\\"\"",
          R"({"a":[1,2.50,{"b":null}],"c":{}})", "[]"})
        EXPECT_EQ(round_trip(text), text);
}

TEST(Json, RefusesWhatIsNotStrictJson) {
    for (const char *text :
         {"", "{", "{\"a\":1,}", "[1 2]", "nul", "{'a':1}", "01", "1.", "+1", "NaN", "Infinity", "\"\xff\"",
          "\"\xc0\xaf\"", "\"a\nb\"", "{} {}", "// c\n1", "\xef\xbb\xbf{", "1e999"})
        EXPECT_EQ(parse_refusal(text), "malformed_json") << text;
}

TEST(Json, RefusesDuplicateMembersAtAnyDepth) {
    EXPECT_EQ(parse_refusal(R"({"a":1,"b":2,"a":3})"), "duplicate_field a");
    EXPECT_EQ(parse_refusal(R"({"p":{"x":1,"\u0078":2}})"), "duplicate_field x");
    EXPECT_EQ(parse_refusal(R"([{"a":1},{"a":1}])"), "accepted");
}

TEST(Json, RefusesWhatPostgresCannotHold) {
    EXPECT_EQ(parse_refusal(R"({"name":"a\u0000b"})"), "invalid_value name");
    EXPECT_EQ(parse_refusal(R"({"a\u0000":1})"), "invalid_value");
    EXPECT_EQ(parse_refusal(R"({"a":"\ud800"})"), "malformed_json");
}

TEST(Json, BoundsDepthAndMembers) {
    EXPECT_EQ(parse_refusal(std::string(32, '[') + std::string(32, ']')), "accepted");
    EXPECT_EQ(parse_refusal(std::string(33, '[') + std::string(33, ']')), "malformed_json");
    std::string wide = "{\"x\":0";
    for (int i = 0; i < 200; ++i)
        wide += ",\"m" + std::to_string(i) + "\":0";
    EXPECT_EQ(parse_refusal(wide + "}"), "malformed_json");
}

TEST(Members, NamesTheMemberAtFault) {
    const auto read = [](std::string_view text) {
        return refusal([&] {
            const Json json = parse_json(text);
            const Members members(json, {"metric", "quantity", "occurredAt", "properties", "days"});
            members.required_text("metric");
            members.decimal("quantity");
            members.timestamp("occurredAt");
            members.object("properties");
            members.integer("days");
        });
    };
    EXPECT_EQ(read(R"({"metric":"m"})"), "accepted");
    EXPECT_EQ(read(R"({"metric":"m","quantity":null,"properties":null})"), "accepted");
    EXPECT_EQ(read(R"([])"), "invalid_type");
    EXPECT_EQ(read(R"({})"), "missing_field metric");
    EXPECT_EQ(read(R"({"metric":null})"), "missing_field metric");
    EXPECT_EQ(read(R"({"metric":5})"), "invalid_type metric");
    EXPECT_EQ(read(R"({"metric":"m","Quantity":1})"), "unknown_field Quantity");
    EXPECT_EQ(read(R"({"metric":"m","properties":[]})"), "invalid_type properties");
    EXPECT_EQ(read(R"({"metric":"m","days":30})"), "accepted");
    EXPECT_EQ(read(R"({"metric":"m","days":30.0})"), "invalid_type days");
    EXPECT_EQ(read(R"({"metric":"m","days":"30"})"), "invalid_type days");
    for (const char *good : {"1", "-1", "0.50", "\"2.5\"", "\"1e3\"", "\"12345678901234567890.1\""})
        EXPECT_EQ(read(std::string(R"({"metric":"m","quantity":)") + good + "}"), "accepted") << good;
    for (const char *bad : {"true", "\"\"", "\"NaN\"", "\"Infinity\"", "\" 1\"", "\"0x10\"", "\"1,5\"",
                            "\"007\"", "\"1.\"", "\"1e99999\"", "[]"})
        EXPECT_EQ(read(std::string(R"({"metric":"m","quantity":)") + bad + "}"), "invalid_type quantity")
            << bad;
    for (const char *good :
         {"2026-11-22T10:00:00Z", "2026-11-22T10:00:00.123456+01:30", "2026-11-22 10:00:00z"})
        EXPECT_EQ(read(std::string(R"({"metric":"m","occurredAt":")") + good + "\"}"), "accepted") << good;
    for (const char *bad : {"yesterday", "2026-11-22", "2026-11-22T10:00:00", "now", "1732269600", ""})
        EXPECT_EQ(read(std::string(R"({"metric":"m","occurredAt":")") + bad + "\"}"),
                  "invalid_type occurredAt")
            << bad;
}

TEST(Members, KeepsADecimalAsWritten) {
    const Json json = parse_json(R"({"a":10.500,"b":"10.500","c":98765432109876543210})");
    const Members members(json, {"a", "b", "c"});
    EXPECT_EQ(members.decimal("a"), "10.500");
    EXPECT_EQ(members.decimal("b"), "10.500");
    EXPECT_EQ(members.decimal("c"), "98765432109876543210");
}

}  // namespace
}  // namespace pg_billing::shim
