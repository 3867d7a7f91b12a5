#include "shim/log.hpp"

#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace pg_billing::shim {

void log(std::string_view event, std::initializer_list<std::pair<std::string_view, std::string>> details) {
    char time[32];
    const std::time_t now = std::time(nullptr);
    std::tm utc;
    gmtime_r(&now, &utc);
    std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    std::string line = std::string("time=") + time + " event=" + std::string(event);
    for (const auto &[name, value] : details) {
        line += ' ';
        line += name;
        line += '=';
        // Quoted as JSON is, so that a line break in a message cannot forge a line.
        const bool plain = !value.empty() && value.find_first_not_of(
                                                 "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRS"
                                                 "TUVWXYZ0123456789_.:/[]-") == value.npos;
        line += plain ? value
                      : nlohmann::json(value).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    }
    line += '\n';
    std::fputs(line.c_str(), stderr);
}

}  // namespace pg_billing::shim
