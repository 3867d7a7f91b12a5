#include "test/demo/trace.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>
#include <regex>
#include <stdexcept>

namespace pg_billing::demo {
namespace {

constexpr const char *kHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

// A fraction in [0, 1). The distributions of <random> differ between libraries, the engines do not.
double fraction(std::mt19937_64 &random) {
    return static_cast<double>(random() >> 11) * 0x1.0p-53;
}

// A log-normal count (Box and Muller).
std::int64_t log_normal(std::mt19937_64 &random, double mean, double deviation, double most) {
    const double normal =
        std::sqrt(-2 * std::log(1 - fraction(random))) * std::cos(2 * M_PI * fraction(random));
    return static_cast<std::int64_t>(std::clamp(std::exp(mean + deviation * normal), 1.0, most));
}

// The share of all requests that tenants 1..n have together: 35 % for the largest, the others as Zipf has it.
std::array<double, kTenants> cumulative_shares() {
    std::array<double, kTenants> shares{};
    double rest = 0;
    for (int rank = 2; rank <= kTenants; rank++)
        rest += 1.0 / rank;
    double sum = shares[0] = 0.35;
    for (int rank = 2; rank <= kTenants; rank++)
        shares[rank - 1] = sum += 0.65 / rank / rest;
    return shares;
}

std::int64_t count(std::string_view text, const std::string &where) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < 0)
        throw std::runtime_error(where + ": \"" + std::string(text) + "\" is not a number of tokens");
    return value;
}

}  // namespace

std::vector<Request> read_trace(const std::string &file) {
    std::ifstream in(file);
    if (!in)
        throw std::runtime_error("cannot read " + file);
    const std::regex time_format(R"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?)");
    const auto shares = cumulative_shares();
    std::mt19937_64 random(1);
    std::vector<Request> requests;
    std::string line;
    for (std::size_t number = 0; std::getline(in, line); number++) {
        if (line.ends_with('\r'))
            line.pop_back();
        const std::string where = file + ":" + std::to_string(number + 1);
        if (number == 0) {
            if (line != kHeader)
                throw std::runtime_error(where + ": the header is not " + kHeader);
            continue;
        }
        const auto first = line.find(','), second = line.find(',', first + 1);
        if (second == std::string::npos)
            throw std::runtime_error(where + ": not three columns");
        const std::string time = line.substr(0, first);
        if (!std::regex_match(time, time_format))
            throw std::runtime_error(where + ": \"" + time +
                                     "\" is not a time such as 2023-11-16 18:15:46.6805900");
        if (!requests.empty() && time < requests.back().time)
            throw std::runtime_error(where + ": not in the order of time");
        const std::string_view columns = line;
        const std::int64_t tokens = count(columns.substr(first + 1, second - first - 1), where) +
                                    count(columns.substr(second + 1), where);
        const auto tenant = std::upper_bound(shares.begin(), shares.end() - 1, fraction(random));
        requests.push_back({number, time, tokens, static_cast<int>(tenant - shares.begin()) + 1});
    }
    if (requests.empty())
        throw std::runtime_error(file + " holds no request");
    return requests;
}

// The figures are those of the published trace: 19,366 requests in an hour, the mean and deviation of the
// logarithms of its two columns, and their greatest values.
void generate_trace(const std::string &file) {
    std::ofstream out(file, std::ios::binary);
    std::mt19937_64 random(1);
    double second = 18 * 3600 + 15 * 60;
    out << kHeader;
    for (int i = 0; i < 19366; i++) {
        second += -0.1808 * std::log(1 - fraction(random));
        const auto ticks = static_cast<long long>(second * 1e7);
        const std::int64_t context = log_normal(random, 6.633, 0.985, 14050);
        const std::int64_t generated = log_normal(random, 5.019, 0.859, 1000);
        char line[96];
        snprintf(line, sizeof line, "\r\n2023-11-16 %02lld:%02lld:%02lld.%07lld,%lld,%lld",
                 ticks / 36000000000, ticks / 600000000 % 60, ticks / 10000000 % 60, ticks % 10000000,
                 static_cast<long long>(context), static_cast<long long>(generated));
        out << line;
    }
    if (!out.flush())
        throw std::runtime_error("cannot write " + file);
}

std::string tenant_name(int tenant) {
    char name[16];
    snprintf(name, sizeof name, "tenant-%02d", tenant);
    return name;
}

}  // namespace pg_billing::demo
