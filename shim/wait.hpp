// Waiting for Stripe: what a request has wished is durable once it is committed, and the worker carries it out. The
// answer waits a bounded time for that, by looking again in short transactions; none is open meanwhile.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <functional>

namespace pg_billing::shim {

struct Patience {
    boost::asio::io_context &context;
    std::chrono::milliseconds limit;
};

// Looks again, less and less often, until look() says that it is done or the time is up; returns whether it is done. An
// outage of the database meanwhile costs nothing but the news.
boost::asio::awaitable<bool> wait_until(Patience patience,
                                        std::function<boost::asio::awaitable<bool>()> look);

}  // namespace pg_billing::shim
