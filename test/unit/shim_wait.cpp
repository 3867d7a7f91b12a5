// Waiting for Stripe bears an outage of the database, and nothing else.
#include "shim/wait.hpp"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <string>

#include "shim/problem.hpp"

namespace pg_billing::shim {
namespace {

using boost::asio::awaitable;

// What becomes of waiting when look() fails that many times first, and then is done or not.
template <class Failure>
std::string wait(const Failure &failure, int failures, std::chrono::milliseconds limit, bool done = true) {
    boost::asio::io_context context;
    std::string outcome;
    const auto look = [&]() -> awaitable<bool> {
        if (failures-- > 0)
            throw failure;
        co_return done;
    };
    boost::asio::co_spawn(context, wait_until({context, limit}, look),
                          [&](std::exception_ptr error, bool seen) {
                              outcome = error ? "failed" : seen ? "done" : "time is up";
                          });
    context.run();
    return outcome;
}

TEST(Wait, BearsAnOutageOfTheDatabase) {
    using std::chrono::milliseconds;
    const milliseconds ample{60'000};
    EXPECT_EQ(wait(unavailable(""), 0, ample), "done");
    EXPECT_EQ(wait(unavailable(""), 1, ample), "done");
    EXPECT_EQ(wait(PgFailure("57P01", "terminating"), 1, ample), "done");
    EXPECT_EQ(wait(PgFailure("UB041", "revoked"), 1, ample), "failed");
    EXPECT_EQ(wait(Problem(400, "x", ""), 1, ample), "failed");
    EXPECT_EQ(wait(unavailable(""), 0, milliseconds(60), false), "time is up");
    EXPECT_EQ(wait(unavailable(""), 0, milliseconds(0)), "time is up") << "it has been looked at once before";
}

}  // namespace
}  // namespace pg_billing::shim
