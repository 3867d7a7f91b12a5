#include "test/sandbox/webhooks.hpp"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/streambuf.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <charconv>
#include <chrono>
#include <ctime>
#include <memory>
#include <optional>

#include "stripe/signature.hpp"
#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr const char *kEndpoint = "webhook_endpoint", *kDestination = "v2.core.event_destination";
constexpr int kAttempts = 6, kAtOnce = 8;
constexpr std::chrono::milliseconds kFirstDelay{200};
constexpr std::chrono::seconds kTimeout{10};

struct Url {
    std::string host, path;
    std::uint16_t port = 80;
};

// Reads http://HOST[:PORT][/PATH] where HOST is this machine; nothing else is delivered to.
std::optional<Url> parse_url(const std::string &text) {
    static constexpr std::string_view kScheme = "http://";
    if (!text.starts_with(kScheme))
        return std::nullopt;
    const std::string rest = text.substr(kScheme.size());
    const std::size_t slash = std::min(rest.find('/'), rest.size());
    const std::string authority = rest.substr(0, slash);
    const std::size_t colon = std::min(authority.find(':'), authority.size());
    Url url{authority.substr(0, colon), slash < rest.size() ? rest.substr(slash) : "/"};
    if (url.host != "127.0.0.1" && url.host != "localhost")
        return std::nullopt;
    if (colon < authority.size()) {
        const char *const last = authority.data() + authority.size();
        const auto [end, error] = std::from_chars(authority.data() + colon + 1, last, url.port);
        if (error != std::errc{} || end != last)
            return std::nullopt;
    }
    return url;
}

bool listens(const json &target, const json &type) {
    const json &types = target["enabled_events"];
    return std::any_of(types.begin(), types.end(),
                       [&](const json &one) { return one == "*" || one == type; });
}

// Posts a body and returns the answer's status, 0 if none came in time.
asio::awaitable<unsigned> post(asio::io_context &context, const Url &url, const std::string &signature,
                               const std::string &body) {
    constexpr auto token = asio::as_tuple(asio::use_awaitable);
    const auto shared = std::make_shared<tcp::socket>(context);  // the deadline may fire as this returns
    tcp::socket &socket = *shared;
    asio::steady_timer deadline(context, kTimeout);
    deadline.async_wait([shared](const boost::system::error_code &error) {
        if (!error) {
            boost::system::error_code ignored;
            shared->close(ignored);
        }
    });
    const tcp::endpoint endpoint(asio::ip::address_v4::loopback(), url.port);
    if (const auto [error] = co_await socket.async_connect(endpoint, token); error)
        co_return 0;
    const std::string request =
        "POST " + url.path + " HTTP/1.1\r\nHost: " + url.host + ":" + std::to_string(url.port) +
        "\r\nContent-Type: application/json; charset=utf-8\r\nUser-Agent: Stripe/1.0 (sandbox)\r\n"
        "Stripe-Signature: " +
        signature + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" +
        body;
    const auto [write_error, written] = co_await asio::async_write(socket, asio::buffer(request), token);
    if (write_error)
        co_return 0;
    asio::streambuf answer(64 << 10);
    const auto [read_error, read] = co_await asio::async_read_until(socket, answer, "\r\n", token);
    if (read_error)
        co_return 0;
    const auto data = answer.data();
    const std::string line(asio::buffers_begin(data),
                           asio::buffers_begin(data) + static_cast<std::ptrdiff_t>(read));
    unsigned status = 0;
    if (line.starts_with("HTTP/1.") && line.size() > 12)
        std::from_chars(line.data() + 9, line.data() + 12, status);
    // The rest is read so that closing does not reset the peer while it still writes.
    while (std::get<0>(co_await asio::async_read(socket, answer, asio::transfer_at_least(1), token)) ==
           boost::system::error_code{})
        answer.consume(answer.size());
    co_return status;
}

}  // namespace

