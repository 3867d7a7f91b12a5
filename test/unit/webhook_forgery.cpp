// A million deliveries that were changed at random: none is accepted that was not signed so (test/fuzz has libFuzzer's form).
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "test/fuzz/forgery.hpp"

namespace pg_billing::fuzz {
namespace {

std::vector<std::string> corpus() {
    std::vector<std::string> deliveries;
    for (const auto &entry : std::filesystem::directory_iterator(FUZZ_CORPUS "/signature")) {
        std::ifstream file(entry.path(), std::ios::binary);
        deliveries.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return deliveries;
}

class Mutator {
  public:
    explicit Mutator(std::uint32_t seed) : random_(seed) {}

    std::string operator()(std::string delivery, const std::string &other) {
        for (std::size_t changes = 1 + below(3); changes > 0; --changes)
            change(delivery, other);
        return delivery;
    }

    std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_); }

  private:
    void change(std::string &text, const std::string &other) {
        if (text.empty())
            text = other;
        const std::size_t at = below(text.size());
        const std::size_t length = 1 + below(8);
        switch (below(8)) {
            case 0:  // a bit
                text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
                break;
            case 1:  // a digit, as in the time and the signature
                text[at] = "0123456789abcdef"[below(16)];
                break;
            case 2:
                text.erase(at, length);
                break;
            case 3:
                text.insert(at, text.substr(below(text.size()), length));
                break;
            case 4:
                text.insert(at, 1, ",=.\n \0tv01"[below(10)]);
                break;
            case 5:  // the header of one with the body of another
                text =
                    text.substr(0, text.find('\n')) + other.substr(std::min(other.find('\n'), other.size()));
                break;
            case 6:  // the beginning of one with the end of another
                text = text.substr(0, at) + other.substr(below(other.size()));
                break;
            default:
                text.insert(at,
                            std::array{",v1=", ",t=1700000000", "t=1700000000,", ",v0=", "v1=,"}[below(5)]);
        }
    }

    std::mt19937 random_;
};

TEST(WebhookForgery, CorpusIsGenuine) {
    const auto deliveries = corpus();
    ASSERT_GE(deliveries.size(), 5u);
    for (const std::string &delivery : deliveries)
        EXPECT_EQ(try_delivery(delivery), Result::genuine) << delivery;
    for (const Signed &known : kSigned)
        EXPECT_EQ(try_delivery(genuine_delivery(known)), Result::genuine) << known.body;
}

TEST(WebhookForgery, OfAMillionChangedDeliveriesNoneIsAccepted) {
    const auto deliveries = corpus();
    Mutator mutate(20261126);
    std::size_t refused = 0, genuine = 0;
    for (int i = 0; i < 1'000'000; ++i) {
        const std::string delivery =
            mutate(deliveries[mutate.below(deliveries.size())], deliveries[mutate.below(deliveries.size())]);
        const Result result = try_delivery(delivery);
        ASSERT_NE(result, Result::forged) << delivery;
        (result == Result::refused ? refused : genuine)++;
    }
    EXPECT_GT(refused, 800'000u);
    EXPECT_GT(genuine, 10'000u) << "some changes leave what was signed as it was";
}

}  // namespace
}  // namespace pg_billing::fuzz
