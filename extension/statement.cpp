#include "extension/statement.hpp"

#include "extension/usage_tables.hpp"

extern "C" {
#include "catalog/pg_class.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
}

namespace pg_billing::ledger {
namespace {

Oid owner_of(Oid relation) {
    HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
    if (!HeapTupleIsValid(tuple))
        elog(ERROR, "cache lookup failed for relation %u", relation);
    const Oid owner = reinterpret_cast<Form_pg_class>(GETSTRUCT(tuple))->relowner;
    ReleaseSysCache(tuple);
    return owner;
}

}  // namespace

Identity enter(Oid user, int extra_context) {
    Identity saved;
    GetUserIdAndSecContext(&saved.user, &saved.context);
    SetUserIdAndSecContext(user, saved.context | extra_context);
    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
    return saved;
}

Identity enter_as_owner() {
    return enter(owner_of(usage_table(UsageTable::events)),
                 SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
}

void leave(const Identity &saved) {
    SPI_finish();
    SetUserIdAndSecContext(saved.user, saved.context);
}

int pin_search_path() {
    const int guc_level = NewGUCNestLevel();
    set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
                      0, false);
    return guc_level;
}

uint64 Statement::write(const Datum *values, const char *nulls) {
    prepare();
    const int result = SPI_execute_plan(plan_, const_cast<Datum *>(values), nulls, false, 0);
    if (result < 0)
        elog(ERROR, "statement failed: %s", SPI_result_code_string(result));
    return SPI_processed;
}

uint64 Statement::read_latest(const Datum *values) {
    return execute_latest(values, nullptr, true);
}

uint64 Statement::write_latest(const Datum *values, const char *nulls) {
    return execute_latest(values, nulls, false);
}

uint64 Statement::execute_latest(const Datum *values, const char *nulls, bool read_only) {
    const int guc_level = pin_search_path();
    prepare();
    const Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
    const int result = SPI_execute_snapshot(plan_, const_cast<Datum *>(values), nulls, snapshot,
                                            InvalidSnapshot, read_only, false, 0);
    UnregisterSnapshot(snapshot);
    if (result < 0)
        elog(ERROR, "statement failed: %s", SPI_result_code_string(result));
    AtEOXact_GUC(false, guc_level);
    return SPI_processed;
}

void Statement::prepare() {
    if (plan_)
        return;
    SPIPlanPtr plan = SPI_prepare(text_, arguments_, const_cast<Oid *>(types_));
    if (!plan || SPI_keepplan(plan) != 0)
        elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
    plan_ = plan;
}

}  // namespace pg_billing::ledger
