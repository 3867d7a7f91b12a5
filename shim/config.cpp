#include "shim/config.hpp"

#include <libpq-fe.h>

#include <CLI/CLI.hpp>
#include <boost/asio/ip/address.hpp>
#include <memory>

#include "shim/browser.hpp"
#include "shim/throttle.hpp"

namespace pg_billing::shim {

namespace {

// Splits "127.0.0.1:8080" or "[::1]:8080"; names are not resolved, a server binds addresses.
void parse_listen(const std::string &listen, Config &config) {
    const auto colon = listen.rfind(':');
    std::string host = listen.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']')
        host = host.substr(1, host.size() - 2);
    else if (host.find(':') != host.npos)
        throw CLI::ValidationError("--listen", "an IPv6 address must be in brackets: [::1]:8080");
    boost::system::error_code error;
    boost::asio::ip::make_address(host, error);
    const std::string port = colon == listen.npos ? "" : listen.substr(colon + 1);
    if (error || port.empty() || port.size() > 5 || port.find_first_not_of("0123456789") != port.npos ||
        std::stoul(port) > 65535)
        throw CLI::ValidationError("--listen", "expected ADDRESS:PORT, such as 127.0.0.1:8080");
    config.address = host;
    config.port = static_cast<std::uint16_t>(std::stoul(port));
}

void check_database(const std::string &conninfo) {
    char *why = nullptr;
    const std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> parsed(
        PQconninfoParse(conninfo.c_str(), &why), PQconninfoFree);
    if (parsed)
        return;
    // libpq's message may repeat a password.
    PQfreemem(why);
    throw CLI::ValidationError("--database", "this is not a libpq connection string");
}

}  // namespace

