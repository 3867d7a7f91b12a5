// The trace a demo replays: requests to a language model, each with its time and the tokens it cost, spread
// over tenants that the trace itself does not name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pg_billing::demo {

inline constexpr int kTenants = 60;

struct Request {
    std::size_t number;  // from 1, in the order of the trace
    std::string time;    // UTC, as written in the trace
    std::int64_t tokens;
    int tenant;  // 1 is the largest
};

// Reads a trace in the format of the Azure LLM inference traces (TIMESTAMP,ContextTokens,GeneratedTokens);
// throws std::runtime_error naming the line that is wrong.
std::vector<Request> read_trace(const std::string &file);

// Writes a trace of the same format, size and shape as the published one, always the same.
void generate_trace(const std::string &file);

// Returns the name of the tenant of that rank.
std::string tenant_name(int tenant);

}  // namespace pg_billing::demo
