// Webhook endpoints and event destinations, and the delivery of events to them: signed, several at once and so in no
// promised order, retried a few times with a short backoff. Plain HTTP to this machine only.
//
// A destination gets thin events (docs.stripe.com/event-destinations): of every event of the API v1 the notification
// of its type with v1. before it, and what the API v2 has of its own. What they leave out is asked for by their id.
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
    // Queues the event for every endpoint that listens to its type, and its notification for every destination.
    void enqueue(json &event);
    // Deliveries that are neither accepted nor given up.
    std::size_t pending() const { return pending_; }
    // Records an event of the API v2 about an object (or none), and queues its notification.
    void notify(const std::string &type, const json &object, std::int64_t time, const json &data);
    // Signs with another secret, too, from now on; returns it.
    json roll(const json &target);

  private:
    struct Delivery {
        std::string event, target_kind, target, body;
        int attempt = 1;
    };

    json create(const Call &call);
    json create_destination(const Call &call);
    json &add_target(json target, const std::string &url);
    void queue(const json &event, const std::string &target_kind, const json &target, const json &content);
    void pump();
    boost::asio::awaitable<void> deliver(Delivery delivery);

    boost::asio::io_context &context_;
    Store &store_;
    std::deque<Delivery> queue_;
    int under_way_ = 0;
    std::size_t pending_ = 0;
};

}  // namespace pg_billing::sandbox
