// Requests that arrive while others are under way go to the database together, in one statement.
//
// One that finds nothing under way is sent at once; so nobody waits for company, and under load groups grow by themselves.
//
// Invariant: a request costs the others nothing. If a group fails for a reason that is not the database's as a whole, it has
// had no effect, and each of its requests is sent again by itself.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "shim/problem.hpp"

namespace pg_billing::shim {

// A Request has what is asked, room for what is answered, and a weight().
template <class Request>
class Together {
  public:
    struct Waiting {
        Waiting(boost::asio::io_context &context, Request what) : request(std::move(what)), done(context) {
            done.expires_at(boost::asio::steady_timer::time_point::max());
        }

        Request request;
        std::exception_ptr refusal;
        bool finished = false;
        boost::asio::steady_timer done;  // never expires; cancelled, that is signalled, when finished
    };
    using Group = std::vector<std::shared_ptr<Waiting>>;
    // Asks the database, and puts into each request its answer or refusal. Throws if the group fails as a whole.
    using Send = std::function<boost::asio::awaitable<void>(const Group &)>;

    // So many groups are under way at once, each of that weight at most, unless a single request has more.
    Together(boost::asio::io_context &context, std::size_t lanes, std::size_t weight, Send send)
        : context_(context), lanes_left_(lanes), weight_(weight), send_(std::move(send)) {}

    // Returns the request with its answer. Throws its refusal, or what its group threw.
    boost::asio::awaitable<Request> run(Request request) {
        const auto waiting = std::make_shared<Waiting>(context_, std::move(request));
        queue_.push_back(waiting);
        if (lanes_left_ > 0) {
            --lanes_left_;
            boost::asio::co_spawn(context_, run_lane(), boost::asio::detached);
        }
        boost::system::error_code signalled;
        if (!waiting->finished)
            co_await waiting->done.async_wait(
                boost::asio::redirect_error(boost::asio::use_awaitable, signalled));
        if (waiting->refusal)
            std::rethrow_exception(waiting->refusal);
        co_return std::move(waiting->request);
    }

  private:
    boost::asio::awaitable<void> run_lane() {
        while (!queue_.empty())
            co_await send(next_group());
        ++lanes_left_;
    }

    Group next_group() {
        Group group;
        std::size_t weight = 0;
        while (!queue_.empty() && (group.empty() || weight + queue_.front()->request.weight() <= weight_)) {
            weight += queue_.front()->request.weight();
            group.push_back(std::move(queue_.front()));
            queue_.pop_front();
        }
        return group;
    }

    boost::asio::awaitable<void> send(Group group) {
        std::exception_ptr failed;
        bool separately = false;
        try {
            co_await send_(group);
        } catch (const PgFailure &failure) {
            failed = std::current_exception();
            separately = group.size() > 1 && !is_everybodys(failure);
        } catch (const std::exception &) {
            failed = std::current_exception();
        }
        for (const auto &waiting : group) {
            if (separately) {
                boost::asio::co_spawn(context_, send({waiting}), boost::asio::detached);
                continue;
            }
            if (failed)
                waiting->refusal = failed;
            waiting->finished = true;
            waiting->done.cancel();
        }
    }

    // Whether a failure would meet every other transaction now as well (SQLSTATE classes of appendix A): connection, read-only
    // server, lack of resources, shutdown.
    static bool is_everybodys(const PgFailure &failure) {
        for (const char *prefix : {"08", "25006", "53", "57P"})
            if (failure.sqlstate.starts_with(prefix))
                return true;
        return false;
    }

    boost::asio::io_context &context_;
    std::size_t lanes_left_, weight_;
    Send send_;
    std::deque<std::shared_ptr<Waiting>> queue_;
};

}  // namespace pg_billing::shim