void Webhooks::queue(const json &event, const std::string &target_kind, const json &target,
                     const json &content) {
    ++pending_;
    queue_.push_back({event["id"], target_kind, target["id"], content.dump(2)});
}

void Webhooks::enqueue(json &event) {
    for (const json &endpoint : store_.all(kEndpoint)) {
        if (endpoint["status"] != "enabled" || !listens(endpoint, event["type"]))
            continue;
        event["pending_webhooks"] = event["pending_webhooks"].get<int>() + 1;
        queue(event, kEndpoint, endpoint, store_.render(event));
    }
    const std::string type = "v1." + event["type"].get<std::string>();
    const auto &destinations = store_.all(kDestination);
    if (std::any_of(destinations.begin(), destinations.end(),
                    [&](const json &row) { return listens(row, type); }))
        notify(type, event["data"]["object"], event["created"], json());
    pump();
}

void Webhooks::notify(const std::string &type, const json &object, std::int64_t time, const json &data) {
    char created[32];
    const std::time_t seconds = time;
    std::strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%S.000Z", std::gmtime(&seconds));
    json notification = {{"id", store_.new_id("evt_test", 24)},
                         {"object", "v2.core.event"},
                         {"type", type},
                         {"created", created},
                         {"livemode", false},
                         {"context", nullptr}};
    if (object.is_object())
        notification["related_object"] = {{"id", object["id"]}, {"type", object["object"]}, {"url", nullptr}};
    json event = notification;
    event["data"] = data;
    store_.add(std::move(event));
    for (const json &destination : store_.all(kDestination))
        if (destination["status"] == "enabled" && listens(destination, type))
            queue(notification, kDestination, destination, notification);
    pump();
}

void Webhooks::pump() {
    while (under_way_ < kAtOnce && !queue_.empty()) {
        ++under_way_;
        Delivery next = std::move(queue_.front());
        queue_.pop_front();  // before it runs: it may end, and pump, at once
        asio::co_spawn(context_, deliver(std::move(next)), asio::detached);
    }
}

asio::awaitable<void> Webhooks::deliver(Delivery delivery) {
    bool delivered = false;
    const json *target = store_.find(delivery.target_kind, delivery.target);
    if (target) {
        const auto secrets = (*target)["_secrets"].get<std::vector<std::string>>();
        const std::string signature = stripe::sign_webhook(secrets, machine_time(), delivery.body);
        const unsigned status =
            co_await post(context_, *parse_url((*target)["_url"]), signature, delivery.body);
        delivered = status >= 200 && status < 300;
    }
    --under_way_;
    if (json *event = delivered ? store_.find("event", delivery.event) : nullptr)
        (*event)["pending_webhooks"] = (*event)["pending_webhooks"].get<int>() - 1;
    pump();
    if (delivered || !target || delivery.attempt == kAttempts) {
        --pending_;
        co_return;
    }
    asio::steady_timer pause(context_, kFirstDelay * (1 << (delivery.attempt - 1)));
    co_await pause.async_wait(asio::use_awaitable);
    ++delivery.attempt;
    queue_.push_back(std::move(delivery));
    pump();
}

json &Webhooks::add_target(json target, const std::string &url) {
    if (!parse_url(url))
        throw invalid("Invalid URL: the sandbox delivers to http://127.0.0.1 or http://localhost only.",
                      "url", "url_invalid");
    target["status"] = "enabled";
    target["livemode"] = false;
    target["metadata"] = json::object();
    target["_url"] = url;
    target["_secrets"] = {store_.new_id("whsec", 32)};
    return store_.add(std::move(target));
}

json Webhooks::roll(const json &target) {
    for (const char *kind : {kEndpoint, kDestination})
        if (json *found = store_.find(kind, target)) {
            const std::string secret = store_.new_id("whsec", 32);
            (*found)["_secrets"].push_back(secret);
            return secret;
        }
    throw no_such("webhook endpoint", target);
}

