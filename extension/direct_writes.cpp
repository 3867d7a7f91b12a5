// Plain calls into PostgreSQL, no C++ object with a destructor: an ERROR may pass through.
#include "extension/direct_writes.hpp"

#include "extension/pg.hpp"
#include "extension/sqlstate.hpp"

extern "C" {
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
}

namespace pg_billing {
namespace {

// The tables that counters are loaded from and that tell what was counted already. Some columns are no usage: they say
// how far Stripe has it.
struct Table {
    const char *name;
    const char *free_columns[2];
};
constexpr Table kTables[] = {
    {"usage_events", {}}, {"usage_event_keys", {}}, {"usage_aggregates", {"submitted", "blocked"}},
    {"usage_quotas", {}}, {"reservations", {}},
};

ExecutorCheckPerms_hook_type next_check;
object_access_hook_type next_access;

bool lent_by_a_function() {
    Oid user;
    int context;
    GetUserIdAndSecContext(&user, &context);
    return context & SECURITY_LOCAL_USERID_CHANGE;
}

// Returns which of the tables the relation is, or is a partition of; null if it is none, or not guarded.
const Table *guarded_table(Oid relation) {
    HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
    if (!HeapTupleIsValid(tuple))
        return nullptr;
    const auto *form = reinterpret_cast<Form_pg_class>(GETSTRUCT(tuple));
    const Oid schema = form->relnamespace;
    const bool secured = form->relrowsecurity, is_partition = form->relispartition;
    ReleaseSysCache(tuple);
    if (!secured || schema != get_namespace_oid("billing", true))
        return nullptr;
    const char *name = get_rel_name(is_partition ? llast_oid(get_partition_ancestors(relation)) : relation);
    for (const Table &table : kTables)
        if (name && strcmp(name, table.name) == 0)
            return &table;
    return nullptr;
}

void refuse(const Table &table) {
    if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA ||
        !OidIsValid(get_extension_oid("pg_billing", true)))
        return;
    ereport(
        ERROR,
        (errcode(sqlstate::kDirectWrite),
         errmsg("billing.%s is written by billing's functions only", table.name),
         errhint("Record usage with billing.record_usage(). To write the table all the same, set "
                 "session_replication_role to replica, and restart the server afterwards: quota counters do "
                 "not see such writes.")));
}

// Tells whether all the columns, numbered as in a range table entry, are free to be changed.
bool all_free(const Table &table, Oid relation, const Bitmapset *columns) {
    int column = -1;
    while ((column = bms_next_member(columns, column)) >= 0) {
        const char *name = get_attname(relation, column + FirstLowInvalidHeapAttributeNumber, true);
        bool free = false;
        for (const char *allowed : table.free_columns)
            free = free || (name && allowed && strcmp(name, allowed) == 0);
        if (!free)
            return false;
    }
    return true;
}

// SELECT FOR UPDATE asks for the right to update as well, but of no column.
void check_written(Oid relation, AclMode rights, const Bitmapset *updated) {
    if (!(rights & (ACL_INSERT | ACL_UPDATE | ACL_DELETE)))
        return;
    const Table *table = guarded_table(relation);
    if (table && ((rights & (ACL_INSERT | ACL_DELETE)) || !all_free(*table, relation, updated)))
        refuse(*table);
}

extern "C" void check_truncated(ObjectAccessType access, Oid catalogue, Oid object, int column,
                                void *argument) {
    if (access == OAT_TRUNCATE && !lent_by_a_function())
        if (const Table *table = guarded_table(object))
            refuse(*table);
    if (next_access)
        next_access(access, catalogue, object, column, argument);
}

}  // namespace

void refuse_direct_writes() {
    next_check = ExecutorCheckPerms_hook;
    ExecutorCheckPerms_hook = [](List *range_table, auto... rest) {
        if (!lent_by_a_function()) {
            ListCell *cell;
            foreach (cell, requested_rights(range_table, rest...)) {
                const auto *asked = static_cast<const RequestedRights *>(lfirst(cell));
                check_written(asked->relid, asked->requiredPerms, asked->updatedCols);
            }
        }
        return next_check ? next_check(range_table, rest...) : true;
    };
    next_access = object_access_hook;
    object_access_hook = check_truncated;
}

}  // namespace pg_billing
