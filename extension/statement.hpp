// Statements of the ledger: prepared once per backend, run through SPI as the owner of the tables.
//
// Plain calls into PostgreSQL, to be used inside pg_call(): an ERROR aborts the (sub)transaction, which undoes the
// switch of user, the pinned search_path and the SPI connection.
#pragma once

#include "extension/pg.hpp"

extern "C" {
#include "executor/spi.h"
}

namespace pg_billing::ledger {

// Acts as somebody else, connected to SPI, from enter() until leave().
struct Identity {
    Oid user;
    int context;
};

Identity enter(Oid user, int extra_context);
// As the owner of the tables, with row-level security not forced on it.
Identity enter_as_owner();
void leave(const Identity &saved);

// Has names mean those of pg_catalog from here to AtEOXact_GUC(false, …) of the level returned.
int pin_search_path();

// The plan cache keeps a statement valid. What writes has no name in it that search_path could resolve otherwise, so it
// is spared the pinning.
class Statement {
  public:
    template <int N>
    constexpr Statement(const char *text, const Oid (&types)[N])
        : text_(text), types_(types), arguments_(N) {}

    explicit constexpr Statement(const char *text) : text_(text), types_(nullptr), arguments_(0) {}

    // Returns how many rows were processed; those that RETURNING or SELECT names are in SPI_tuptable.
    uint64 write(const Datum *values, const char *nulls);

    // Reads under the latest snapshot, never a transaction's older one.
    uint64 read_latest(const Datum *values);

    // Locks or changes the rows that the latest snapshot shows.
    uint64 write_latest(const Datum *values, const char *nulls = nullptr);

  private:
    void prepare();
    uint64 execute_latest(const Datum *values, const char *nulls, bool read_only);

    const char *text_;
    const Oid *types_;
    int arguments_;
    SPIPlanPtr plan_ = nullptr;
};

// Returns a column, from 1, of a row of SPI_tuptable.
inline Datum column(int number, bool *is_null, uint64 row = 0) {
    return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, is_null);
}

}  // namespace pg_billing::ledger
