#include "shim/secret_file.hpp"

#include <fstream>
#include <stdexcept>

namespace pg_billing::shim {

std::vector<std::string> read_secrets(const std::vector<std::string> &paths, const std::string &what) {
    std::vector<std::string> secrets;
    for (const std::string &path : paths) {
        const std::size_t before = secrets.size();
        std::ifstream file(path);
        for (std::string line; std::getline(file, line);) {
            const auto first = line.find_first_not_of(" \t\r");
            if (first != line.npos)
                secrets.push_back(line.substr(first, line.find_last_not_of(" \t\r") - first + 1));
        }
        if (secrets.size() == before)
            throw std::runtime_error(what + " file " + path + " cannot be read or holds no secret");
    }
    return secrets;
}

}  // namespace pg_billing::shim
