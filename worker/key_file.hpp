// The Stripe API key, read from the file that pg_billing.stripe_api_key_file names.
//
// Invariant: the key is in no setting, table, log line or error text; errors name the file and the reason only. The
// memory that held it is wiped.
#pragma once

#include <string>

namespace pg_billing {

class ApiKey {
  public:
    // Reads the key; throws std::runtime_error when the file is not as private as it must be or holds no single key.
    explicit ApiKey(const std::string &path);
    ~ApiKey();
    ApiKey(const ApiKey &) = delete;
    ApiKey &operator=(const ApiKey &) = delete;

    const char *text() const { return text_; }

  private:
    char text_[512] = {};
};

}  // namespace pg_billing
