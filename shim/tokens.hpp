// Tokens of tenants: JWTs (RFC 7519) that let a page in a browser read what is its own for a while, without an API key.
//
// Invariants:
//   - Only HS256 and RS256 are known (RFC 8725): each with keys of its own kind, so that a public key is never taken for a
//     secret, and no token says itself that it needs no signature.
//   - A token is for one tenant, for us ("aud": "pg_billing"), and lasts an hour at most, whoever made it.
//   - Why a token is refused is told in one sentence, the same for all but those that have expired.
#pragma once

#include <openssl/evp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pg_billing::shim {

// What a token says.
struct Session {
    std::string tenant;
    std::vector<std::string> scopes;

    // Throws Problem 403 unless the token has this scope.
    void must_have(const std::string &scope) const;
};

// Bytes as tokens have them (RFC 7515, appendix C: base64url without padding).
std::string base64url(std::string_view bytes);

// A list of scopes as a token has it: names with blanks between them (RFC 8693 §4.2).
std::vector<std::string> words(const std::string &scopes);
std::string joined(const std::vector<std::string> &scopes);

class Tokens {
  public:
    static constexpr std::int64_t kLongest = 3600;  // seconds

    // Files with secrets of HS256, one per line of at least 32 characters: the first signs, all verify. Files with public keys
    // of RS256, in PEM, of whoever else makes tokens. Throws std::runtime_error if one is unreadable or too weak.
    Tokens(std::vector<std::string> secret_files, std::vector<std::string> public_key_files);

    // Reads the files again; keeps what it had if that throws.
    void reload();

    // Whether tokens can be made.
    bool can_sign() const { return !secrets_.empty(); }

    // Returns a token for a tenant that begins at a Unix time and lasts so many seconds.
    std::string make(const Session &session, std::int64_t now, std::int64_t lifetime) const;

    // Returns what a token says at a Unix time, or throws Problem 401.
    Session verify(std::string_view token, std::int64_t now) const;

  private:
    struct Free {
        void operator()(EVP_PKEY *key) const { EVP_PKEY_free(key); }
    };
    using PublicKey = std::unique_ptr<EVP_PKEY, Free>;

    bool signed_by_us(std::string_view text, std::string_view signature) const;
    bool signed_elsewhere(std::string_view text, std::string_view signature) const;

    std::vector<std::string> secret_files_, public_key_files_, secrets_;
    std::vector<PublicKey> public_keys_;
};

}  // namespace pg_billing::shim
