// The ProcessUtility hook. It only ever stops workers of a database whose owner (or a superuser) gave the
// command, so nobody can halt billing without the right to remove the database altogether.
//
// Plain calls into PostgreSQL, no C++ object with a destructor: an ERROR may pass through.
#include "extension/utility_hook.hpp"

#include "extension/worker_state.hpp"

extern "C" {
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
}

namespace pg_billing {
namespace {

ProcessUtility_hook_type next_hook;

// Returns the value of the option of that name, or null.
const DefElem *option(const List *options, const char *name) {
    ListCell *cell;
    foreach (cell, options) {
        const auto *element = static_cast<const DefElem *>(lfirst(cell));
        if (strcmp(element->defname, name) == 0)
            return element;
    }
    return nullptr;
}

// Returns the name of the database that the statement needs without connections, or null.
const char *database_to_free(const Node *statement) {
    switch (nodeTag(statement)) {
        case T_DropdbStmt:
            return reinterpret_cast<const DropdbStmt *>(statement)->dbname;
        case T_RenameStmt: {
            const auto *rename = reinterpret_cast<const RenameStmt *>(statement);
            return rename->renameType == OBJECT_DATABASE ? rename->subname : nullptr;
        }
        case T_AlterDatabaseStmt: {
            const auto *alter = reinterpret_cast<const AlterDatabaseStmt *>(statement);
            return option(alter->options, "tablespace") ? alter->dbname : nullptr;
        }
        case T_CreatedbStmt: {
            const DefElem *source =
                option(reinterpret_cast<const CreatedbStmt *>(statement)->options, "template");
            return source && source->arg ? defGetString(const_cast<DefElem *>(source)) : nullptr;
        }
        default:
            return nullptr;
    }
}

extern "C" void pg_billing_process_utility(PlannedStmt *planned, const char *query, bool read_only_tree,
                                           ProcessUtilityContext context, ParamListInfo params,
                                           QueryEnvironment *environment, DestReceiver *destination,
                                           QueryCompletion *completion) {
    if (const char *name = database_to_free(planned->utilityStmt)) {
        const Oid database = get_database_oid(name, true);
        if (OidIsValid(database) && owns_database(database))
            hold_database(database);
    }
    if (IsA(planned->utilityStmt, CreatedbStmt) || IsA(planned->utilityStmt, DropdbStmt))
        databases_changed_at_commit();
    (next_hook ? next_hook : standard_ProcessUtility)(planned, query, read_only_tree, context, params,
                                                      environment, destination, completion);
}

}  // namespace

void install_utility_hook() {
    next_hook = ProcessUtility_hook;
    ProcessUtility_hook = pg_billing_process_utility;
}

}  // namespace pg_billing
