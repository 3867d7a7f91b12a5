// Group commit of usage: posts that come while others are being recorded are recorded together, in one transaction.
//
// A post that finds nothing under way is sent at once; so nobody waits for company, and under load groups grow by
// themselves. The database authenticates each post and gives each event its tenant and its result.
//
// Invariants:
//   - A post is answered only after the commit of its own transaction, and from the rows of its own events.
//   - A post costs the others nothing: if a group fails for a reason that is not the database's as a whole, nothing of it
//     is recorded, and each of its posts is sent again by itself.
//   - What is waiting is bounded in posts' events and bytes; beyond that record() refuses at once.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <deque>
#include <memory>
#include <vector>

#include "shim/caller.hpp"
#include "shim/events.hpp"

namespace pg_billing::shim {

class Recorder {
  public:
    struct Options {
        std::size_t lanes = 2;  // groups under way at once: one is read and answered while one is committed
        std::size_t group_events = 1000;        // of a group, unless a single post has more
        std::size_t waiting_events = 20'000;    // in all, those under way included
        std::size_t waiting_bytes = 64u << 20;  // of their text
    };

    Recorder(boost::asio::io_context &context, Database &database, Options options);

    // Records a post's events durably and returns what became of each, in order. Throws PgFailure if the caller is refused
    // or the database fails, Problem 503 if too many are waiting or the database cannot be reached.
    boost::asio::awaitable<std::vector<Recorded>> record(Credential caller, std::vector<Event> events);

  private:
    struct Waiting;
    using Group = std::vector<std::shared_ptr<Waiting>>;

    Group next_group();
    boost::asio::awaitable<void> run_lane();
    boost::asio::awaitable<void> send(Group group);

    boost::asio::io_context &context_;
    Database &database_;
    Options options_;
    std::deque<std::shared_ptr<Waiting>> queue_;
    std::size_t lanes_ = 0, events_ = 0, bytes_ = 0;
};

}  // namespace pg_billing::shim
