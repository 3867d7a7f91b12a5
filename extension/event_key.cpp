#include "extension/event_key.hpp"

#include "extension/guard.hpp"

extern "C" {
#include "common/sha2.h"
}

namespace pg_billing {

EventKeys::EventKeys() : context_(pg_cryptohash_create(PG_SHA256)) {}

pg_uuid_t EventKeys::stored(std::string_view idempotency_key) {
    uint8 digest[PG_SHA256_DIGEST_LENGTH];
    if (pg_cryptohash_init(context_) < 0 ||
        pg_cryptohash_update(context_, reinterpret_cast<const uint8 *>(idempotency_key.data()),
                             idempotency_key.size()) < 0 ||
        pg_cryptohash_final(context_, digest, sizeof(digest)) < 0)
        elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(context_));
    pg_uuid_t key;
    memcpy(key.data, digest, sizeof(key.data));
    return key;
}

void EventKeys::finish() {
    pg_cryptohash_free(context_);
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
