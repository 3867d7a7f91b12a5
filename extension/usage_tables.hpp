// Adds rows to the two tables that every event is written to, usage_events and usage_event_keys, through the table and
// index access methods, as COPY and logical replication do. For rows as small as these, a statement takes several times
// what the row itself does.
//
// Invariants:
//   - A row goes where INSERT would put it, with all its index entries and under the same locks in the same order: the
//     partitioned table, the partition, its indexes.
//   - What INSERT would do beside that is done, too (triggers for each row, check constraints), or the table is refused
//     (triggers for each statement, columns that would need a value).
//
// Plain calls into PostgreSQL, to be used inside pg_call(): an ERROR closes what is open.
#pragma once

#include "extension/pg.hpp"

extern "C" {
#include "nodes/execnodes.h"
#include "utils/relcache.h"
}

namespace pg_billing::ledger {

enum class UsageTable { events, keys };

// The columns of a row, as it is given.
namespace event_column {
enum { tick, occurred_at, recorded_at, period_start, tenant, metric, quantity, key, properties, void_reason };
}
namespace key_column {
enum { tenant, key, tick };
}
inline constexpr int kMaxColumns = 10;

struct Row {
    Datum values[kMaxColumns];
    bool nulls[kMaxColumns];
};

// Returns the OID of the table; InvalidOid if install() was not run.
Oid usage_table(UsageTable table);

// Registers what keeps usage_table() true; called once, while preloading.
void init_usage_tables();

// Writes from its construction to finish(), to one of the tables at a time.
class UsageWriter {
  public:
    UsageWriter();

    // What follows is about this table.
    void open(UsageTable table);

    // Adds rows that all go into one partition: of events, those of one tick.
    void add(const Row *rows, int count);

    // Adds those of the rows whose keys are not there already, and says which: like ON CONFLICT DO NOTHING. All go into
    // one partition. A key that another transaction has written, but not committed yet, is waited for, with those before
    // it written. Raises 40001 where a transaction cannot see the row that has the key.
    void add_unless_known(const Row *rows, int count, bool *added);

    // Tells whether the row's key is there; waits and raises likewise.
    bool knows(const Row &row);

    // Returns the number of the partition a row goes to.
    int partition_of(const Row &row) const;

    // What was added is visible to the next statement.
    void finish();

  private:
    void close();
    void open_partition_of(const Row &row);
    void close_partition();
    void store(const Row &row, TupleTableSlot *slot) const;
    void reserve_slots(int count);
    void prepare(TupleTableSlot *slot);
    int at_once(int count) const;
    void put(const Row *rows, int count);
    bool enter(TupleTableSlot *slot);
    bool is_known(TupleTableSlot *slot);

    EState *state_;
    UsageTable which_;
    Relation table_ = nullptr;
    Relation partition_ = nullptr;
    AttrNumber columns_[kMaxColumns];  // where ours are in the partition, from 0
    ResultRelInfo *target_ = nullptr;
    TupleDesc row_ = nullptr;           // a copy, which slots need not register their use of
    bool can_look_ = false;             // the indexes are opened such that is_known() can use them
    TupleTableSlot **slots_ = nullptr;  // of rows just put
    int slot_capacity_ = 0, slot_count_ = 0;
};

}  // namespace pg_billing::ledger
