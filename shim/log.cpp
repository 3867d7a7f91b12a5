#include "shim/log.hpp"

#include <chrono>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace pg_billing::shim {

namespace {

// As RFC 3339 writes it, to the millisecond.
std::string now() {
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    const auto seconds = std::chrono::floor<std::chrono::seconds>(since_epoch);
    const auto rest = std::chrono::duration_cast<std::chrono::milliseconds>(since_epoch - seconds).count();
    const std::time_t time = seconds.count();
    std::tm utc;
    gmtime_r(&time, &utc);
    char text[64];
    const std::size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    std::snprintf(text + length, sizeof text - length, ".%03dZ", static_cast<int>(rest));
    return text;
}

}  // namespace

LogValue::LogValue(std::string_view text)
    : json(nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)) {}

void log(std::string_view event, const LogDetails &details, const LogDetails &ids) {
    std::string line = "{\"time\":\"" + now() + "\",\"event\":" + LogValue(event).json;
    for (const LogDetails *part : {&ids, &details})
        for (const auto &[name, value] : *part)
            line += "," + LogValue(name).json + ":" + value.json;
    line += "}\n";
    std::fputs(line.c_str(), stderr);
}

}  // namespace pg_billing::shim
