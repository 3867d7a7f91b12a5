// The stored form of an idempotency key: the first 16 bytes of its SHA-256, so that nobody can make two of a tenant's
// keys collide on purpose.
#pragma once

#include <string_view>

#include "extension/pg.hpp"

extern "C" {
#include "common/cryptohash.h"
#include "utils/uuid.h"
}

namespace pg_billing {

// Makes stored keys; one that makes many is cheaper than many. Plain calls into PostgreSQL: to be used inside pg_call(),
// and destroyed by finish(), or else with the (sub)transaction.
class EventKeys {
  public:
    EventKeys();
    pg_uuid_t stored(std::string_view idempotency_key);
    void finish();

  private:
    pg_cryptohash_ctx *context_;
};

inline pg_uuid_t event_key(std::string_view idempotency_key) {
    EventKeys keys;
    const pg_uuid_t stored = keys.stored(idempotency_key);
    keys.finish();
    return stored;
}

}  // namespace pg_billing
