// A module for tests alone: SQL functions that force every kind of error across the C++/PostgreSQL border of
// extension/guard.hpp. Built and loaded by test/e2e/border.sh, never installed.
#include <malloc.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "extension/guard.hpp"

extern "C" {
#include "executor/spi.h"

PG_MODULE_MAGIC;
}

using pg_billing::Failure;
using pg_billing::pg_call;
using pg_billing::pg_entry;

namespace {

int live;  // witnesses alive: not zero between statements if a destructor was skipped

// Owns memory and is counted, as any C++ object with a destructor that an ERROR could jump over.
class Witness {
  public:
    Witness() : text_(100, 'x') { ++live; }
    ~Witness() { --live; }
    Witness(const Witness &) = delete;
    Witness &operator=(const Witness &) = delete;

  private:
    std::string text_;
};

// Executes a statement and returns the first column of its first row, or null.
char *execute(const char *statement) {
    if (SPI_connect() != SPI_OK_CONNECT || SPI_execute(statement, false, 1) < 0)
        elog(ERROR, "SPI failed");
    char *result = SPI_processed > 0 && SPI_tuptable
                       ? SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1)
                       : nullptr;
    if (result) {
        char *copy = static_cast<char *>(SPI_palloc(strlen(result) + 1));
        result = strcpy(copy, result);
    }
    SPI_finish();
    return result;
}

char *execute_among_frames(const char *statement, int frames) {
    const Witness witness;
    return frames > 0 ? execute_among_frames(statement, frames - 1)
                      : pg_call([&] { return execute(statement); });
}

[[noreturn]] void throw_named(const std::string &kind) {
    const Witness witness;
    if (kind == "failure")
        throw Failure(MAKE_SQLSTATE('X', 'Y', '1', '2', '3'), "the message", "the hint", "the detail");
    if (kind == "failure, message alone")
        throw Failure(MAKE_SQLSTATE('X', 'Y', '1', '2', '4'), "just a message: 100 %s");
    if (kind == "failure, long") {
        std::string text;  // of an even number of bytes: the room for it is odd
        for (int i = 0; i < 1000; i++)
            text += "\xc3\xbc";
        throw Failure(MAKE_SQLSTATE('X', 'Y', '1', '2', '5'), text, text, text);
    }
    if (kind == "runtime_error")
        throw std::runtime_error("something standard");
    if (kind == "bad_alloc")
        throw std::bad_alloc();
    throw 42;
}

}  // namespace

// throw(kind): an exception of C++, thrown and left to pg_entry.
PG_BILLING_FUNCTION(border_throw) {
    return pg_entry([&]() -> Datum {
        const char *kind = pg_call([&] { return text_to_cstring(PG_GETARG_TEXT_PP(0)); });
        throw_named(kind);
    });
}

// sql(statement): executes it below C++ frames whose destructors must run; a statement that calls sql() again nests.
PG_BILLING_FUNCTION(border_sql) {
    return pg_entry([&]() -> Datum {
        const Witness outer;
        const char *statement = pg_call([&] { return text_to_cstring(PG_GETARG_TEXT_PP(0)); });
        const char *result = execute_among_frames(statement, 3);
        if (!result)
            PG_RETURN_NULL();
        return pg_call([&] { return CStringGetTextDatum(result); });
    });
}

// throw_in_call(): an exception that leaves pg_call's function itself; afterwards an ERROR must still find its way.
PG_BILLING_FUNCTION(border_throw_in_call) {
    return pg_entry([&]() -> Datum {
        const sigjmp_buf *stack = PG_exception_stack;
        try {
            pg_call([] { throw_named("failure"); });
        } catch (const Failure &) {
        }
        PG_RETURN_BOOL(PG_exception_stack == stack);
    });
}

PG_BILLING_FUNCTION(border_live) {
    PG_RETURN_INT32(live);
}

// What a backend that has raised many errors must not be left with: exceptions still alive, uncaught or current.
PG_BILLING_FUNCTION(border_pending) {
    PG_RETURN_BOOL(std::current_exception() != nullptr || std::uncaught_exceptions() != 0);
}

// Bytes that malloc has given out, PostgreSQL's memory contexts included.
PG_BILLING_FUNCTION(border_memory) {
    const struct mallinfo2 info = mallinfo2();
    PG_RETURN_INT64(static_cast<int64>(info.uordblks + info.hblkhd));
}
