// pg_billing_shim: serves the REST API and receives Stripe's webhooks. It holds no business logic and no Stripe key;
// everything it does is a call of an SQL function.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <exception>

#include "shim/config.hpp"
#include "shim/endpoints.hpp"
#include "shim/http_server.hpp"
#include "shim/log.hpp"
#include "shim/problem.hpp"
#include "shim/throttle.hpp"

namespace pg_billing::shim {

namespace {

namespace asio = boost::asio;

asio::awaitable<void> reload_on_hangup(asio::signal_set &hangup, WebhookSecrets &secrets, Tokens &tokens,
                                       http::Server &server) {
    for (;;) {
        co_await hangup.async_wait(asio::use_awaitable);
        try {
            secrets.reload();
            tokens.reload();
            server.reload();
            log("reloaded", {{"webhook_secrets", secrets.get().size()}});
        } catch (const std::exception &error) {
            log("reload_failed", {{"error", error.what()}});
        }
    }
}

// Lets requests under way finish before the database is let go, for so long; a second signal ends the process at once.
asio::awaitable<void> stop_on_signal(asio::io_context &context, asio::signal_set &stop,
                                     asio::signal_set &hangup, http::Server &server, Database &database,
                                     std::chrono::milliseconds patience) {
    co_await stop.async_wait(asio::use_awaitable);
    stop.clear();
    log("stopping");
    server.stop();
    asio::steady_timer limit(context, patience);
    limit.async_wait([&context](boost::system::error_code cancelled) {
        if (!cancelled) {
            log("stopped_waiting");  // whoever has no answer yet repeats the request with the same key
            context.stop();
        }
    });
    co_await server.drained();
    limit.cancel();
    database.close();
    hangup.cancel();
}

void serve(const Config &config) {
    asio::io_context context(1);
    WebhookSecrets secrets(config.webhook_secret_files);
    Tokens tokens(config.token_secret_files, config.token_key_files);
    Database::Options database_options;
    database_options.conninfo = config.database;
    database_options.connections = config.connections;
    Database database(context, database_options);
    Recorder::Options recorder_options;
    recorder_options.waiting_events = config.queue_events;
    recorder_options.waiting_bytes = config.queue_mib << 20;
    Recorder recorder(context, database, recorder_options);
    Checker checker(context, database);
    const BrowserRules browsers{config.cors_origins, !config.tls_certificate.empty()};
    const Networks trusted(config.trusted_proxies);
    Throttle throttle(config.tenant_rate, config.address_rate, trusted);
    Router router(browsers, &tokens, config.log_requests, &throttle);
    add_endpoints(router, {database, recorder, checker, secrets, tokens, {context, config.wait}});

    http::Options options;
    options.address = config.address;
    options.port = config.only_check ? 0 : config.port;  // which the server that is running may have
    options.certificate_file = config.tls_certificate;
    options.key_file = config.tls_key;
    options.max_connections_of_peer = config.address_connections;
    options.unlimited = [&trusted](const std::string &peer) { return trusted.contain(peer); };
    options.refuse = [&browsers](unsigned status) {
        http::Response response = to_response(server_problem(status));
        add_security_fields(response, browsers);
        return response;
    };
    http::Server server(context, options,
                        [&router](http::Request request) { return router.handle(std::move(request)); });
    if (config.only_check) {
        log("settings_are_good", {{"address", config.address}, {"webhook_secrets", secrets.get().size()}});
        return;
    }
    asio::signal_set hangup(context, SIGHUP), stop(context, SIGTERM, SIGINT);
    asio::co_spawn(context, reload_on_hangup(hangup, secrets, tokens, server), asio::detached);
    asio::co_spawn(context, stop_on_signal(context, stop, hangup, server, database, config.drain),
                   asio::detached);
    const bool v6 = config.address.find(':') != config.address.npos;
    log("listening", {{"address", v6 ? "[" + config.address + "]" : config.address},
                      {"port", server.port()},
                      {"tls", config.tls_certificate.empty() ? "off" : "on"}});
    context.run();
    log("stopped");
}

}  // namespace

}  // namespace pg_billing::shim

int main(int argc, char **argv) {
    using namespace pg_billing::shim;
    try {
        std::signal(SIGPIPE,
                    SIG_IGN);  // a client that leaves is an error of its connection, not of the process
        serve(read_config(argc, argv));
        return 0;
    } catch (const Exit &exit) {
        return exit.status;
    } catch (const std::exception &error) {
        log("failed", {{"error", error.what()}});
        return 1;
    }
}
