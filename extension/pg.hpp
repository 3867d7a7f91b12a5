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

}  // namespace pg_billing
