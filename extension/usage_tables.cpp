#include "extension/usage_tables.hpp"

#include <cstring>

extern "C" {
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "commands/trigger.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
}

namespace pg_billing::ledger {
namespace {

struct Table {
    const char *name;
    const char *columns[kMaxColumns];  // in the order of the enumerations
    int count, partition_column;
};
constexpr Table kTables[] = {
    {"usage_events",
     {"tick", "occurred_at", "recorded_at", "period_start", "tenant_id", "metric", "quantity",
      "idempotency_key", "properties", "void_reason"},
     10,
     event_column::tick},
    {"usage_event_keys", {"tenant_id", "key", "tick"}, 3, key_column::key},
};
constexpr int kTableCount = sizeof(kTables) / sizeof(*kTables);
constexpr int kMaxSlots = 1000;  // rows written at once, as COPY has it

const Table &table_of(UsageTable table) {
    return kTables[static_cast<int>(table)];
}

// What is remembered, as long as no invalidation says that it may be otherwise.
Oid tables[kTableCount];
struct Partition {
    Oid partition;
    AttrNumber columns[kMaxColumns];  // where ours are in it, from 0
} partitions[64];                     // by OID; two may take turns

void forget(Datum, Oid relation) {
    for (Oid &table : tables)
        if (table == relation || !OidIsValid(relation))
            table = InvalidOid;
    for (Partition &partition : partitions)
        if (partition.partition == relation || !OidIsValid(relation))
            partition.partition = InvalidOid;
}

[[noreturn]] void refuse(Relation table, const char *what) {
    ereport(ERROR,
            (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
             errmsg("cannot write usage to \"%s\": %s", RelationGetRelationName(table), what),
             errhint("Leave the table as billing.install() makes it; triggers for each row, indexes and "
                     "check constraints may be added.")));
}

bool has_row_triggers(Relation table) {
    return table->trigdesc &&
           (table->trigdesc->trig_insert_before_row || table->trigdesc->trig_insert_after_row);
}

// Returns where our columns are in the partition; other columns must be such that they are null.
const Partition &columns_of(Relation partition, const Table &table) {
    Partition &known = partitions[RelationGetRelid(partition) % lengthof(partitions)];
    if (known.partition == RelationGetRelid(partition))
        return known;
    known.partition = InvalidOid;
    if (partition->rd_rel->relkind != RELKIND_RELATION)
        refuse(partition, "it is no plain table");
    const TupleDesc row = RelationGetDescr(partition);
    int found = 0;
    for (int i = 0; i < row->natts; i++) {
        const FormData_pg_attribute *column = TupleDescAttr(row, i);
        bool ours = false;
        for (int k = 0; k < table.count; k++)
            if (!column->attisdropped && strcmp(NameStr(column->attname), table.columns[k]) == 0) {
                known.columns[k] = i;
                found++;
                ours = true;
            }
        if (!ours && !column->attisdropped &&
            (column->attnotnull || column->atthasdef || column->attidentity))
            refuse(partition, "it has another column with a value of its own");
    }
    if (found != table.count)
        refuse(partition, "it lacks a column");
    known.partition = RelationGetRelid(partition);
    return known;
}

// Raises unless the transaction's snapshot sees the row, or the transaction itself wrote it.
void require_visible(Relation partition, ItemPointer tid) {
    TupleTableSlot *slot = table_slot_create(partition, nullptr);
    if (!table_tuple_fetch_row_version(partition, tid, SnapshotAny, slot))
        elog(ERROR, "failed to fetch the row with the same key");
    bool is_null;
    const TransactionId writer =
        DatumGetTransactionId(slot_getsysattr(slot, MinTransactionIdAttributeNumber, &is_null));
    if (!TransactionIdIsCurrentTransactionId(writer) &&
        !table_tuple_satisfies_snapshot(partition, slot, GetTransactionSnapshot()))
        ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                        errmsg("could not serialize access due to concurrent update")));
    ExecDropSingleTupleTableSlot(slot);
}

}  // namespace

Oid usage_table(UsageTable table) {
    Oid &known = tables[static_cast<int>(table)];
    if (!OidIsValid(known)) {
        const Oid schema = get_namespace_oid("billing", true);
        known = OidIsValid(schema) ? get_relname_relid(table_of(table).name, schema) : InvalidOid;
    }
    return known;
}

