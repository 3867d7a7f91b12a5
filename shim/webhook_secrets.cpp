#include "shim/webhook_secrets.hpp"

#include "shim/secret_file.hpp"

namespace pg_billing::shim {

WebhookSecrets::WebhookSecrets(std::vector<std::string> paths) : paths_(std::move(paths)) {
    reload();
}

void WebhookSecrets::reload() {
    secrets_ = read_secrets(paths_, "webhook secret");
}

}  // namespace pg_billing::shim
