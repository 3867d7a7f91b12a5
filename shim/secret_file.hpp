// Files with secrets: one per line, the first of which may be the one in use while others are rolled.
#pragma once

#include <string>
#include <vector>

namespace pg_billing::shim {

// Returns the secrets of all files in order. Throws std::runtime_error, which says what they are, if one cannot be read or
// holds none.
std::vector<std::string> read_secrets(const std::vector<std::string> &paths, const std::string &what);

}  // namespace pg_billing::shim
