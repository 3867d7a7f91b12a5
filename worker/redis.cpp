#include "worker/redis.hpp"

#include <hiredis/hiredis.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace pg_billing {
namespace {

using namespace std::chrono_literals;

constexpr auto kSlice = 250ms;

int number(std::string_view text, int most, const char *what) {
    int value = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > most)
        throw RedisError(std::string("the URL of Redis has no valid ") + what);
    return value;
}

RedisReply copy(const redisReply *reply) {
    RedisReply result;
    switch (reply->type) {
        case REDIS_REPLY_ERROR:
            throw RedisError("Redis: " + std::string(reply->str, reply->len));
        case REDIS_REPLY_STRING:
        case REDIS_REPLY_STATUS:
            result.text.emplace(reply->str, reply->len);
            break;
        case REDIS_REPLY_INTEGER:
            result.text = std::to_string(reply->integer);
            break;
        case REDIS_REPLY_ARRAY:
            for (std::size_t i = 0; i < reply->elements; i++)
                result.items.push_back(copy(reply->element[i]));
            break;
        default:
            break;
    }
    return result;
}

}  // namespace

RedisAddress parse_redis_url(std::string_view url) {
    constexpr std::string_view kTcp = "redis://", kUnix = "unix:";
    RedisAddress address;
    if (url.starts_with(kUnix)) {
        url.remove_prefix(kUnix.size());
        const auto question = url.find('?');
        address.path = url.substr(0, question);
        if (question != url.npos)
            address.database = number(url.substr(question + 1), 1 << 20, "database number");
        if (!address.path.starts_with('/'))
            throw RedisError("the URL of Redis has no absolute path after unix:");
        return address;
    }
    if (!url.starts_with(kTcp))
        throw RedisError("the URL of Redis must begin with redis:// or unix:");
    url.remove_prefix(kTcp.size());
    if (const auto slash = url.find('/'); slash != url.npos) {
        if (slash + 1 < url.size())
            address.database = number(url.substr(slash + 1), 1 << 20, "database number");
        url = url.substr(0, slash);
    }
    if (const auto at = url.rfind('@'); at != url.npos) {
        address.user = url.substr(0, at);
        url.remove_prefix(at + 1);
        if (address.user.find(':') != std::string::npos)
            throw RedisError(
                "the URL of Redis must not hold a password: put it into pg_billing.redis_password_file");
    }
    const auto bracket = url.rfind(']');  // an IPv6 address has colons of its own
    const auto colon = url.rfind(':');
    if (colon != url.npos && (bracket == url.npos || colon > bracket)) {
        address.port = number(url.substr(colon + 1), 65535, "port");
        url = url.substr(0, colon);
    }
    if (url.size() > 2 && url.front() == '[' && url.back() == ']')
        url = url.substr(1, url.size() - 2);
    if (url.empty())
        throw RedisError("the URL of Redis has no host");
    address.host = url;
    return address;
}

void Redis::Closer::operator()(redisContext *context) const {
    redisFree(context);
}

Redis::Redis(const RedisAddress &address, const char *password, std::chrono::milliseconds limit,
             std::function<void()> serve)
    : limit_(limit),
      serve_(std::move(serve)),
      context_(address.path.empty() ? redisConnectNonBlock(address.host.c_str(), address.port)
                                    : redisConnectUnixNonBlock(address.path.c_str())) {
    if (!context_)
        throw std::bad_alloc();
    check();
    begin_waiting();
    wait(true);
    if (password) {
        std::vector<std::string> command{"AUTH"};
        if (!address.user.empty())
            command.push_back(address.user);
        command.emplace_back(password);
        ask(command);
        explicit_bzero(command.back().data(), command.back().size());
    }
    if (address.database)
        ask({"SELECT", std::to_string(address.database)});
}

Redis::~Redis() = default;

void Redis::check() const {
    if (context_->err)
        throw RedisError(std::string("cannot reach Redis: ") + context_->errstr);
}

// Waits until the socket is ready.
void Redis::wait(bool for_writing) {
    for (;;) {
        serve_();
        const auto left =
            std::chrono::ceil<std::chrono::milliseconds>(deadline_ - std::chrono::steady_clock::now());
        if (left <= 0ms)
            throw RedisError("cannot reach Redis: no answer in time");
        pollfd ready{context_->fd, static_cast<short>(for_writing ? POLLOUT : POLLIN), 0};
        const int count =
            poll(&ready, 1, static_cast<int>(std::min<std::chrono::milliseconds>(left, kSlice).count()));
        if (count < 0 && errno != EINTR)
            throw RedisError(std::string("cannot reach Redis: ") + strerror(errno));
        if (count > 0)
            return;
    }
}

void Redis::add(const std::vector<std::string> &command) {
    std::vector<const char *> words;
    std::vector<std::size_t> lengths;
    for (const std::string &word : command) {
        words.push_back(word.data());
        lengths.push_back(word.size());
    }
    if (redisAppendCommandArgv(context_.get(), static_cast<int>(words.size()), words.data(),
                               lengths.data()) != REDIS_OK)
        check();
    waiting_++;
}

std::vector<RedisReply> Redis::replies() {
    begin_waiting();
    for (int done = 0; !done;) {
        if (redisBufferWrite(context_.get(), &done) != REDIS_OK)
            check();
        if (!done)
            wait(true);
    }
    std::vector<RedisReply> result;
    while (waiting_ > 0) {
        void *raw = nullptr;
        if (redisGetReplyFromReader(context_.get(), &raw) != REDIS_OK)
            check();
        if (raw) {
            const std::unique_ptr<void, decltype(&freeReplyObject)> reply(raw, freeReplyObject);
            waiting_--;
            result.push_back(copy(static_cast<redisReply *>(raw)));
            continue;
        }
        wait(false);
        if (redisBufferRead(context_.get()) != REDIS_OK)
            check();
    }
    return result;
}

RedisReply Redis::ask(const std::vector<std::string> &command) {
    add(command);
    return std::move(replies().back());
}

}  // namespace pg_billing
