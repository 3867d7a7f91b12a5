// Files of usage for other systems: writes what SQL has frozen (sql/export_file.sql), a file at a time.
//
// Invariants:
//   - A file is frozen and committed before it is written, and noted as written only once it is on the disk; so it may be
//     written twice, but never otherwise.
//   - It has its name only when it is complete: written under another name, flushed, renamed, and the directory flushed.
//   - One that cannot be written stops no rollup: it waits for the next run, with the reason in its row.
#pragma once

#include "worker/session.hpp"

namespace pg_billing {

// Writes all that is due into pg_billing.export_directory.
void export_usage(Session &session);

}  // namespace pg_billing
