// The program's log: one line per start, stop and error, as key=value on stderr. Never given a secret.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace pg_billing::shim {

// Writes one line: the time, the event, and its details with values quoted where needed.
void log(std::string_view event,
         std::initializer_list<std::pair<std::string_view, std::string>> details = {});

}  // namespace pg_billing::shim
