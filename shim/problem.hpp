// Problems: what a client is told when a request is not carried out (RFC 9457, application/problem+json).
//
// A problem always has a stable `code`; clients branch on it, never on `detail`. Which SQLSTATE becomes which
// problem is decided in one table here. A SQLSTATE the table does not know becomes a 500 that repeats nothing of
// what the database said.
#pragma once

#include <exception>
#include <string>

#include "shim/http_server.hpp"

namespace pg_billing::shim {

// Thrown anywhere while a request is handled; becomes its answer.
struct Problem : std::exception {
    Problem(unsigned status, std::string code, std::string detail, std::string field = {})
        : status(status), code(std::move(code)), detail(std::move(detail)), field(std::move(field)) {}
    const char *what() const noexcept override { return detail.c_str(); }

    unsigned status;
    std::string code;      // stable, e.g. "unknown_metric"
    std::string detail;    // for a person
    std::string field;     // the body member or header at fault, if one is
    std::string decision;  // the decision behind a denial, as JSON
    std::string policy;    // the metric whose quota is exceeded, for the registered problem type
    http::Fields headers;
};

// What the database answered instead of rows. Its DETAIL and HINT speak to SQL users and are not kept.
struct PgFailure : std::exception {
    PgFailure(std::string sqlstate, std::string message)
        : sqlstate(std::move(sqlstate)), message(std::move(message)) {}
    const char *what() const noexcept override { return message.c_str(); }

    std::string sqlstate, message;
};

// Returns the failure that a result of many tells as "SQLSTATE: message".
PgFailure failure_of(const std::string &reason);

// Returns the problem a database error means to the client.
Problem to_problem(const PgFailure &failure);

// Returns the problem of a request that cannot be served now but may be in a moment.
Problem unavailable(std::string detail);

// Returns the problem for a status the HTTP server itself answers with (400, 413, 431, 500, 503).
Problem server_problem(unsigned status);

// Returns the answer that tells the client about a problem.
http::Response to_response(const Problem &problem);

}  // namespace pg_billing::shim
