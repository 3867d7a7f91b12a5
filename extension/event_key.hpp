// The stored form of an idempotency key: the first 16 bytes of its SHA-256, so that nobody can make two of a tenant's
// keys collide on purpose.
#pragma once

#include <string_view>

#include "extension/pg.hpp"

extern "C" {
#include "utils/uuid.h"
}

namespace pg_billing {

// Plain calls into PostgreSQL: to be used inside pg_call().
pg_uuid_t event_key(std::string_view idempotency_key);

}  // namespace pg_billing
