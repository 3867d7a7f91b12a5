// The signing secrets of Stripe's webhook endpoint: a file with one per line, several while one is being rolled.
#pragma once

#include <string>
#include <vector>

namespace pg_billing::shim {

class WebhookSecrets {
  public:
    // An empty path means: no webhooks are received. Throws std::runtime_error if the file is unreadable or empty.
    explicit WebhookSecrets(std::string path);

    // Reads the file again; keeps what it had if that throws.
    void reload();

    const std::vector<std::string> &get() const { return secrets_; }

  private:
    std::string path_;
    std::vector<std::string> secrets_;
};

}  // namespace pg_billing::shim
