#include <gtest/gtest.h>

#include "stripe/form.hpp"

namespace pg_billing::stripe {
namespace {

using nlohmann::json;

struct Case {
    const char *name;
    json params;
    const char *form;
};

const Case kCases[] = {
    {"nothing", json::object(), ""},
    {"scalar", {{"name", "Acme"}}, "name=Acme"},
    {"nested object", {{"metadata", {{"tenant_id", "t 1"}}}}, "metadata[tenant_id]=t%201"},
    {"array of objects",
     {{"items", {{{"price", "p1"}}, {{"price", "p2"}, {"quantity", 3}}}}},
     "items[0][price]=p1&items[1][price]=p2&items[1][quantity]=3"},
    {"array of strings",
     {{"expand", {"data.tiers", "data.product"}}},
     "expand[0]=data.tiers&expand[1]=data.product"},
    {"booleans", {{"active", true}, {"livemode", false}}, "active=true&livemode=false"},
    {"negative and large integers",
     {{"a", -5}, {"b", 18446744073709551615ull}},
     "a=-5&b=18446744073709551615"},
    {"reserved characters", {{"q", "a+b&c=d/é"}}, "q=a%2Bb%26c%3Dd%2F%C3%A9"},
    {"what Stripe's clients escape although encodeURIComponent does not",
     {{"q", "!*()'"}},
     "q=%21%2A%28%29%27"},
    {"a key that needs escaping", {{"metadata", {{"a b", "1"}}}}, "metadata[a%20b]=1"},
    {"more than ten elements keep their order",
     {{"x", {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}}},
     "x[0]=0&x[1]=1&x[2]=2&x[3]=3&x[4]=4&x[5]=5&x[6]=6&x[7]=7&x[8]=8&x[9]=9&x[10]=10"},
};

// What the other side reads: the same structure with every scalar as text.
json as_text(const json &value) {
    if (value.is_structured()) {
        json out = value;
        for (auto &child : out)
            child = as_text(child);
        return out;
    }
    return value.is_string() ? value : json(value.dump());
}

TEST(StripeForm, EncodesAndDecodesTheSameStructure) {
    for (const Case &c : kCases) {
        EXPECT_EQ(encode_form(c.params), c.form) << c.name;
        EXPECT_EQ(decode_form(c.form), as_text(c.params)) << c.name;
    }
}

TEST(StripeForm, NullAndEmptyStringUnset) {
    EXPECT_EQ(encode_form({{"metadata", {{"a", nullptr}}}, {"name", ""}}), "metadata[a]=&name=");
    EXPECT_EQ(decode_form("metadata[a]=&name"), json({{"metadata", {{"a", ""}}}, {"name", ""}}));
}

TEST(StripeForm, RefusesFloatingPointWithTheParametersName) {
    try {
        encode_form({{"tiers", {{{"unit_amount_decimal", 0.1}}}}});
        FAIL() << "a floating-point number was encoded";
    } catch (const FormError &e) {
        EXPECT_NE(std::string(e.what()).find("tiers[0][unit_amount_decimal]"), std::string::npos) << e.what();
    }
}

TEST(StripeForm, DecodesWhatOtherClientsSend) {
    EXPECT_EQ(decode_form("expand[]=a&expand[]=b"), json({{"expand", {"a", "b"}}}));
    EXPECT_EQ(decode_form("metadata%5Bk%5D=a+b"), json({{"metadata", {{"k", "a b"}}}}));
    EXPECT_EQ(decode_form("&&a=1&"), json({{"a", "1"}}));
    EXPECT_EQ(decode_form("a[1]=x&a[0]=y"), json({{"a", {"y", "x"}}}));
    EXPECT_EQ(decode_form("a[0]=y&a[2]=x"), json({{"a", {{"0", "y"}, {"2", "x"}}}})) << "a gap is no array";
}

TEST(StripeForm, RefusesMalformedText) {
    for (const char *text :
         {"a=%", "a=%2", "a=%zz", "a[b=1", "a[b]c=1", "=1", "[a]=1", "a=1&a=2", "a=1&a[b]=2", "a[b]=1&a=2",
          "a[1][2][3][4][5][6][7][8][9][10][11][12][13][14][15][16]=1"})
        EXPECT_THROW(decode_form(text), FormError) << text;
}

}  // namespace
}  // namespace pg_billing::stripe
