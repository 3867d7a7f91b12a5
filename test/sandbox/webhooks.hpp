// Webhook endpoints and the delivery of events to them: signed, several at once and so in no promised order, retried
// a few times with a short backoff. Plain HTTP to this machine only.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <deque>
#include <string>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

class Webhooks {
  public:
    Webhooks(boost::asio::io_context &context, Store &store) : context_(context), store_(store) {}

    void model(Catalog &catalog);
    // Queues the event for every endpoint that listens to its type.
    void enqueue(json &event);
    // Deliveries that are neither accepted nor given up.
    std::size_t pending() const { return pending_; }

  private:
    struct Delivery {
        std::string event, endpoint, body;
        int attempt = 1;
    };

    json create(const Call &call);
    void pump();
    boost::asio::awaitable<void> deliver(Delivery delivery);

    boost::asio::io_context &context_;
    Store &store_;
    std::deque<Delivery> queue_;
    int under_way_ = 0;
    std::size_t pending_ = 0;
};

}  // namespace pg_billing::sandbox
