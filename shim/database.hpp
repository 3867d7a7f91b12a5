// The database as the shim sees it: a few libpq connections in pipeline mode, shared by all requests.
//
// A request is a list of statements that run as one implicit transaction: all commit together or none does, and an
// error costs only its own request. Requests are spread over the connections by load and wait in their pipelines;
// nothing here blocks the thread.
//
// Invariants:
//   - A lost connection fails what was in flight on it as unavailable; the outcome is then unknown to the client,
//     who retries with the same idempotency key. It is never sent a second time from here.
//   - Pipelines are bounded: beyond that, and while no connection is up, run() fails at once.
//   - Connections come back by themselves, with backoff.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace pg_billing::shim {

struct Statement {
    const char *sql;                                     // a literal: it is kept prepared under its text
    std::vector<std::optional<std::string>> parameters;  // as text; absent is NULL
};

using Row = std::vector<std::optional<std::string>>;
using Rows = std::vector<Row>;

class Database {
  public:
    struct Options {
        std::string conninfo;
        std::size_t connections = 4;
        std::size_t pipeline_limit = 256;                   // requests waiting on one connection
        std::chrono::milliseconds statement_limit{15'000};  // then the server cancels a request
        std::chrono::milliseconds request_limit{20'000};    // then the connection is given up as dead
    };

    // Starts connecting; never throws because the database is down.
    Database(boost::asio::io_context &context, Options options);
    ~Database();

    // Runs the statements as one transaction and returns the last one's rows. Throws PgFailure when the database
    // refuses, Problem 503 when it cannot be reached or is overloaded.
    boost::asio::awaitable<Rows> run(std::vector<Statement> statements);

    // Closes every connection for good, so that the context may run out of work.
    void close();

  private:
    struct Job;
    struct Connection;

    boost::asio::io_context &context_;
    Options options_;
    std::vector<std::shared_ptr<Connection>> connections_;  // shared with their coroutines
};

}  // namespace pg_billing::shim
