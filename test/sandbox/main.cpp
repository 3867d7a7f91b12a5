// stripe_sandbox: a stateful stand-in for Stripe's billing API, in memory, on one thread. A development tool: never
// part of what is installed.
#include <CLI/CLI.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "shim/http_server.hpp"
#include "stripe/signature.hpp"
#include "test/sandbox/accounts.hpp"
#include "test/sandbox/api.hpp"
#include "test/sandbox/catalog.hpp"
#include "test/sandbox/checkout.hpp"
#include "test/sandbox/clocks.hpp"
#include "test/sandbox/credits.hpp"
#include "test/sandbox/entitlements.hpp"
#include "test/sandbox/event_stream.hpp"
#include "test/sandbox/invoice_items.hpp"
#include "test/sandbox/invoices.hpp"
#include "test/sandbox/meter_errors.hpp"
#include "test/sandbox/meters.hpp"
#include "test/sandbox/prices.hpp"
#include "test/sandbox/store.hpp"
#include "test/sandbox/subscriptions.hpp"
#include "test/sandbox/webhooks.hpp"

namespace asio = boost::asio;
using namespace pg_billing;

namespace {

http::Options listen_options(const std::string &listen) {
    http::Options options;
    const std::size_t colon = listen.rfind(':');
    const char *const last = listen.data() + listen.size();
    if (colon == std::string::npos ||
        std::from_chars(listen.data() + colon + 1, last, options.port).ptr != last)
        throw std::runtime_error("--listen takes ADDRESS:PORT, not " + listen);
    options.address = listen.substr(0, colon);
    options.refuse = [](unsigned status) {
        http::Response response;
        response.status = status;
        response.fields.emplace_back("content-type", "application/json");
        response.body = R"({"error":{"type":"api_error","message":"The request could not be read."}})";
        return response;
    };
    return options;
}

// Asks our verifier: {"header", "body", "secrets", "now"} gives {"result": "valid"} or why not.
sandbox::json verify(const sandbox::json &delivery) {
    const auto secrets = delivery.at("secrets").get<std::vector<std::string>>();
    return {{"result", stripe::describe(stripe::verify_webhook(delivery.at("header").get<std::string>(),
                                                               delivery.at("body").get<std::string>(),
                                                               secrets, delivery.at("now")))}};
}

asio::awaitable<void> tick(asio::io_context &context, sandbox::Clocks &clocks) {
    for (asio::steady_timer second(context);;) {
        clocks.tick();
        second.expires_after(std::chrono::seconds(1));
        co_await second.async_wait(asio::use_awaitable);
    }
}

void run(const std::string &listen, const std::string &endpoints, std::uint64_t seed, double rate) {
    asio::io_context context(1);
    sandbox::Store store(seed);
    sandbox::Catalog catalog(endpoints);
    sandbox::Webhooks webhooks(context, store);
    store.on_event = [&](sandbox::json &event) { webhooks.enqueue(event); };
    sandbox::Meters meters(store);
    sandbox::Credits credits(store);
    sandbox::Invoices invoices(store, meters, credits);
    sandbox::Subscriptions subscriptions(store, invoices);
    sandbox::Checkout checkout(store, subscriptions);
    sandbox::Clocks clocks(store, subscriptions, invoices, credits);
    sandbox::MeterErrors meter_errors(webhooks);
    meters.uncounted = [&](const sandbox::json &meter, const std::string &identifier) {
        return meter_errors.uncounted(meter, identifier);
    };
    sandbox::EventStream event_stream(store, meters, meter_errors);
    sandbox::model_accounts(catalog, store,
                            [&](const std::string &customer) { subscriptions.end_all(customer); });
    sandbox::model_prices(catalog, store);
    sandbox::model_entitlements(catalog, store);
    meters.model(catalog, [&](const std::string &customer) { invoices.usage_changed(customer); });
    event_stream.model(catalog);
    credits.model(catalog);
    invoices.model(catalog);
    sandbox::model_invoice_items(catalog, store, [&](const std::string &invoice, sandbox::json &item) {
        invoices.add_item(invoice, item);
    });
    subscriptions.model(catalog);
    checkout.model(catalog);
    clocks.model(catalog);
    webhooks.model(catalog);

    sandbox::Api api(catalog, store, meters, seed, rate);
    api.complete_checkout = [&](const sandbox::json &given) { return checkout.complete(given); };
    api.pending_deliveries = [&] { return webhooks.pending(); };
    api.stream_token = [&](const std::string &token) { event_stream.authenticate(token); };
    api.controls["POST /_sandbox/expire_sessions"] = [&](const sandbox::json &what) {
        return event_stream.expire(what);
    };
    api.controls["POST /_sandbox/uncounted"] = [&](const sandbox::json &what) {
        return meter_errors.demand(what);
    };
    api.controls["POST /_sandbox/roll_secret"] = [&](const sandbox::json &what) -> sandbox::json {
        return {{"secret", webhooks.roll(what.value("endpoint", ""))}};
    };
    api.controls["POST /_sandbox/verify"] = verify;
    const http::Options options = listen_options(listen);
    http::Server server(context, options,
                        [&](http::Request request) { return api.handle(std::move(request)); });
    asio::signal_set signals(context, SIGINT, SIGTERM);
    // Ends at once: requests that wait refer to what is made here, and would outlive it in the context.
    signals.async_wait([](const boost::system::error_code &, int) { std::_Exit(0); });
    asio::co_spawn(context, tick(context, clocks), asio::detached);
    std::printf("listening on %s:%u\n", options.address.c_str(), static_cast<unsigned>(server.port()));
    std::fflush(stdout);
    context.run();
}

}  // namespace

int main(int argc, char **argv) {
    CLI::App app("A stateful sandbox Stripe for tests and demos");
    std::string listen = "127.0.0.1:12111", endpoints = STRIPE_ENDPOINTS_FILE;
    std::uint64_t seed = 1;
    double rate = 0;
    app.add_option("--listen", listen, "ADDRESS:PORT; port 0 takes any free one")->capture_default_str();
    app.add_option("--endpoints", endpoints, "Stripe's endpoints and parameters (JSON)")
        ->capture_default_str();
    app.add_option("--seed", seed, "of ids and of faults with a probability")->capture_default_str();
    app.add_option("--rate", rate, "requests a second; more are refused with 429. 0: any number")
        ->check(CLI::NonNegativeNumber);
    CLI11_PARSE(app, argc, argv);
    try {
        run(listen, endpoints, seed, rate);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "stripe_sandbox: %s\n", error.what());
        return 1;
    }
}
