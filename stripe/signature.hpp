// The Stripe-Signature header of a webhook: t=<unix time>,v1=<hex>[,v1=<hex>…][,v0=<hex>].
//
// A signature is hex(HMAC-SHA256(secret, "<t>.<raw body>")), the secret being the whole string including
// whsec_ (docs.stripe.com/webhooks). While a secret is rolled, Stripe signs with both and so do we accept
// both.
//
// Invariants: signatures are compared in constant time; nothing but an authentic delivery is told from
// another by its age; stamps more than the tolerance ahead are refused too (Stripe's own libraries accept
// any).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace pg_billing::stripe {

inline constexpr std::int64_t kSignatureTolerance = 300;  // seconds either way; Stripe's default

enum class SignatureCheck { valid, malformed, mismatch, too_old, in_future };

// Returns the header that authenticates the body at that time, with one v1 per secret.
std::string sign_webhook(std::span<const std::string> secrets, std::int64_t timestamp, std::string_view body);

// Checks a delivery's header against the secrets in force; blank secrets never match.
SignatureCheck verify_webhook(std::string_view header, std::string_view body,
                              std::span<const std::string> secrets, std::int64_t now,
                              std::int64_t tolerance = kSignatureTolerance);

// Names a check's result for a log line.
const char *describe(SignatureCheck check);

}  // namespace pg_billing::stripe
