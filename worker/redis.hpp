// A connection to Redis on hiredis: commands go out pipelined, and replies come back in their order.
//
// Invariants:
//   - Nothing here blocks for longer than a quarter of a second without calling `serve`, nor waits for Redis for longer than
//     the limit in all. (Looking a host's name up is the exception: name an address where that may take long.)
//   - Whatever goes wrong, an error of Redis's own included, is a RedisError, and the connection is not used after it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

struct redisContext;

namespace pg_billing {

struct RedisError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Where Redis is: redis://[user@]host[:port][/database], or unix:/path[?database].
struct RedisAddress {
    std::string user, host, path;  // a path instead of a host: a unix socket
    int port = 6379, database = 0;
};

// Throws RedisError where the URL is not one of these; a password in it is refused, for settings are no place for one.
RedisAddress parse_redis_url(std::string_view url);

// A reply: an integer and a status are texts, too; nil is nothing.
struct RedisReply {
    std::optional<std::string> text;
    std::vector<RedisReply> items;  // of an array
};

class Redis {
  public:
    // Connects, authenticates if there is a password, and selects the database.
    Redis(const RedisAddress &address, const char *password, std::chrono::milliseconds limit,
          std::function<void()> serve);
    ~Redis();

    // Adds a command to the pipeline.
    void add(const std::vector<std::string> &command);

    // Sends what was added and returns the replies, one for each command.
    std::vector<RedisReply> replies();

    // The same for a single command.
    RedisReply ask(const std::vector<std::string> &command);

  private:
    struct Closer {
        void operator()(redisContext *context) const;
    };

    const std::chrono::milliseconds limit_;
    const std::function<void()> serve_;
    std::unique_ptr<redisContext, Closer> context_;
    std::size_t waiting_ = 0;  // commands without a reply
    std::chrono::steady_clock::time_point deadline_;

    void begin_waiting() { deadline_ = std::chrono::steady_clock::now() + limit_; }
    void wait(bool for_writing);
    void check() const;
};

}  // namespace pg_billing
