// A subtransaction around PostgreSQL code whose ERROR is an answer.
#pragma once

#include "extension/pg.hpp"

extern "C" {
#include "utils/resowner.h"
}

namespace pg_billing {

// Runs f in a subtransaction; returns null, or the ERROR that rolled it back. Plain calls into PostgreSQL: to be used
// inside pg_call(), and f holds only trivially destructible locals.
template <class F>
ErrorData *in_subtransaction(F &&f) {
    const MemoryContext memory = CurrentMemoryContext;
    const ResourceOwner owner = CurrentResourceOwner;
    ErrorData *volatile error = nullptr;
    BeginInternalSubTransaction(nullptr);
    MemoryContextSwitchTo(memory);
    PG_TRY();
    {
        f();
        ReleaseCurrentSubTransaction();
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(memory);
        error = CopyErrorData();
        FlushErrorState();
        RollbackAndReleaseCurrentSubTransaction();
    }
    PG_END_TRY();
    MemoryContextSwitchTo(memory);
    CurrentResourceOwner = owner;
    return error;
}

}  // namespace pg_billing