Config read_config(int argc, char **argv) {
    Config config;
    std::string listen = "127.0.0.1:8080";
    double wait = 10, drain = 25;
    CLI::App app("The HTTP server of pg_billing: the REST API, and the receiver of Stripe's webhooks.",
                 "pg_billing_shim");
    app.add_option("--listen", listen, "ADDRESS:PORT to serve on")
        ->envname("PG_BILLING_SHIM_LISTEN")
        ->capture_default_str();
    app.add_option("--database", config.database, "libpq connection string")
        ->envname("PG_BILLING_SHIM_DATABASE")
        ->required();
    app.add_option("--connections", config.connections, "database connections")
        ->envname("PG_BILLING_SHIM_CONNECTIONS")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    app.add_option("--webhook-secret-file", config.webhook_secret_files,
                   "files with Stripe's webhook signing secrets, one per line; read again on SIGHUP")
        ->envname("PG_BILLING_SHIM_WEBHOOK_SECRET_FILE")
        ->delimiter(':')
        ->allow_extra_args(false);
    app.add_option(
           "--token-secret-file", config.token_secret_files,
           "files with secrets that sign and verify tenants' tokens, one per line; read again on SIGHUP")
        ->envname("PG_BILLING_SHIM_TOKEN_SECRET_FILE")
        ->delimiter(':')
        ->allow_extra_args(false);
    app.add_option("--token-key-file", config.token_key_files,
                   "PEM files with public keys of others who make tokens (RS256); read again on SIGHUP")
        ->envname("PG_BILLING_SHIM_TOKEN_KEY_FILE")
        ->delimiter(':')
        ->allow_extra_args(false);
    auto *certificate =
        app.add_option("--tls-certificate", config.tls_certificate, "PEM file of the certificate chain")
            ->envname("PG_BILLING_SHIM_TLS_CERTIFICATE");
    auto *key = app.add_option("--tls-key", config.tls_key, "PEM file of its private key")
                    ->envname("PG_BILLING_SHIM_TLS_KEY");
    certificate->needs(key);
    key->needs(certificate);
    app.add_option("--cors-origin", config.cors_origins,
                   "origins whose pages may call, such as https://app.example.com")
        ->envname("PG_BILLING_SHIM_CORS_ORIGIN")
        ->delimiter(',')
        ->allow_extra_args(false)
        ->check([](const std::string &origin) {
            return is_origin(origin) ? ""
                                     : "an origin is a scheme, a host and a port, if it is not the usual one";
        });
    app.add_option("--tenant-rate", config.tenant_rate,
                   "requests a second about subscriptions, invoices and sessions, and with a token, that a "
                   "tenant may make; 0: any number")
        ->envname("PG_BILLING_SHIM_TENANT_RATE")
        ->check(CLI::Range(0.0, 1e6))
        ->capture_default_str();
    app.add_option("--address-rate", config.address_rate, "the same for the address of a client")
        ->envname("PG_BILLING_SHIM_ADDRESS_RATE")
        ->check(CLI::Range(0.0, 1e6))
        ->capture_default_str();
    app.add_option("--address-connections", config.address_connections,
                   "connections that an address may have, of 1000 in all; 0: any number")
        ->envname("PG_BILLING_SHIM_ADDRESS_CONNECTIONS")
        ->check(CLI::Range(0, 1000))
        ->capture_default_str();
    app.add_option("--trusted-proxy", config.trusted_proxies,
                   "addresses or networks that have no limits, and whose X-Forwarded-For is believed")
        ->envname("PG_BILLING_SHIM_TRUSTED_PROXY")
        ->delimiter(',')
        ->allow_extra_args(false)
        ->check([](const std::string &network) {
            try {
                Networks({network});
                return "";
            } catch (const std::exception &) {
                return "this is neither an address nor a network";
            }
        })
        ->capture_default_str();
    app.add_option("--wait-seconds", wait, "how long an answer waits for Stripe")
        ->envname("PG_BILLING_SHIM_WAIT_SECONDS")
        ->check(CLI::Range(0.0, 300.0))
        ->capture_default_str();
    app.add_option("--queue-events", config.queue_events,
                   "events that may wait to be recorded; beyond that, 503 with Retry-After")
        ->envname("PG_BILLING_SHIM_QUEUE_EVENTS")
        ->check(CLI::Range(1, 10'000'000))
        ->capture_default_str();
    app.add_option("--queue-mib", config.queue_mib, "the memory they may take, in MiB")
        ->envname("PG_BILLING_SHIM_QUEUE_MIB")
        ->check(CLI::Range(1, 65'536))
        ->capture_default_str();
    app.add_option("--drain-seconds", drain,
                   "how long SIGTERM lets requests under way finish before the process ends all the same")
        ->envname("PG_BILLING_SHIM_DRAIN_SECONDS")
        ->check(CLI::Range(0.0, 3600.0))
        ->capture_default_str();
    app.add_flag("--log-requests", config.log_requests,
                 "log every request, not only those that fail for a cause that is not the client's")
        ->envname("PG_BILLING_SHIM_LOG_REQUESTS");
    app.set_config("--config", "", "file with settings: listen = \"127.0.0.1:8080\" and so on, a line each")
        ->envname("PG_BILLING_SHIM_CONFIG");
    app.allow_config_extras(CLI::config_extras_mode::error);
    app.add_flag("--check-config", config.only_check,
                 "check the settings, and the files they name, and end; the database is not asked")
        ->configurable(false);
    try {
        app.parse(argc, argv);
        parse_listen(listen, config);
        check_database(config.database);
        if (config.tls_certificate.empty() && !boost::asio::ip::make_address(config.address).is_loopback())
            throw CLI::ValidationError("--listen",
                                       "without TLS only a loopback address may be served: API keys would "
                                       "cross the network in clear");
    } catch (const CLI::ParseError &error) {
        throw Exit{app.exit(error)};
    }
    config.wait = std::chrono::milliseconds(static_cast<long>(wait * 1000));
    config.drain = std::chrono::milliseconds(static_cast<long>(drain * 1000));
    return config;
}

}  // namespace pg_billing::shim
