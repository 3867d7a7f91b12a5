#include "extension/event_key.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>

#include "extension/guard.hpp"

namespace pg_billing {

pg_uuid_t event_key(std::string_view idempotency_key) {
    XXH128_canonical_t hash;
    XXH128_canonicalFromHash(&hash, XXH3_128bits(idempotency_key.data(), idempotency_key.size()));
    pg_uuid_t key;
    static_assert(sizeof(key.data) == sizeof(hash.digest));
    memcpy(key.data, hash.digest, sizeof(key.data));
    return key;
}

}  // namespace pg_billing

// billing._event_key(idempotency_key text) returns the stored form of a key.
PG_BILLING_FUNCTION(pg_billing_event_key) {
    return pg_billing::pg_entry([&]() -> Datum {
        return pg_billing::pg_call([&]() -> Datum {
            const text *key = PG_GETARG_TEXT_PP(0);
            auto *result = static_cast<pg_uuid_t *>(palloc(sizeof(pg_uuid_t)));
            *result = pg_billing::event_key({VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)});
            PG_RETURN_UUID_P(result);
        });
    });
}
