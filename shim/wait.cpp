#include "shim/wait.hpp"

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "shim/problem.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;
using std::chrono::milliseconds;

awaitable<bool> wait_until(Patience patience, std::function<awaitable<bool>()> look) {
    const auto deadline = std::chrono::steady_clock::now() + patience.limit;
    boost::asio::steady_timer timer(patience.context);
    for (milliseconds pause{50}; std::chrono::steady_clock::now() + pause <= deadline;
         pause = std::min(pause * 3 / 2, milliseconds(500))) {
        timer.expires_after(pause);
        co_await timer.async_wait(boost::asio::use_awaitable);
        try {
            if (co_await look())
                co_return true;
        } catch (const Problem &problem) {
            if (problem.status < 500)
                throw;
            // The database is away; it may be back before the time is up.
        } catch (const PgFailure &failure) {
            if (to_problem(failure).status < 500)
                throw;
        }
    }
    co_return false;
}

}  // namespace pg_billing::shim
