#include "shim/trace.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <stdexcept>

namespace pg_billing::shim {

namespace {

bool is_hex(std::string_view text) {
    return text.find_first_not_of("0123456789abcdef") == text.npos;
}

bool is_id(std::string_view text) {
    return is_hex(text) && text.find_first_not_of('0') != text.npos;
}

}  // namespace

std::string random_hex(std::size_t bytes) {
    // To ask OpenSSL for a few bytes takes as long as for many, and each request needs some.
    static thread_local std::array<unsigned char, 1024> stock;
    static thread_local std::size_t taken = stock.size();
    std::string hex;
    hex.reserve(2 * bytes);
    while (bytes-- > 0) {
        if (taken == stock.size()) {
            if (RAND_bytes(stock.data(), static_cast<int>(stock.size())) != 1)
                throw std::runtime_error("no random numbers");
            taken = 0;
        }
        const unsigned char byte = stock[taken++];
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    return hex;
}

std::optional<Trace> parse_traceparent(std::string_view value) {
    constexpr std::size_t kLength = 55;  // 00-<32>-<16>-<2>
    if (value.size() < kLength || value[2] != '-' || value[35] != '-' || value[52] != '-')
        return std::nullopt;
    const std::string_view version = value.substr(0, 2), flags = value.substr(53, 2);
    if (!is_hex(version) || version == "ff" || !is_hex(flags))
        return std::nullopt;
    if (value.size() > kLength && (version == "00" || value[kLength] != '-'))
        return std::nullopt;
    const std::string_view trace_id = value.substr(3, 32), parent_id = value.substr(36, 16);
    if (!is_id(trace_id) || !is_id(parent_id))
        return std::nullopt;
    const int low = flags[1] <= '9' ? flags[1] - '0' : flags[1] - 'a' + 10;
    return Trace{std::string(trace_id), std::string(parent_id), {}, (low & 1) != 0};
}

Trace trace_of(const http::Request &request) {
    std::optional<Trace> trace;
    if (std::count_if(request.fields.begin(), request.fields.end(),
                      [](const auto &field) { return field.first == "traceparent"; }) == 1)
        trace = parse_traceparent(*request.field("traceparent"));
    if (!trace)
        trace = Trace{random_hex(16), {}, {}, false};
    trace->span_id = random_hex(8);
    return *std::move(trace);
}

std::string traceresponse(const Trace &trace) {
    return "00-" + trace.trace_id + "-" + trace.span_id + (trace.sampled ? "-01" : "-00");
}

}  // namespace pg_billing::shim
