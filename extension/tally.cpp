#include "extension/tally.hpp"

#include "extension/call.hpp"
#include "extension/sqlstate.hpp"
#include "extension/statement.hpp"

extern "C" {
#include "catalog/pg_class.h"
#include "executor/tuptable.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
}

namespace pg_billing {
namespace {

constexpr int kRowsAtOnce = 1000;

class ScratchMemory {
  public:
    ScratchMemory()
        : memory_(pg_call([] {
              return AllocSetContextCreate(CurrentMemoryContext, "pg_billing rows", ALLOCSET_DEFAULT_SIZES);
          })) {}
    ~ScratchMemory() { MemoryContextDelete(memory_); }
    ScratchMemory(const ScratchMemory &) = delete;
    ScratchMemory &operator=(const ScratchMemory &) = delete;

    // Returns what f returns, which lives until the next call.
    template <class F>
    auto run(F &&f) {
        return pg_call([&] {
            MemoryContextReset(memory_);
            const MemoryContext before = MemoryContextSwitchTo(memory_);
            auto result = f();
            MemoryContextSwitchTo(before);
            return result;
        });
    }

  private:
    MemoryContext memory_;
};

int sign_of(Numeric quantity) {
    return DatumGetInt32(
        DirectFunctionCall2(numeric_cmp, NumericGetDatum(quantity), NumericGetDatum(int64_to_numeric(0))));
}

bool countable(Numeric quantity) {
    return !numeric_is_nan(quantity) && !numeric_is_inf(quantity) && sign_of(quantity) >= 0;
}

}  // namespace

Tally::Row Tally::read(Datum tenant, bool no_tenant, Datum quantity, bool no_quantity) {
    Row row{};
    if (!no_tenant)
        row.tenant = OutputFunctionCall(&spec_.tenant_output, tenant);
    if (!no_tenant && !no_quantity)
        row.quantity = DatumGetNumeric(DirectFunctionCall3(
            numeric_in, CStringGetDatum(OutputFunctionCall(&spec_.quantity_output, quantity)),
            ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
    return row;
}

Tally::Row Tally::read(TupleTableSlot *slot) {
    bool no_tenant, no_quantity = true;
    const Datum tenant = slot_getattr(slot, spec_.tenant, &no_tenant);
    const Datum quantity = spec_.quantity ? slot_getattr(slot, spec_.quantity, &no_quantity) : Datum{};
    return read(tenant, no_tenant, quantity, no_quantity);
}

void Tally::note(const Row &row, int sign) {
    if (!row.tenant)
        return;
    auto found = nets_.find(std::string_view(row.tenant));
    if (found == nets_.end())
        found = nets_.emplace(row.tenant, Net{}).first;
    Net &net = found->second;
    if (!spec_.quantity)
        net.rows += sign;
    if (!row.quantity)
        return;
    if (!pg_call([&] { return countable(row.quantity); })) {
        if (sign < 0)
            return;
        throw Failure(sqlstate::kInvalidQuantity,
                      "quantity " + shown(row.quantity) + " of a row is negative or not finite",
                      "Store the amount that the row uses; null is none.");
    }
    net.quantity = pg_call([&] {
        const MemoryContext before = MemoryContextSwitchTo(memory_);
        Numeric old = net.quantity ? net.quantity : int64_to_numeric(0);
        const Datum sum = DirectFunctionCall2(sign > 0 ? numeric_add : numeric_sub, NumericGetDatum(old),
                                              NumericGetDatum(row.quantity));
        pfree(old);
        MemoryContextSwitchTo(before);
        return DatumGetNumeric(sum);
    });
}

void Tally::count(TupleTableSlot *slot, int sign) {
    note(pg_call([&] { return read(slot); }), sign);
}

void Tally::count(Tuplestorestate *rows, TupleDesc type, int sign) {
    TupleTableSlot *slot = pg_call([&] {
        tuplestore_select_read_pointer(rows, 0);
        tuplestore_rescan(rows);
        return MakeSingleTupleTableSlot(type, &TTSOpsMinimalTuple);
    });
    ScratchMemory scratch;
    while (pg_call([&] { return tuplestore_gettupleslot(rows, true, false, slot); }))
        note(scratch.run([&] { return read(slot); }), sign);
    pg_call([&] { ExecDropSingleTupleTableSlot(slot); });
}

// As the table's owner, whoever truncates it: not being allowed to see a row makes nobody keep it. Under the latest
// snapshot, because TRUNCATE removes also what an older one does not see.
void Tally::take_all(Relation table) {
    ScratchMemory scratch;
    ledger::Identity saved;
    const Portal portal = pg_call([&] {
        saved = ledger::enter(table->rd_rel->relowner, SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
        const TupleDesc type = RelationGetDescr(table);
        const auto name = [&](AttrNumber column) {
            return quote_identifier(NameStr(TupleDescAttr(type, column - 1)->attname));
        };
        const char *query = psprintf(
            "SELECT %s, %s FROM %s%s", name(spec_.tenant), spec_.quantity ? name(spec_.quantity) : "NULL",
            table->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
            quote_qualified_identifier(get_namespace_name(RelationGetNamespace(table)),
                                       RelationGetRelationName(table)));
        PushActiveSnapshot(GetLatestSnapshot());
        SPIPlanPtr plan = SPI_prepare(query, 0, nullptr);
        if (!plan)
            elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
        return SPI_cursor_open(nullptr, plan, nullptr, nullptr, true);
    });
    for (;;) {
        pg_call([&] { SPI_cursor_fetch(portal, true, kRowsAtOnce); });
        const uint64 rows = SPI_processed;
        SPITupleTable *fetched = SPI_tuptable;
        for (uint64 i = 0; i < rows; i++)
            note(scratch.run([&] {
                bool no_tenant, no_quantity;
                const Datum tenant = SPI_getbinval(fetched->vals[i], fetched->tupdesc, 1, &no_tenant);
                const Datum quantity = SPI_getbinval(fetched->vals[i], fetched->tupdesc, 2, &no_quantity);
                return read(tenant, no_tenant, quantity, no_quantity);
            }),
                 -1);
        SPI_freetuptable(fetched);
        if (rows == 0)
            break;
    }
    pg_call([&] {
        SPI_cursor_close(portal);
        PopActiveSnapshot();
        ledger::leave(saved);
    });
}

Tally::Amount Tally::amount(const Net &net) const {
    return pg_call([&]() -> Amount {
        const Numeric total = net.quantity ? net.quantity : int64_to_numeric(net.rows);
        return {sign_of(total), DatumGetNumeric(DirectFunctionCall1(numeric_abs, NumericGetDatum(total)))};
    });
}

}  // namespace pg_billing
