// The stored form of an idempotency key: the 128 bits of its XXH3 hash, in canonical byte order. Two keys that differ
// have the same one with a probability of 2^-128. That somebody could find such two is no matter: who may choose a key
// may as well choose one that is known.
#pragma once

#include <string_view>

#include "extension/pg.hpp"

extern "C" {
#include "utils/uuid.h"
}

namespace pg_billing {

pg_uuid_t event_key(std::string_view idempotency_key);

}  // namespace pg_billing