json Webhooks::create(const Call &call) {
    json &endpoint = add_target({{"id", store_.new_id("we", 24)},
                                 {"object", kEndpoint},
                                 {"api_version", call.params.value("api_version", json())},
                                 {"application", nullptr},
                                 {"created", machine_time()},
                                 {"description", call.params.value("description", json())},
                                 {"enabled_events", call.params["enabled_events"]},
                                 {"url", call.params["url"]}},
                                call.text("url"));
    merge_metadata(endpoint, call.params);
    json answer = endpoint;
    answer["secret"] = endpoint["_secrets"][0];  // shown this once
    return answer;
}

json Webhooks::create_destination(const Call &call) {
    if (call.text("type") != "webhook_endpoint" || call.text("event_payload") != "thin")
        throw not_modelled("event destinations other than webhook endpoints for thin events");
    json &destination = add_target({{"id", store_.new_id("ed_test", 24)},
                                    {"object", kDestination},
                                    {"created", machine_time()},
                                    {"enabled_events", call.params["enabled_events"]},
                                    {"event_payload", "thin"},
                                    {"name", call.params["name"]},
                                    {"type", "webhook_endpoint"}},
                                   call.params["webhook_endpoint"].value("url", ""));
    json answer = destination;
    for (const json &more : call.params.value("include", json::array()))
        answer["webhook_endpoint"][more == "webhook_endpoint.url" ? "url" : "signing_secret"] =
            more == "webhook_endpoint.url" ? destination["_url"] : destination["_secrets"][0];
    return answer;
}

void Webhooks::model(Catalog &catalog) {
    catalog.model("POST /v1/webhook_endpoints",
                  {"url", "enabled_events", "api_version", "description", "metadata"},
                  [this](const Call &call) { return create(call); });
    catalog.model("GET /v1/webhook_endpoints/{id}", {},
                  [this](const Call &call) { return store_.get(kEndpoint, call.id()); });
    catalog.model("GET /v1/webhook_endpoints", {"limit", "starting_after", "ending_before"},
                  [this](const Call &call) {
                      return store_.list(kEndpoint, "/v1/webhook_endpoints", call.params,
                                         [](const json &) { return true; });
                  });
    catalog.model("POST /v2/core/event_destinations",
                  {"enabled_events", "event_payload", "include", "name", "type", "webhook_endpoint"},
                  [this](const Call &call) { return create_destination(call); });
    catalog.model("GET /v2/core/events/{id}", {},
                  [this](const Call &call) { return store_.get("v2.core.event", call.id()); });
    // By its time: Stripe's pages have an address of their own, which nobody here asks for.
    catalog.model("GET /v2/core/events", {"types", "created", "limit"}, [this](const Call &call) -> json {
        const json types = call.params.value("types", json::array());
        const std::string latest = call.params.value("created", json::object()).value("lte", "9999");
        const std::size_t limit = call.params.value("limit", 20);
        json page = json::array();
        bool more = false;
        const auto &events = store_.all("v2.core.event");
        for (auto event = events.rbegin(); event != events.rend() && !more; ++event) {
            const bool wanted = std::find(types.begin(), types.end(), (*event)["type"]) != types.end() &&
                                (*event)["created"].get<std::string>() <= latest;
            more = wanted && page.size() == limit;
            if (wanted && !more)
                page.push_back(*event);
        }
        const json next = more ? json("/v2/core/events?page=next") : json();
        return {{"data", page}, {"next_page_url", next}, {"previous_page_url", nullptr}};
    });
    catalog.model("DELETE /v1/webhook_endpoints/{id}", {}, [this](const Call &call) -> json {
        store_.get(kEndpoint, call.id());
        store_.remove(kEndpoint, call.id());
        return {{"id", call.id()}, {"object", "webhook_endpoint"}, {"deleted", true}};
    });
}

}  // namespace pg_billing::sandbox
