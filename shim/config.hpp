// The shim's settings: flags, each of which a configuration file or an environment variable may give instead, checked before
// anything starts. A flag comes before the file, and the file before the environment.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pg_billing::shim {

struct Config {
    std::string address;
    std::uint16_t port = 0;
    std::string database;
    std::size_t connections = 4;
    std::vector<std::string> webhook_secret_files, token_secret_files, token_key_files;
    std::string tls_certificate, tls_key;
    std::vector<std::string> cors_origins;
    double tenant_rate = 20, address_rate = 50;
    std::size_t address_connections = 250;
    std::vector<std::string> trusted_proxies{"127.0.0.0/8", "::1"};
    std::chrono::milliseconds wait{10'000};
    std::size_t queue_events = 20'000, queue_mib = 64;
    std::chrono::milliseconds drain{25'000};
    bool log_requests = false, only_check = false;
};

// Thrown when the program should end at once: after --help, or because of a flag.
struct Exit {
    int status;
};

// Reads the settings, or prints why not and throws Exit.
Config read_config(int argc, char **argv);

}  // namespace pg_billing::shim
