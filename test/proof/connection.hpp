// One connection to the server, of one thread, that outlives terminations and crashes: after Broken, reconnect() comes
// back only when the backend before it is gone for good, so that what it left undone is rolled back by then.
#pragma once

#include <libpq-fe.h>

#include <memory>
#include <string>
#include <vector>

#include "test/proof/run.hpp"

namespace pg_billing::proof {

// The connection is gone; whether the last statement took effect is not known.
class Broken : public std::runtime_error {
    using runtime_error::runtime_error;
};

// The server refused a statement.
class SqlError : public std::runtime_error {
  public:
    SqlError(const std::string &message, std::string state)
        : runtime_error(message), state(std::move(state)) {}
    const std::string state;
};

using Rows = std::vector<std::vector<std::string>>;

class Connection {
  public:
    // The name tells this connection apart from all others of the proof.
    Connection(Run &run, std::string name) : run_(run), name_(std::move(name)) {}

    void reconnect();
    Rows query(const char *statement, const std::vector<std::string> &parameters = {});
    // Runs a statement and returns its command tag.
    std::string command(const std::string &statement);
    void copy(const char *statement, const std::string &rows);

    // Repeats some work, which may be repeated, until the connection holds throughout.
    template <class Work>
    auto persistently(Work work) {
        for (;; reconnect())
            try {
                return work();
            } catch (const Broken &) {
            }
    }

  private:
    using Result = std::unique_ptr<PGresult, decltype(&PQclear)>;
    Result check(PGresult *raw);

    Run &run_;
    const std::string name_;
    std::unique_ptr<PGconn, decltype(&PQfinish)> connection_{nullptr, PQfinish};
};

}  // namespace pg_billing::proof