void init_usage_tables() {
    CacheRegisterRelcacheCallback(forget, 0);
}

UsageWriter::UsageWriter() : state_(CreateExecutorState()) {
    AfterTriggerBeginQuery();
}

void UsageWriter::open(UsageTable table) {
    close();
    which_ = table;
    table_ = table_open(usage_table(table), RowExclusiveLock);
    const TriggerDesc *triggers = table_->trigdesc;
    if (triggers && (triggers->trig_insert_before_statement || triggers->trig_insert_after_statement))
        refuse(table_, "it has a trigger for each statement");
}

void UsageWriter::close() {
    if (!table_)
        return;
    close_partition();
    table_close(table_, NoLock);
    table_ = nullptr;
}

void UsageWriter::finish() {
    AfterTriggerEndQuery(state_);
    close();
    ExecCloseResultRelations(state_);
    ExecResetTupleTable(state_->es_tupleTable, false);
    FreeExecutorState(state_);
    CommandCounterIncrement();
}

int UsageWriter::partition_of(const Row &row) const {
    const PartitionKey key = RelationGetPartitionKey(table_);
    const PartitionDesc all = RelationGetPartitionDesc(table_, true);
    const PartitionBoundInfo bounds = all->boundinfo;
    auto *value = const_cast<Datum *>(&row.values[table_of(which_).partition_column]);
    int partition = -1;
    if (bounds && key->strategy == PARTITION_STRATEGY_HASH) {
        bool is_null = false;
        const uint64 hash =
            compute_partition_hash_value(1, key->partsupfunc, key->partcollation, value, &is_null);
        partition = bounds->indexes[hash % bounds->nindexes];
    } else if (bounds && key->strategy == PARTITION_STRATEGY_RANGE) {
        bool is_equal;
        partition = bounds->indexes[partition_range_datum_bsearch(key->partsupfunc, key->partcollation,
                                                                  bounds, 1, value, &is_equal) +
                                    1];
    }
    if (partition < 0 && bounds)
        partition = bounds->default_index;
    if (partition < 0)
        ereport(ERROR, (errcode(ERRCODE_CHECK_VIOLATION),
                        errmsg("no partition of relation \"%s\" found for row", table_of(which_).name),
                        errhint("SELECT billing.maintain() makes the partitions that are missing.")));
    return partition;
}

void UsageWriter::open_partition_of(const Row &row) {
    for (;;) {
        const Oid wanted = RelationGetPartitionDesc(table_, true)->oids[partition_of(row)];
        if (partition_ && RelationGetRelid(partition_) == wanted)
            return;
        close_partition();
        // Locking may have waited for somebody who made another partition the right one: then the next turn sees it.
        partition_ = table_open(wanted, RowExclusiveLock);
        memcpy(columns_, columns_of(partition_, table_of(which_)).columns, sizeof(columns_));
        target_ = makeNode(ResultRelInfo);
        row_ = CreateTupleDescCopy(RelationGetDescr(partition_));
        InitResultRelInfo(target_, partition_, 0, nullptr, 0);
        ExecOpenIndices(target_, false);
        can_look_ = false;
    }
}

void UsageWriter::close_partition() {
    if (!partition_)
        return;
    for (; slot_count_ > 0; slot_count_--)
        ExecDropSingleTupleTableSlot(slots_[slot_count_ - 1]);
    ExecCloseIndices(target_);
    table_close(partition_, NoLock);
    partition_ = nullptr;
}

void UsageWriter::store(const Row &row, TupleTableSlot *slot) const {
    ExecClearTuple(slot);
    memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
    for (int k = 0; k < table_of(which_).count; k++) {
        slot->tts_values[columns_[k]] = row.values[k];
        slot->tts_isnull[columns_[k]] = row.nulls[k];
    }
    ExecStoreVirtualTuple(slot);
}

void UsageWriter::reserve_slots(int count) {
    if (slot_capacity_ < count) {
        const Size size = count * sizeof(TupleTableSlot *);
        slots_ = static_cast<TupleTableSlot **>(slots_ ? repalloc(slots_, size) : palloc(size));
        slot_capacity_ = count;
    }
    for (; slot_count_ < count; slot_count_++)
        slots_[slot_count_] = MakeSingleTupleTableSlot(row_, &TTSOpsVirtual);
}

