// The durable side of taking back usage.
//
// Invariant: an event is taken back once: its key's row is locked until that is decided, and says so afterwards.
//
// Plain calls into PostgreSQL, to be used inside pg_call(): see statement.hpp. Values returned live in the memory context
// of the caller.
#pragma once

#include "extension/ledger_write.hpp"

namespace pg_billing::ledger {

enum class KeyState { unknown, counted, voided };

// Locks the key's row, and returns what it says and the tick of its event.
KeyState lock_key(Datum tenant, Datum key, TimestampTz *tick);

// Reads the event with that key; false if it is not kept any more.
bool find_event(Datum tenant, Datum key, TimestampTz tick, Event *event);

// Writes the event that takes back another, whose locked key says so from here on.
void write_void(const Event &event);

}  // namespace pg_billing::ledger
