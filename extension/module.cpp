// pg_billing.so: loaded into the postmaster by shared_preload_libraries, and so into every backend.
//
// It holds no external library and starts no thread. What it sets up here: settings, shared memory, the transaction
// callbacks, the hooks and the launcher.
#include "extension/call.hpp"
#include "extension/counters.hpp"
#include "extension/direct_writes.hpp"
#include "extension/journal.hpp"
#include "extension/pg.hpp"
#include "extension/settings.hpp"
#include "extension/stats.hpp"
#include "extension/terms.hpp"
#include "extension/ticks.hpp"
#include "extension/usage_tables.hpp"
#include "extension/worker_state.hpp"

extern "C" {
#include "storage/ipc.h"

PG_MODULE_MAGIC;
PGDLLEXPORT void _PG_init(void);
}

namespace {

shmem_request_hook_type next_shmem_request;
shmem_startup_hook_type next_shmem_startup;

extern "C" void request_shared_memory() {
    if (next_shmem_request)
        next_shmem_request();
    RequestNamedLWLockTranche(pg_billing::kLockTranche, pg_billing::kLockCount);
    pg_billing::counters_shmem_request();
    pg_billing::stats::shmem_request();
    pg_billing::terms::shmem_request();
    pg_billing::ticks::shmem_request();
    pg_billing::worker_state_shmem_request();
}

extern "C" void start_shared_memory() {
    if (next_shmem_startup)
        next_shmem_startup();
    LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
    pg_billing::counters_shmem_startup();
    pg_billing::stats::shmem_startup();
    pg_billing::terms::shmem_startup();
    pg_billing::ticks::shmem_startup();
    pg_billing::worker_state_shmem_startup();
    LWLockRelease(AddinShmemInitLock);
}

}  // namespace

void _PG_init(void) {
    if (IsBinaryUpgrade)
        return;
    if (!process_shared_preload_libraries_in_progress)
        ereport(
            ERROR,
            (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
             errmsg("pg_billing must be loaded via \"shared_preload_libraries\""),
             errhint(
                 "Add pg_billing to shared_preload_libraries in postgresql.conf and restart the server.")));
    pg_billing::settings::define();
    next_shmem_request = shmem_request_hook;
    shmem_request_hook = request_shared_memory;
    next_shmem_startup = shmem_startup_hook;
    shmem_startup_hook = start_shared_memory;
    pg_billing::init_calls();
    pg_billing::ledger::init_usage_tables();
    pg_billing::stats::init();
    pg_billing::terms::init();
    pg_billing::ticks::init();
    pg_billing::journal::init();
    pg_billing::refuse_direct_writes();
    pg_billing::init_worker_state();
    pg_billing::register_launcher();
}
