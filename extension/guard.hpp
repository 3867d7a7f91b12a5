// The border between C++ (exceptions, destructors) and PostgreSQL (ereport, longjmp).
//
// Two regimes, and no third:
//   - C++ calls PostgreSQL only inside pg_call(): an ERROR arrives as a PgError that carries the whole ErrorData.
//   - PostgreSQL calls C++ only through pg_entry(): an exception leaves as ereport(ERROR), raised after the catch
//     block is left (raising inside it would leak the exception object for the life of the backend).
//
// Invariants:
//   - A lambda given to pg_call() holds only trivially destructible locals: longjmp skips destructors.
//   - A PgError is never swallowed: without a subtransaction the backend's state is undefined after an ERROR.
//   - No allocation happens between catching an exception and leaving its catch block.
#pragma once

#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "extension/pg.hpp"

extern "C" {
#include "mb/pg_wchar.h"
}

namespace pg_billing {

// An ERROR raised by PostgreSQL, on its way through C++ frames. The data lives in the memory context that was
// current at the pg_call().
class PgError final : public std::exception {
  public:
    explicit PgError(ErrorData *data) noexcept : data_(data) {}
    ErrorData *data() const noexcept { return data_; }
    const char *what() const noexcept override { return data_->message ? data_->message : "unknown error"; }

  private:
    ErrorData *data_;
};

// An error found by our own C++: reported to the user with exactly these fields.
class Failure final : public std::exception {
  public:
    Failure(int sqlstate, std::string message, std::string hint = {}, std::string detail = {})
        : sqlstate_(sqlstate),
          message_(std::move(message)),
          hint_(std::move(hint)),
          detail_(std::move(detail)) {}
    int sqlstate() const noexcept { return sqlstate_; }
    const std::string &message() const noexcept { return message_; }
    const std::string &hint() const noexcept { return hint_; }
    const std::string &detail() const noexcept { return detail_; }
    const char *what() const noexcept override { return message_.c_str(); }

  private:
    int sqlstate_;
    std::string message_, hint_, detail_;
};

namespace detail {

// Restores what an ERROR or an exception would leave dangling. Lives outside the sigsetjmp region on purpose.
struct ErrorStackScope {
    sigjmp_buf *stack = PG_exception_stack;
    ErrorContextCallback *context = error_context_stack;
    ~ErrorStackScope() {
        PG_exception_stack = stack;
        error_context_stack = context;
    }
};

// What is carried out of a catch block: fixed buffers, because allocating there could raise.
struct Report {
    ErrorData *error = nullptr;
    int sqlstate = ERRCODE_INTERNAL_ERROR;
    char message[512] = "unknown C++ exception";
    char detail[512] = "";
    char hint[512] = "";

    static void copy(char (&to)[512], const char *from) noexcept {
        const int length = static_cast<int>(strlen(from));
        const int clipped = pg_mbcliplen(from, length, sizeof(to) - 1);
        memcpy(to, from, clipped);
        to[clipped] = '\0';
    }
};

[[noreturn]] inline void raise(const Report &report) {
    if (report.error)
        ReThrowError(report.error);
    ereport(ERROR, (errcode(report.sqlstate), errmsg("%s", report.message),
                    report.detail[0] ? errdetail("%s", report.detail) : 0,
                    report.hint[0] ? errhint("%s", report.hint) : 0));
    pg_unreachable();
}

}  // namespace detail

// Calls PostgreSQL from C++: returns what f returns, or throws PgError.
template <class F>
std::invoke_result_t<F> pg_call(F &&f) {
    using Result = std::invoke_result_t<F>;
    static_assert(std::is_void_v<Result> || std::is_trivially_destructible_v<Result>);
    const detail::ErrorStackScope scope;
    const MemoryContext memory = CurrentMemoryContext;
    sigjmp_buf here;
    if (sigsetjmp(here, 0) == 0) {
        PG_exception_stack = &here;
        return f();
    }
    PG_exception_stack = scope.stack;
    error_context_stack = scope.context;
    MemoryContextSwitchTo(memory);
    ErrorData *error = CopyErrorData();
    FlushErrorState();
    throw PgError(error);
}

// Runs C++ on behalf of PostgreSQL: returns what f returns, or raises what it threw as an ERROR.
template <class F>
std::invoke_result_t<F> pg_entry(F &&f) {
    detail::Report report;
    try {
        return f();
    } catch (const PgError &e) {
        report.error = e.data();
    } catch (const Failure &e) {
        report.sqlstate = e.sqlstate();
        detail::Report::copy(report.message, e.message().c_str());
        detail::Report::copy(report.detail, e.detail().c_str());
        detail::Report::copy(report.hint, e.hint().c_str());
    } catch (const std::bad_alloc &) {
        report.sqlstate = ERRCODE_OUT_OF_MEMORY;
        detail::Report::copy(report.message, "out of memory");
    } catch (const std::exception &e) {
        detail::Report::copy(report.message, e.what());
    } catch (...) {
    }
    detail::raise(report);
}

}  // namespace pg_billing