// Does what an INSERT does before it adds a row.
void UsageWriter::prepare(TupleTableSlot *slot) {
    const TriggerDesc *triggers = partition_->trigdesc;
    const TupleConstr *constraints = RelationGetDescr(partition_)->constr;
    const bool changed = triggers && triggers->trig_insert_before_row;
    if (changed && !ExecBRInsertTriggers(state_, target_, slot))
        ereport(ERROR,
                (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
                 errmsg("a trigger on \"%s\" has suppressed usage", RelationGetRelationName(partition_)),
                 errhint("Have it raise an error instead.")));
    if (changed)
        ExecPartitionCheck(target_, slot, state_, true);
    if (constraints && (changed || constraints->num_check > 0))
        ExecConstraints(target_, slot, state_);
}

// Returns how many of the rows may be put at once.
int UsageWriter::at_once(int count) const {
    return has_row_triggers(partition_) ? 1 : Min(count, kMaxSlots);
}

// Puts rows into the partition, without index entries yet, and keeps them in the first slots.
void UsageWriter::put(const Row *rows, int count) {
    reserve_slots(count);
    for (int i = 0; i < count; i++) {
        store(rows[i], slots_[i]);
        prepare(slots_[i]);
    }
    if (count == 1)
        table_tuple_insert(partition_, slots_[0], GetCurrentCommandId(true), 0, nullptr);
    else
        table_multi_insert(partition_, slots_, count, GetCurrentCommandId(true), 0, nullptr);
}

void UsageWriter::add(const Row *rows, int count) {
    for (int n; count > 0; rows += n, count -= n) {
        open_partition_of(rows[0]);
        n = at_once(count);
        put(rows, n);
        for (int i = 0; i < n; i++) {
            insert_index_entries(target_, slots_[i], state_, nullptr);
            ExecARInsertTriggers(state_, target_, slots_[i], NIL, nullptr);
        }
    }
}

// A key is hardly ever known: so the row is put, and only a conflict is looked into. Whoever sends again what was sent
// before sends much of it: so after a key that was known, the next one is looked for first.
void UsageWriter::add_unless_known(const Row *rows, int count, bool *added) {
    static bool expected_known;
    for (int n; count > 0; rows += n, added += n, count -= n) {
        open_partition_of(rows[0]);
        n = expected_known ? 1 : at_once(count);
        if (expected_known && knows(rows[0])) {
            added[0] = false;
            continue;
        }
        put(rows, n);
        for (int i = 0; i < n; i++) {
            added[i] = enter(slots_[i]);
            expected_known = !added[i];
        }
    }
}

// Adds the index entries of a row; false if its key is known: the row is gone again then. An index page is locked from
// the look for the key to its entry, so of those with the same key, one finds none and the others find it. A row
// that is gone again is, until the end of the transaction, something others with that key wait for; speculative
// insertion would spare them that, but costs everybody a lock of the lock manager and a record in the WAL.
bool UsageWriter::enter(TupleTableSlot *slot) {
    for (;;) {
        bool conflict = false;
        insert_index_entries(target_, slot, state_, &conflict);
        if (!conflict) {
            ExecARInsertTriggers(state_, target_, slot, NIL, nullptr);
            return true;
        }
        CommandCounterIncrement();  // only rows of earlier commands can be deleted
        simple_table_tuple_delete(partition_, &slot->tts_tid, SnapshotAny);
        if (is_known(slot))
            return false;
        table_tuple_insert(partition_, slot, GetCurrentCommandId(true), 0, nullptr);
    }
}

// Tells whether the row's key is there; waits for whoever has written it, but not committed yet.
bool UsageWriter::is_known(TupleTableSlot *slot) {
    if (!can_look_) {
        reopen_indices(target_, true);
        can_look_ = true;
    }
    ItemPointerData found;
    if (!index_conflict(target_, slot, state_, &found))
        return false;
    if (IsolationUsesXactSnapshot())
        require_visible(partition_, &found);
    return true;
}

bool UsageWriter::knows(const Row &row) {
    open_partition_of(row);
    reserve_slots(1);
    store(row, slots_[0]);
    return is_known(slots_[0]);
}

}  // namespace pg_billing::ledger
