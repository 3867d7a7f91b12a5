// The signing secrets of Stripe's webhook endpoints: files with one per line. Each endpoint has a secret of its own, the one
// for thin events, too, and two of them while it is being rolled.
#pragma once

#include <string>
#include <vector>

namespace pg_billing::shim {

class WebhookSecrets {
  public:
    // No files mean: no webhooks are received. Throws std::runtime_error if one is unreadable or empty.
    explicit WebhookSecrets(std::vector<std::string> paths);

    // Reads the files again; keeps what it had if that throws.
    void reload();

    const std::vector<std::string> &get() const { return secrets_; }

  private:
    std::vector<std::string> paths_, secrets_;
};

}  // namespace pg_billing::shim
