// How many requests a second a caller and an address may make: of the endpoints of subscriptions, invoices and sessions, and of
// all that is asked with a token, which is in a browser's hands. Usage and quotas asked with a key are not limited here: services ask
// as fast as they serve, and the recorder's queue and the database's connections bound what that costs.
//
// A caller is a token's tenant, or a key with the tenant it names: a key that is not valid has a share of its own and uses up nobody's.
// An address is the client's, if it calls itself or through a proxy that is trusted. What calls from a trusted address for no one else has no limit.
#pragma once

#include <boost/asio/ip/network_v4.hpp>
#include <boost/asio/ip/network_v6.hpp>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "shim/router.hpp"

namespace pg_billing::shim {

// Addresses, given as networks ("10.0.0.0/8") or one by one.
class Networks {
  public:
    // Throws std::exception if one is neither.
    explicit Networks(const std::vector<std::string> &networks);

    // Returns whether an address is in one of them; no text that is no address is.
    bool contain(const std::string &address) const;

  private:
    std::vector<std::variant<boost::asio::ip::network_v4, boost::asio::ip::network_v6>> networks_;
};

// Returns the address that a request comes from: the peer, or the last of X-Forwarded-For that is no trusted proxy's, if the peer
// is one. Nothing if a trusted address speaks for itself.
std::optional<std::string> client_address(const http::Request &request, const Networks &trusted);

// A rate for each of many: the generic cell rate algorithm, which keeps one moment for each. Who is idle may take five seconds' worth at
// once, and one request at least.
class Shares {
  public:
    using Clock = std::chrono::steady_clock;

    // At most so many requests a second; 0: any number. Knows so many at once; when there are more, all get a new share, for what has to be
    // bounded is the memory.
    explicit Shares(double rate, std::size_t limit = 100'000);

    // Takes one request from a share; returns how long to wait if it is used up.
    std::optional<Clock::duration> take(const std::string &whose, Clock::time_point now);

  private:
    Clock::duration interval_{}, burst_{};
    std::size_t limit_;
    std::unordered_map<std::string, Clock::time_point> free_at_;  // when all of the share is there again
};

class Throttle {
  public:
    Throttle(double caller_rate, double address_rate, Networks trusted)
        : callers_(caller_rate), addresses_(address_rate), trusted_(std::move(trusted)) {}

    // Throws Problem 429 with Retry-After if a request for that pattern is one too many.
    void charge(const Call &call, std::string_view pattern);

  private:
    Shares callers_, addresses_;
    Networks trusted_;
};

}  // namespace pg_billing::shim
