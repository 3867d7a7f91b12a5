// One run of one job in one database: from connecting to the exit status the launcher acts on.
//
// Invariants:
//   - A database's job runs once at a time: the session holds a lock nobody else can take (a lock tag of its own,
//     for any user may hold an ordinary advisory lock).
//   - Every transaction first makes sure that the extension is here, in this library's version and installed, and
//     keeps DROP EXTENSION waiting until it ends. Nothing else keeps state between transactions.
//   - An ERROR ends the process unless the caller abandons the transaction; the launcher starts the next run later.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "extension/guard.hpp"
#include "extension/worker_state.hpp"

struct _SPI_plan;  // executor/spi.h

namespace pg_billing {

using Value = std::optional<std::string>;  // a SQL value as UTF-8 text, nothing for NULL
using Row = std::vector<Value>;

// Thrown by a transaction when there is nothing to work on here: the run ends well.
class NothingHere final : public std::exception {};

class Session {
  public:
    // Runs body in one transaction and returns what it returns; activity is what pg_stat_activity shows.
    template <class F>
    auto transaction(const char *activity, F &&body) {
        begin(activity);
        if constexpr (std::is_void_v<decltype(body())>) {
            body();
            commit();
        } else {
            auto result = body();
            commit();
            return result;
        }
    }

    // Runs one statement in the open transaction; arguments arrive as text. It is a literal: its plan is kept under its address.
    std::vector<Row> query(const char *sql, const std::vector<Value> &arguments = {});

    // Recovers from an ERROR that a transaction threw.
    void abandon();

    // Handles what other processes want of this one; to be called at least every quarter of a second.
    void serve_interrupts();

    // Says that what was asked for up to now is served by what the run does from here on.
    void begin_round();

    // Whether the run of this job before this one did not end well.
    bool previous_failed();

    // Tells, at most once an hour, that partition upkeep is due, and notes that it is being done.
    bool maintenance_due();

    // Logs a standing condition unless it was the one logged last; an empty text forgets that one.
    void notice(std::string_view text);

  private:
    std::map<const char *, _SPI_plan *> plans_;

    void begin(const char *activity);
    void commit();
};

// Returns when the job is to run next.
using Tick = TimestampTz (*)(Session &);

// The body of a worker's main function: does not return.
[[noreturn]] void run_job(Job job, Oid database, Tick tick);

}  // namespace pg_billing
