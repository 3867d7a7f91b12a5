// Which endpoint answers a request, and what every answer has in common: a request id, its trace, what browsers are told, a line
// of the log, and problems instead of exceptions. HEAD is GET, whose body the server omits; OPTIONS tells the methods of an address.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shim/browser.hpp"
#include "shim/http_server.hpp"
#include "shim/log.hpp"
#include "shim/tokens.hpp"
#include "shim/trace.hpp"

namespace pg_billing::shim {

struct Call {
    http::Request request;
    std::vector<std::string> captures;  // what stands for the pattern's ":names", decoded
    const Tokens *tokens = nullptr;     // that a caller may present; null: none
    std::string request_id;             // the client's, or a new one
    Trace trace;
};

// Returns the ids of a request and its trace, for whatever is logged about it.
LogDetails ids_of(const Call &call);

using Endpoint = std::function<boost::asio::awaitable<http::Response>(const Call &)>;

class Throttle;

class Router {
  public:
    // Logs every request, or only those that fail for a cause that is not the client's. Without a throttle there is no limit.
    explicit Router(BrowserRules browsers = {}, const Tokens *tokens = nullptr, bool log_requests = false,
                    Throttle *throttle = nullptr)
        : browsers_(std::move(browsers)), tokens_(tokens), log_requests_(log_requests), throttle_(throttle) {}

    // Adds an endpoint, of any method if that is "*"; a segment of the pattern that starts with ':' matches any one
    // segment, a last one of "*" all that is left. The first that fits answers.
    void add(std::string method, std::string_view pattern, Endpoint endpoint);

    // Returns the method and pattern of each endpoint, as they were added.
    std::vector<std::pair<std::string, std::string>> routes() const;

    // Answers a request; never throws a Problem, PgFailure or other std::exception.
    boost::asio::awaitable<http::Response> handle(http::Request request) const;

  private:
    struct Route {
        std::string method, pattern;
        std::vector<std::string> segments;
        Endpoint endpoint;
    };

    // Answers the call's request, once the rest of it is filled in. Also tells the pattern that matched.
    boost::asio::awaitable<http::Response> dispatch(Call &call, std::string_view &matched) const;

    BrowserRules browsers_;
    const Tokens *tokens_;
    bool log_requests_;
    Throttle *throttle_;
    std::vector<Route> routes_;
};

}  // namespace pg_billing::shim
