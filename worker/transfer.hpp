// HTTP calls to Stripe, many at a time, on libcurl's multi interface. Knows nothing of PostgreSQL.
//
// Invariants:
//   - Nothing here blocks for longer than the slice given to poll(): the caller serves interrupts in between.
//   - TLS 1.2 or later with peer and host verified, unless the server is on this machine and the base says http.
//   - No redirect is followed, no answer grows beyond a bound, and the key goes to the API's configured host only, a
//     token to the event stream's.
//   - Threads that libcurl starts (name resolution) never receive a signal meant for the process.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "stripe/retry.hpp"
#include "worker/key_file.hpp"

namespace pg_billing {

struct TransferOptions {
    std::string api_base;     // e.g. https://api.stripe.com
    std::string stream_base;  // e.g. https://meter-events.stripe.com
    std::string version;      // Stripe-Version
    std::string ca_file;      // empty: the system's authorities
    std::chrono::seconds timeout{30};
};

struct Request {
    std::size_t tag = 0;               // the caller's, handed back with the answer
    std::string method;                // GET, POST or DELETE
    std::string path;                  // e.g. /v1/customers
    std::string body;                  // encoded parameters; of what is no POST, the query
    std::string idempotency_key = {};  // empty: none
    bool json = false;                 // so is the body, or else a form
    std::string_view token = {};       // for the event stream, in place of the key; empty: for the API
};

struct Finished {
    std::size_t tag;
    stripe::Answer answer;
};

class Transfers {
  public:
    // Throws std::invalid_argument when a base is no URL that a secret may be sent to. The key must outlive this object.
    Transfers(TransferOptions options, const ApiKey &key);
    ~Transfers();
    Transfers(const Transfers &) = delete;
    Transfers &operator=(const Transfers &) = delete;

    void start(const Request &request);
    std::size_t in_flight() const;

    // Moves every transfer on, waiting for at most the slice if nothing happens (there may be none), and returns those
    // that ended.
    std::vector<Finished> poll(std::chrono::milliseconds slice);

  private:
    struct Transfer;
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace pg_billing
