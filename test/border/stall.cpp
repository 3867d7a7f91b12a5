// A module for tests alone: stops a transaction when its commit is visible to others and pg_billing's commit callback
// has not run yet. Built and loaded by test/e2e/races.sh, never installed.
//
// PostgreSQL calls transaction callbacks in the reverse order of their registration, and pg_billing, being preloaded,
// registered its own before this module is loaded.
#include <unistd.h>

#include "extension/pg.hpp"

extern "C" {
PG_MODULE_MAGIC;
PGDLLEXPORT void _PG_init(void);
}

namespace {

char file[MAXPGPATH];  // empty: this transaction does not stop

extern "C" void at_transaction_end(XactEvent event, void *) {
    while (event == XACT_EVENT_COMMIT && file[0] && access(file, F_OK) == 0)
        pg_usleep(1000);
    if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
        file[0] = '\0';
}

}  // namespace

void _PG_init(void) {
    RegisterXactCallback(at_transaction_end, nullptr);
}

// stall(file): the commit of this transaction stops for as long as the file exists.
PG_BILLING_FUNCTION(stall) {
    text_to_cstring_buffer(PG_GETARG_TEXT_PP(0), file, sizeof(file));
    PG_RETURN_VOID();
}
