// A secret that the operator keeps in a file: the Stripe API key, the password of the mail server, the text message
// gateway's token.
//
// Invariant: the key is in no setting, table, log line or error text; errors name the file and the reason only. The
// memory that held it is wiped.
#pragma once

#include <string>

namespace pg_billing {

class ApiKey {
  public:
    // Reads the key; throws std::runtime_error when the file is not as private as it must be or holds no single key.
    // `what` names it in the error.
    explicit ApiKey(const std::string &path, const char *what = "Stripe API key");
    ~ApiKey();
    ApiKey(const ApiKey &) = delete;
    ApiKey &operator=(const ApiKey &) = delete;

    const char *text() const { return text_; }

  private:
    char text_[512] = {};
};

}  // namespace pg_billing
