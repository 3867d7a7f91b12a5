#include "shim/webhook_secrets.hpp"

#include <fstream>
#include <stdexcept>

namespace pg_billing::shim {

WebhookSecrets::WebhookSecrets(std::vector<std::string> paths) : paths_(std::move(paths)) {
    reload();
}

void WebhookSecrets::reload() {
    std::vector<std::string> secrets;
    for (const std::string &path : paths_) {
        const std::size_t before = secrets.size();
        std::ifstream file(path);
        for (std::string line; std::getline(file, line);) {
            const auto first = line.find_first_not_of(" \t\r");
            if (first != line.npos)
                secrets.push_back(line.substr(first, line.find_last_not_of(" \t\r") - first + 1));
        }
        if (secrets.size() == before)
            throw std::runtime_error("webhook secret file " + path + " cannot be read or holds no secret");
    }
    secrets_ = std::move(secrets);
}

}  // namespace pg_billing::shim
