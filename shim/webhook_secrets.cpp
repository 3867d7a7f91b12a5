#include "shim/webhook_secrets.hpp"

#include <fstream>
#include <stdexcept>

namespace pg_billing::shim {

WebhookSecrets::WebhookSecrets(std::string path) : path_(std::move(path)) {
    reload();
}

void WebhookSecrets::reload() {
    if (path_.empty())
        return;
    std::ifstream file(path_);
    std::vector<std::string> secrets;
    for (std::string line; std::getline(file, line);) {
        const auto first = line.find_first_not_of(" \t\r");
        if (first != line.npos)
            secrets.push_back(line.substr(first, line.find_last_not_of(" \t\r") - first + 1));
    }
    if (secrets.empty())
        throw std::runtime_error("webhook secret file " + path_ + " cannot be read or holds no secret");
    secrets_ = std::move(secrets);
}

}  // namespace pg_billing::shim
