#include "stripe/pace.hpp"

#include <algorithm>
#include <cmath>

namespace pg_billing::stripe {
namespace {

constexpr double kSlowest = 1;
constexpr auto kOneRefusal = std::chrono::seconds(1);  // refusals that come within it are one

double seconds(std::chrono::steady_clock::duration time) {
    return std::chrono::duration<double>(time).count();
}

double burst(double rate) {
    return std::max(1.0, rate / 4);
}

}  // namespace

Pace::Pace(double rate, Time now)
    : full_rate_(rate), rate_(rate), tokens_(burst(rate)), updated_(now), lowered_(now - kOneRefusal) {}

std::size_t Pace::room(Time now) {
    const double passed = seconds(now - updated_);
    updated_ = now;
    rate_ = std::min(full_rate_, rate_ + full_rate_ / 10 * passed);
    tokens_ = std::min(burst(rate_), tokens_ + rate_ * passed);
    return tokens_ < 1 ? 0 : static_cast<std::size_t>(tokens_);
}

std::chrono::milliseconds Pace::until_room() const {
    return std::chrono::milliseconds(std::lround(std::max(0.0, 1 - tokens_) / rate_ * 1000) + 1);
}

void Pace::answered(const Answer &answer, Time now) {
    // What is refused for one object's sake (its lock, one call at a time) says nothing of the rate.
    if (answer.status != 429 || answer.rate_limited_reason == "resource-specific" ||
        now - lowered_ < kOneRefusal)
        return;
    room(now);
    rate_ = std::max(std::min(kSlowest, full_rate_), rate_ / 2);
    tokens_ = std::min(tokens_, 0.0);
    lowered_ = now;
}

void Breaker::answered(const Answer &answer) {
    const bool failed = answer.status == 0 || (answer.status >= 500 && !answer.replayed);
    (answer.status == 0 ? silent_ : heard_) = true;
    in_a_row_ = failed ? in_a_row_ + 1 : 0;
    probing_ = probing_ && failed;
}

}  // namespace pg_billing::stripe
