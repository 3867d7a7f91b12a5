// Notifications on their way to webhooks, mail servers and a text message gateway, many at a time, on libcurl's multi
// interface. Knows nothing of PostgreSQL.
//
// Invariants:
//   - Nothing here blocks for longer than the slice given to poll().
//   - TLS with peer and host verified, to mail servers by STARTTLS, unless the server is on this machine.
//   - What a tenant named connects to public addresses only, whatever its name resolves to at that moment, by no proxy;
//     no redirect is followed; and of an answer nothing but its status is kept, so that nothing can be spied out.
//   - A secret is in no error text.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "notify/outcome.hpp"

namespace pg_billing {

struct DeliveryOptions {
    std::string smtp_url, smtp_user, smtp_password_file, mail_from;
    std::string sms_url, sms_body, sms_token_file;
    std::string ca_file;             // empty: the system's authorities
    bool private_addresses = false;  // whether tenants' webhooks may go to this network
    std::chrono::seconds timeout{15};
};

struct Notification {
    std::size_t tag = 0;        // the caller's, handed back with the verdict
    std::string kind, address;  // webhook, email or sms, and where to
    std::string id;
    std::string title, message;        // for people
    std::string payload;               // for webhooks
    std::vector<std::string> secrets;  // that sign it
    bool of_tenant = false;            // a tenant named the address
};

struct Delivered {
    std::size_t tag;
    notify::Verdict verdict;
    int status;  // 0: no answer
    std::optional<std::chrono::seconds> retry_after;
};

class Deliveries {
  public:
    explicit Deliveries(DeliveryOptions options);
    ~Deliveries();
    Deliveries(const Deliveries &) = delete;
    Deliveries &operator=(const Deliveries &) = delete;

    // Throws an exception that says why if it cannot be sent as things are configured.
    void start(const Notification &notification);
    std::size_t in_flight() const;

    // Moves every delivery on, waiting for at most the slice if nothing happens, and returns those that ended.
    std::vector<Delivered> poll(std::chrono::milliseconds slice);

  private:
    struct Delivery;
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace pg_billing
