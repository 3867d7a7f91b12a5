// What a quota trigger counts: read, once per statement, from how the trigger was made, and checked.
#pragma once

#include "extension/guard.hpp"

extern "C" {
#include "commands/trigger.h"
}

namespace pg_billing {

struct TriggerSpec {
    bool each_row;
    AttrNumber tenant, quantity;  // quantity 0: rows are counted
    FmgrInfo tenant_output, quantity_output;
    Datum metric, properties;
};

// Returns what the trigger counts; raises if it was made in a way that cannot count right. Lives as long as the function's
// call information.
TriggerSpec &trigger_spec(const TriggerData *data, FmgrInfo *function);

}  // namespace pg_billing
