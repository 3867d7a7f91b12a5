// The signature of an outgoing webhook, by Standard Webhooks (standardwebhooks.com): headers webhook-id,
// webhook-timestamp and webhook-signature, the last one "v1," and base64(HMAC-SHA256(key, "<id>.<timestamp>.<body>")), once
// for each secret in force while one is rotated. A secret is "whsec_" and the key in base64.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace pg_billing::notify {

// Returns the webhook-signature header; throws std::invalid_argument if a secret is none, without showing it.
std::string sign(std::span<const std::string> secrets, std::string_view id, std::int64_t timestamp,
                 std::string_view body);

// Encodes bytes in base64, without line breaks.
std::string base64(std::string_view bytes);

}  // namespace pg_billing::notify
