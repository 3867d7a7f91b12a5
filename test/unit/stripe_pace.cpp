#include "stripe/pace.hpp"

#include <gtest/gtest.h>

namespace pg_billing::stripe {
namespace {

using std::chrono::milliseconds;
using namespace std::chrono_literals;

Answer answer(int status, const char *reason = "", bool replayed = false) {
    Answer a;
    a.status = status;
    a.rate_limited_reason = reason;
    a.replayed = replayed;
    return a;
}

// Sends all that may be sent, looking every ten milliseconds; returns how much that was.
std::size_t send_for(Pace &pace, Pace::Time &now, milliseconds time) {
    std::size_t sent = 0;
    for (milliseconds t{0}; t < time; t += 10ms, now += 10ms) {
        const std::size_t room = pace.room(now);
        pace.sent(room);
        sent += room;
    }
    return sent;
}

TEST(StripePace, KeepsToItsRateAndABurstOfAQuarter) {
    Pace::Time now{};
    Pace pace(100, now);
    EXPECT_EQ(pace.room(now), 25u);
    const std::size_t sent = send_for(pace, now, 10s);
    EXPECT_GE(sent, 1000u);
    EXPECT_LE(sent, 1025u);
    now += 1h;
    EXPECT_EQ(pace.room(now), 25u) << "what was not used is not saved up";
}

TEST(StripePace, MakesTheWholeRateLookingFourTimesASecond) {
    Pace::Time now{};
    Pace pace(100, now);
    pace.sent(pace.room(now));
    std::size_t sent = 0;
    for (int i = 0; i < 40; i++) {
        now += 250ms;
        const std::size_t room = pace.room(now);
        pace.sent(room);
        sent += room;
    }
    EXPECT_GE(sent, 999u);
    EXPECT_LE(sent, 1000u);
}

TEST(StripePace, TellsHowLongToWait) {
    Pace::Time now{};
    Pace pace(2, now);
    EXPECT_EQ(pace.room(now), 1u);
    EXPECT_LE(pace.until_room(), 1ms);
    pace.sent(1);
    EXPECT_EQ(pace.room(now), 0u);
    EXPECT_GE(pace.until_room(), 500ms);
    EXPECT_LE(pace.until_room(), 502ms);
    EXPECT_EQ(pace.room(now + pace.until_room()), 1u);
}

TEST(StripePace, HalvesOnceForABurstOfRefusalsAndRecovers) {
    Pace::Time now{};
    Pace pace(100, now);
    for (int i = 0; i < 16; i++)
        pace.answered(answer(429, "global-rate"), now);
    EXPECT_EQ(pace.room(now), 0u);
    const std::size_t first = send_for(pace, now, 1s);
    EXPECT_GE(first, 50u);
    EXPECT_LE(first, 60u);
    send_for(pace, now, 5s);
    const std::size_t later = send_for(pace, now, 1s);
    EXPECT_GE(later, 99u);
    EXPECT_LE(later, 101u);
}

TEST(StripePace, NeverStopsAltogether) {
    Pace::Time now{};
    Pace pace(20, now);
    for (int i = 0; i < 50; i++) {
        pace.answered(answer(429), now);
        now += 1s;
    }
    EXPECT_GE(send_for(pace, now, 2s), 2u);
    Pace slow(0.5, now);
    slow.answered(answer(429), now);
    EXPECT_LE(send_for(slow, now, 10s), 5u) << "nor does a refusal make it faster";
}

TEST(StripePace, IsNotSlowedByOtherAnswers) {
    Pace::Time now{};
    Pace pace(100, now);
    for (const Answer &a :
         {answer(200), answer(0), answer(500), answer(409), answer(429, "resource-specific")})
        pace.answered(a, now);
    EXPECT_EQ(pace.room(now), 25u);
}

TEST(StripeBreaker, OpensAfterFailuresInARow) {
    Breaker breaker(false);
    EXPECT_FALSE(breaker.probing());
    for (int i = 1; i < Breaker::kLimit; i++)
        breaker.answered(answer(i % 2 ? 0 : 503));
    EXPECT_FALSE(breaker.open());
    breaker.answered(answer(429));
    for (int i = 1; i < Breaker::kLimit; i++)
        breaker.answered(answer(500));
    EXPECT_FALSE(breaker.open()) << "any other answer begins the row anew";
    breaker.answered(answer(0));
    EXPECT_TRUE(breaker.open());
    EXPECT_TRUE(breaker.outage());
}

TEST(StripeBreaker, IgnoresWhatStripeRemembered) {
    Breaker breaker(false);
    for (int i = 0; i < 2 * Breaker::kLimit; i++)
        breaker.answered(answer(500, "", true));
    EXPECT_FALSE(breaker.open());
    EXPECT_FALSE(breaker.outage());
}

TEST(StripeBreaker, ProbesWithOneRequest) {
    Breaker breaker(true);
    EXPECT_TRUE(breaker.probing());
    EXPECT_FALSE(breaker.open());
    breaker.answered(answer(502));
    EXPECT_TRUE(breaker.open());

    Breaker back(true);
    back.answered(answer(404));
    EXPECT_FALSE(back.probing());
    back.answered(answer(500));
    EXPECT_FALSE(back.open()) << "once it is back one failure is one failure";
    EXPECT_FALSE(back.outage());
}

TEST(StripeBreaker, ARunThatNobodyAnsweredIsAnOutage) {
    Breaker breaker(false);
    EXPECT_FALSE(breaker.outage());
    breaker.answered(answer(0));
    EXPECT_FALSE(breaker.open());
    EXPECT_TRUE(breaker.outage());
    breaker.answered(answer(500));
    EXPECT_FALSE(breaker.outage());
}

}  // namespace
}  // namespace pg_billing::stripe
