// PostgreSQL's headers, made safe to include from C++.
//
// Include C++ and third-party headers first, this one last: afterwards snprintf and friends are PostgreSQL's
// macros. Everything that differs between PostgreSQL 15 and 18 is smoothed out here and nowhere else.
#pragma once

#include <cstdint>
#include <string_view>

extern "C" {
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
}

// Defines a SQL-callable C++ function: exported although the library hides every other symbol.
#define PG_BILLING_FUNCTION(name)             \
    extern "C" {                              \
    PG_FUNCTION_INFO_V1(name);                \
    PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
    }                                         \
    Datum name([[maybe_unused]] PG_FUNCTION_ARGS)

namespace pg_billing {

// Returns what a text that is not compressed and not out of line says, where it is.
inline std::string_view text_view(Datum detoasted) {
    const void *text = DatumGetPointer(detoasted);
    return {VARDATA_ANY(text), static_cast<size_t>(VARSIZE_ANY_EXHDR(text))};
}

// Tells whether the current user owns the database or is a superuser.
inline bool owns_database(Oid database) {
#if PG_VERSION_NUM >= 160000
    return object_ownercheck(DatabaseRelationId, database, GetUserId());
#else
    return pg_database_ownercheck(database, GetUserId());
#endif
}

// What a statement asks to do to each relation: since PostgreSQL 16 in a list beside the range table.
#if PG_VERSION_NUM >= 160000
using RequestedRights = RTEPermissionInfo;
inline List *requested_rights(List *, List *rights, bool) {
    return rights;
}
#else
using RequestedRights = RangeTblEntry;
inline List *requested_rights(List *range_table, bool) {
    return range_table;
}
#endif

// Opens the indexes otherwise than they are open; PostgreSQL 18 asserts that there are none from before.
inline void reopen_indices(ResultRelInfo *target, bool speculative) {
    ExecCloseIndices(target);
    target->ri_IndexRelationDescs = nullptr;
    ExecOpenIndices(target, speculative);
}

// Adds the row's entries to the indexes. With `conflict`, a unique index that has the key already sets that; else it
// raises.
inline void insert_index_entries(ResultRelInfo *target, TupleTableSlot *slot, EState *state, bool *conflict) {
    list_free(ExecInsertIndexTuples(target, slot, state, false, conflict != nullptr, conflict, NIL
#if PG_VERSION_NUM >= 160000
                                    ,
                                    false
#endif
                                    ));
    ResetPerTupleExprContext(state);
}

// Tells whether a unique index has the row's key, and where; waits for whoever is about to write it.
inline bool index_conflict(ResultRelInfo *target, TupleTableSlot *slot, EState *state, ItemPointer found) {
#if PG_VERSION_NUM >= 180000
    ItemPointerData none;
    ItemPointerSetInvalid(&none);
    return !ExecCheckIndexConstraints(target, slot, state, found, &none, NIL);
#else
    return !ExecCheckIndexConstraints(target, slot, state, found, NIL);
#endif
}

}  // namespace pg_billing
