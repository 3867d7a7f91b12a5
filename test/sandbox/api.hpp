// The way of a request through the sandbox: authentication, faults, idempotency, validation, handler, answer.
//
// Invariants: every answer but a hang-up carries a Request-Id and is in the log; a handler runs to its end without
// another request in between (one thread, no suspension inside); for one customer and meter only one call is under way
// at a time, a second is refused with 429 and counted (docs.stripe.com/rate-limits).
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "shim/http_server.hpp"
#include "test/sandbox/catalog.hpp"
#include "test/sandbox/event_stream.hpp"
#include "test/sandbox/faults.hpp"
#include "test/sandbox/meters.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

class Api {
  public:
    // rate: how many requests a second are answered, as many of them at once; more are refused with 429. 0: any number.
    Api(Catalog &catalog, Store &store, Meters &meters, std::uint64_t seed, double rate)
        : catalog_(catalog), store_(store), meters_(meters), faults_(seed), rate_(rate), tokens_(rate) {}

    boost::asio::awaitable<http::Response> handle(http::Request request);
    std::function<void(const std::string &token)> stream_token;  // throws unless it opens the event stream
    std::function<json(const json &)> complete_checkout;         // what the customer does in the browser
    std::function<std::size_t()> pending_deliveries;             // of webhooks

    // What other parts let tests control, e.g. "POST /_sandbox/verify": takes and answers JSON objects.
    std::map<std::string, std::function<json(const json &)>> controls;

  private:
    struct Result {
        int status = 200;
        json body;
        http::Fields fields;
        bool began = true;      // a handler ran, so an idempotency key remembers this
        bool replayed = false;  // from memory
        bool hang_up = false;
    };
    // What an idempotency key stands for (docs.stripe.com/api/idempotent_requests).
    struct Remembered {
        std::string fingerprint, request_id;
        Result result;
        std::int64_t expires = 0;
    };
    // What makes two requests with one key the same request.
    struct Keyed {
        std::string key, fingerprint, request_id;
    };

    boost::asio::awaitable<Result> serve(const http::Request &request, json &entry);
    void authenticate(const http::Request &request) const;
    Result execute(const http::Request &request, const json &params);
    Result execute_once(const http::Request &request, const json &params, const Keyed &keyed);
    const Remembered *recall(const Keyed &keyed);
    bool within_rate();
    http::Response control(const http::Request &request);
    json state();
    json requests_under(const std::string &query) const;

    Catalog &catalog_;
    Store &store_;
    Meters &meters_;
    Faults faults_;
    const double rate_;
    double tokens_;  // of a bucket that holds a second's worth
    std::chrono::steady_clock::time_point filled_ = std::chrono::steady_clock::now();
    std::int64_t too_many_ = 0;  // requests refused for the rate
    std::map<std::string, Remembered> remembered_;
    std::set<std::string> under_way_;  // idempotency keys, and customer and meter, of the calls being served
    std::int64_t overlaps_ = 0;  // calls refused because one for the same customer and meter was under way
    std::deque<json> log_;
};

}  // namespace pg_billing::sandbox
