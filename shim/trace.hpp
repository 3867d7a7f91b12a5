// W3C Trace Context (https://www.w3.org/TR/trace-context/): which trace a request belongs to, so that what is logged here can be
// joined with what its caller knows.
//
// A caller's trace is taken on; one that it did not state as the standard wants it is not guessed at, but begun anew. The shim
// asks no other HTTP server, so `tracestate` has nobody to go to and is not read.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "shim/http_server.hpp"

namespace pg_billing::shim {

// Returns that many random bytes in lower-case hexadecimal. Throws std::runtime_error if there are none to be had.
std::string random_hex(std::size_t bytes);

struct Trace {
    std::string trace_id;   // 32 lower-case hexadecimal digits, not all zero
    std::string parent_id;  // 16 of them: the caller's span; empty: the trace begins here
    std::string span_id;    // 16 of them: this request
    bool sampled = false;   // whether the caller may have recorded its part

    bool operator==(const Trace &) const = default;
};

// Reads the value of a traceparent (§3.2): trace and parent id, or nothing if it is not valid. Later versions than 00 may be
// longer, as the standard has them read.
std::optional<Trace> parse_traceparent(std::string_view value);

// Returns the trace of a request: its caller's if there is exactly one valid traceparent, else a new one.
Trace trace_of(const http::Request &request);

// Returns the field `traceresponse` of an answer: the trace, and this request as the caller's child.
std::string traceresponse(const Trace &trace);

}  // namespace pg_billing::shim
