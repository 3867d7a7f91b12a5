// A small HTTP/1.1 server on Boost.Beast: the only place that includes Beast (its headers are costly to
// compile).
//
// One thread runs the io_context; a handler is a coroutine, may co_await anything on that context, and never
// blocks. Limits are enforced while reading: an oversized or malformed request never reaches a handler, and a body is
// read only once there is room for it beside the others. A handler that throws costs its request a 500 without detail, never the process. A connection carries one
// request at a time.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pg_billing::http {

using Fields = std::vector<std::pair<std::string, std::string>>;  // names in lower case, in order of arrival

struct Request {
    std::string method;  // upper case, e.g. "POST"
    std::string path;    // as sent (percent-encoded), without the query
    std::string query;   // as sent, without '?'
    Fields fields;
    std::string body;
    std::string peer;  // address of the client

    // Returns the first field of that (lower-case) name.
    std::optional<std::string_view> field(std::string_view name) const;
};

struct Response {
    unsigned status = 200;
    Fields fields;
    std::string body;
    bool hang_up = false;  // close the connection instead of answering (the sandbox's dropped answers)
};

using Handler = std::function<boost::asio::awaitable<Response>(Request)>;

struct Options {
    std::string address = "127.0.0.1";
    std::uint16_t port = 0;  // 0: any free port, see Server::port()
    std::size_t body_limit = 1 << 20;
    std::size_t bodies_limit = 256u << 20;  // of all requests that are being read or answered; beyond it: 503
    std::size_t header_limit = 16 << 10;
    std::size_t max_connections = 1000;       // more wait in the listen queue
    std::size_t max_connections_of_peer = 0;  // of one address; more are closed at once; 0: any number
    std::function<bool(const std::string &peer)> unlimited;  // whom that does not hold for
    std::chrono::milliseconds timeout{
        30'000};                             // for a whole request to arrive, an answer to leave, or idleness
    std::string certificate_file, key_file;  // PEM; both set: TLS 1.2 or later
    // makes the server's own answers: 400, 413, 431, 500, 503
    std::function<Response(unsigned status)> refuse;
};

class Server {
  public:
    // Binds and listens at once (throws std::system_error); serves when the context runs.
    Server(boost::asio::io_context &context, Options options, Handler handler);
    ~Server();
    std::uint16_t port() const;
    void
    reload();     // reads certificate and key anew, for connections to come; keeps what it had if that throws
    void stop();  // accepts no more, closes idle connections, lets requests under way finish
    boost::asio::awaitable<void> drained();  // completes when no connection is left

  private:
    struct Impl;
    std::shared_ptr<Impl> impl_;  // shared with the connections, which may outlive the server
};

// Decodes %xx and, with plus_is_space, '+'. Returns nothing if malformed.
std::optional<std::string> percent_decode(std::string_view text, bool plus_is_space = false);

}  // namespace pg_billing::http
