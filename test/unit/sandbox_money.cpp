// What an amount depends on: exact decimals, the billing calendar, tiers.
#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>

#include "test/sandbox/calendar.hpp"
#include "test/sandbox/decimal.hpp"
#include "test/sandbox/prices.hpp"

namespace pg_billing::sandbox {
namespace {

std::int64_t at(int year, unsigned month, unsigned day, int hour = 0, int minute = 0) {
    using namespace std::chrono;
    const sys_days date{std::chrono::year(year) / std::chrono::month(month) / std::chrono::day(day)};
    return (sys_seconds{date} + hours(hour) + minutes(minute)).time_since_epoch().count();
}

TEST(SandboxDecimal, ReadsAndWritesPlainDigits) {
    const std::pair<const char *, const char *> cases[] = {
        {"0", "0"},
        {"-0", "0"},
        {"007", "7"},
        {"1.50", "1.5"},
        {"-0.25", "-0.25"},
        {"0.000000000001", "0.000000000001"},
        {"123456789012345678901234567890.5", "123456789012345678901234567890.5"},
    };
    for (const auto &[text, canonical] : cases)
        EXPECT_EQ(Decimal::parse(text).str(), canonical) << text;
    for (const char *text : {"", "-", ".5", "1.", "1e3", "+1", " 1", "1 ", "0x1", "1,5", "--1", "NaN"})
        EXPECT_THROW(Decimal::parse(text), std::invalid_argument) << text;
}

TEST(SandboxDecimal, ComputesExactly) {
    Decimal sum;
    for (int i = 0; i < 10; ++i)
        sum = sum + Decimal::parse("0.1");
    EXPECT_EQ(sum, Decimal(1));
    EXPECT_EQ((Decimal::parse("999999999999999") * Decimal::parse("0.000000000001")).str(),
              "999.999999999999");
    EXPECT_EQ((Decimal::parse("0.000000000001") * Decimal::parse("-0.000000000001")).str(),
              "-0.000000000000000000000001");
    EXPECT_THROW(Decimal::parse("0.0000000000001") * Decimal::parse("0.000000000001"), std::range_error);
    EXPECT_TRUE(Decimal::parse("-2") < Decimal::parse("-1.5"));
}

TEST(SandboxDecimal, RoundsHalvesAwayFromZero) {
    const std::pair<const char *, int> cases[] = {{"0.4999", 0}, {"0.5", 1},   {"1.5", 2},  {"2.5", 3},
                                                  {"-0.5", -1},  {"-0.49", 0}, {"-2.5", -3}};
    for (const auto &[text, whole] : cases)
        EXPECT_EQ(Decimal::parse(text).rounded(), whole) << text;
    EXPECT_EQ(Decimal::parse("2.999").truncated(), 2);
    EXPECT_EQ(prorate(9900, 10, 31), 3194);  // 3193.548…
    EXPECT_EQ(prorate(1, 1, 2), 1);
    EXPECT_EQ(prorate(9900, 0, 31), 0);
    EXPECT_EQ(prorate(9900, 31, 31), 9900);
}

TEST(SandboxCalendar, KeepsTheAnchorsDay) {
    const Cycle cycle{at(2027, 10, 31, 8), "month", 1};
    EXPECT_EQ(cycle.after(at(2027, 10, 31, 8)), at(2027, 11, 30, 8)) << "a boundary is not after itself";
    EXPECT_EQ(cycle.after(at(2027, 10, 31, 7)), at(2027, 10, 31, 8));
    EXPECT_EQ(cycle.after(at(2028, 1, 31, 8)), at(2028, 2, 29, 8)) << "a leap year";
    EXPECT_EQ(cycle.after(at(2028, 2, 29, 8)), at(2028, 3, 31, 8)) << "back to the 31st";
    EXPECT_EQ(cycle.not_after(at(2027, 10, 31, 8)), at(2027, 10, 31, 8));
    EXPECT_EQ(cycle.not_after(at(2027, 10, 31, 7)), at(2027, 9, 30, 8)) << "before the reference too";
    EXPECT_EQ(cycle.at(-12), at(2026, 10, 31, 8));
}

TEST(SandboxCalendar, CountsOtherIntervals) {
    EXPECT_EQ((Cycle{at(2026, 1, 1), "day", 1}).after(at(2026, 3, 1, 5)), at(2026, 3, 2));
    EXPECT_EQ((Cycle{at(2026, 1, 1), "week", 2}).after(at(2026, 1, 1)), at(2026, 1, 15));
    EXPECT_EQ((Cycle{at(2028, 2, 29), "year", 1}).after(at(2028, 2, 29)), at(2029, 2, 28));
    EXPECT_EQ((Cycle{at(2028, 2, 29), "year", 1}).after(at(2031, 3, 1)), at(2032, 2, 29));
    EXPECT_EQ((Cycle{at(2026, 1, 15), "month", 3}).after(at(2026, 5, 1)), at(2026, 7, 15));
}

TEST(SandboxCalendar, AnchorsOnADayOfTheMonth) {
    const std::int64_t now = at(2026, 2, 10, 12, 30);
    EXPECT_EQ(cycle_on(31, 8, 0, 0, now).after(now), at(2026, 2, 28, 8));
    EXPECT_EQ(cycle_on(10, 12, 0, 0, now).after(now), at(2026, 3, 10, 12));
    EXPECT_EQ(cycle_on(10, 13, 0, 0, now).after(now), at(2026, 2, 10, 13));
}

json tiered(const char *mode) {
    return {{"billing_scheme", "tiered"},
            {"tiers_mode", mode},
            {"tiers",
             {{{"up_to", 1000}, {"unit_amount_decimal", "0"}, {"flat_amount_decimal", nullptr}},
              {{"up_to", 5000}, {"unit_amount_decimal", "0.25"}, {"flat_amount_decimal", nullptr}},
              {{"up_to", nullptr}, {"unit_amount_decimal", "0.1"}, {"flat_amount_decimal", "300"}}}}};
}

struct Rated {
    const char *mode, *quantity;
    std::vector<std::pair<std::string, std::int64_t>> charges;  // quantity and amount
};

TEST(SandboxRating, ChargesTierByTier) {
    const Rated cases[] = {
        {"graduated", "0", {{"0", 0}}},
        {"graduated", "999.5", {{"999.5", 0}}},
        {"graduated", "1000", {{"1000", 0}}},
        {"graduated", "1002", {{"1000", 0}, {"2", 1}}},  // 2 x 0.25 = 0.5, half up
        {"graduated", "5000", {{"1000", 0}, {"4000", 1000}}},
        {"graduated",
         "5003.5",
         {{"1000", 0}, {"4000", 1000}, {"3.5", 0}, {"0", 300}}},  // 0.35, and the flat amount
        {"volume", "1000", {{"1000", 0}}},
        {"volume", "1002", {{"1002", 251}}},  // 250.5
        {"volume", "6000", {{"6000", 600}, {"0", 300}}},
    };
    for (const Rated &c : cases) {
        std::vector<std::pair<std::string, std::int64_t>> charges;
        for (const Charge &charge : rate(tiered(c.mode), Decimal::parse(c.quantity)))
            charges.emplace_back(charge.quantity.str(), charge.amount);
        EXPECT_EQ(charges, c.charges) << c.mode << " " << c.quantity;
    }
    const auto plain =
        rate({{"billing_scheme", "per_unit"}, {"unit_amount_decimal", "0.001"}}, Decimal(534567));
    ASSERT_EQ(plain.size(), 1u);
    EXPECT_EQ(plain[0].amount, 535);
}

std::int64_t total(const json &price, const char *quantity) {
    std::int64_t sum = 0;
    for (const Charge &charge : rate(price, Decimal::parse(quantity)))
        sum += charge.amount;
    return sum;
}

// The worked examples of docs/pricing.md: test/sql/rating.sql has them for the extension, which never saw this code.
TEST(SandboxRating, AgreesWithTheWorkedExamples) {
    const auto price = [](const char *mode, const json &tiers) -> json {
        return {{"billing_scheme", "tiered"}, {"tiers_mode", mode}, {"tiers", tiers}};
    };
    const auto tier = [](const json &up_to, const char *unit, const char *flat = nullptr) -> json {
        return {{"up_to", up_to},
                {"unit_amount_decimal", unit},
                {"flat_amount_decimal", flat ? json(flat) : json()}};
    };
    const json fonts = {tier(5, "700"), tier(10, "650"), tier(nullptr, "600")};
    const json flat = {tier(5, "700", "1000"), tier(10, "650", "2000"), tier(nullptr, "600")};
    const json tokens = {tier(1000000, "0"), tier(nullptr, "0.001")};
    const json storage = {tier(100, "0"), tier(nullptr, "50")};
    const json yen = {tier(100, "0.5"), tier(nullptr, "0.25")};
    const struct {
        json price;
        const char *quantity;
        std::int64_t amount;
    } cases[] = {
        {price("graduated", tokens), "1000000", 0}, {price("graduated", tokens), "1000001", 0},
        {price("graduated", tokens), "1000500", 1}, {price("graduated", tokens), "1234567", 235},
        {price("graduated", fonts), "1", 700},      {price("graduated", fonts), "5", 3500},
        {price("graduated", fonts), "6", 4150},     {price("graduated", fonts), "10", 6750},
        {price("graduated", fonts), "11", 7350},    {price("graduated", fonts), "20", 12750},
        {price("graduated", fonts), "25", 15750},   {price("graduated", storage), "100.009", 0},
        {price("graduated", storage), "100.01", 1}, {price("graduated", storage), "100.5", 25},
        {price("volume", fonts), "1", 700},         {price("volume", fonts), "5", 3500},
        {price("volume", fonts), "6", 3900},        {price("volume", fonts), "10", 6500},
        {price("volume", fonts), "11", 6600},       {price("volume", fonts), "20", 12000},
        {price("volume", fonts), "25", 15000},      {price("graduated", flat), "0", 1000},
        {price("graduated", flat), "5", 4500},      {price("graduated", flat), "6", 7150},
        {price("graduated", flat), "20", 15750},    {price("volume", flat), "0", 1000},
        {price("volume", flat), "5", 4500},         {price("volume", flat), "6", 5900},
        {price("volume", flat), "20", 12000},       {price("graduated", yen), "3", 2},
        {price("graduated", yen), "102", 51},
    };
    for (const auto &c : cases)
        EXPECT_EQ(total(c.price, c.quantity), c.amount) << c.price.dump() << " " << c.quantity;
    const json many = {{"billing_scheme", "per_unit"}, {"unit_amount_decimal", "0.000000000001"}};
    EXPECT_EQ(total(many, "999999999999999"), 1000);
    EXPECT_EQ(total(many, "499999999999"), 0);
}

TEST(SandboxProration, AgreesWithTheWorkedExample) {
    EXPECT_EQ(prorate(9900, 561600, 2419200), 2298);
    EXPECT_EQ(prorate(49900, 561600, 2419200), 11584);
}

TEST(SandboxRating, ChargesWholePackages) {
    const struct {
        const char *round, *quantity;
        std::int64_t amount;
    } cases[] = {{"up", "0", 0},       {"up", "0.000000001", 1000}, {"up", "60", 1000},
                 {"up", "60.5", 2000}, {"up", "150", 3000},         {"down", "59.999999999", 0},
                 {"down", "60", 1000}, {"down", "150", 2000}};
    for (const auto &c : cases) {
        const auto charges = rate({{"billing_scheme", "per_unit"},
                                   {"unit_amount_decimal", "1000"},
                                   {"transform_quantity", {{"divide_by", 60}, {"round", c.round}}}},
                                  Decimal::parse(c.quantity));
        ASSERT_EQ(charges.size(), 1u);
        EXPECT_EQ(charges[0].quantity.str(), c.quantity);
        EXPECT_EQ(charges[0].amount, c.amount) << c.quantity << " " << c.round;
    }
}

}  // namespace
}  // namespace pg_billing::sandbox
