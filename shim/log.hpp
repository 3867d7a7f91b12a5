// The program's log: one JSON object per line on stderr, for starts, stops, errors and, where wanted, every request. Never given
// a secret, a body, SQL, or a path with what a client put into it.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pg_billing::shim {

// A text or a whole number, as JSON.
class LogValue {
  public:
    LogValue(std::string_view text);
    LogValue(const std::string &text) : LogValue(std::string_view(text)) {}
    LogValue(const char *text) : LogValue(std::string_view(text)) {}
    LogValue(std::integral auto number) : json(std::to_string(number)) {}

    std::string json;
};

using LogDetails = std::vector<std::pair<std::string_view, LogValue>>;

// Writes one line: the time in UTC, the event, the ids of what it is about, and its details in their order. What is not UTF-8 in
// a text is replaced.
void log(std::string_view event, const LogDetails &details = {}, const LogDetails &ids = {});

}  // namespace pg_billing::shim
