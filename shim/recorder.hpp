// Group commit of usage: posts that come while others are being recorded are recorded together, in one transaction.
//
// The database authenticates each post and gives each event its tenant and its result (together.hpp tells how groups form).
//
// Invariants:
//   - A post is answered only after the commit of its own transaction, and from the rows of its own events.
//   - What is waiting is bounded in posts' events and bytes; beyond that record() refuses at once.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <vector>

#include "shim/caller.hpp"
#include "shim/events.hpp"
#include "shim/together.hpp"

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
    struct Posted {
        Credential caller;
        std::vector<Event> events;
        std::vector<Recorded> recorded;

        std::size_t weight() const { return events.size(); }
    };

    boost::asio::awaitable<void> send(const Together<Posted>::Group &group);

    Database &database_;
    Options options_;
    Together<Posted> together_;
    std::size_t events_ = 0, bytes_ = 0;
};

}  // namespace pg_billing::shim
