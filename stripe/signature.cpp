#include "stripe/signature.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <stdexcept>
#include <vector>

namespace pg_billing::stripe {
namespace {

std::string expected_signature(const std::string &secret, std::string_view timestamp, std::string_view body) {
    std::string message(timestamp);
    message += '.';
    message += body;
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    if (!HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
              reinterpret_cast<const unsigned char *>(message.data()), message.size(), digest, &length))
        throw std::runtime_error("HMAC-SHA256 is not available");
    static constexpr char kHex[] = "0123456789abcdef";
    std::string hex;
    for (unsigned int i = 0; i < length; ++i) {
        hex += kHex[digest[i] >> 4];
        hex += kHex[digest[i] & 15];
    }
    return hex;
}

bool blank(const std::string &secret) {
    return secret.find_first_not_of(" \t\r\n\f\v") == std::string::npos;
}

struct Header {
    std::string_view timestamp;  // as sent: it is part of what is signed
    std::int64_t seconds = 0;
    std::vector<std::string_view> signatures;
};

std::optional<Header> parse(std::string_view text) {
    Header header;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(','), text.size());
        const std::string_view part = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        if (part.starts_with("v1="))
            header.signatures.push_back(part.substr(3));
        else if (part.starts_with("t=")) {
            if (!header.timestamp.empty())
                return std::nullopt;
            header.timestamp = part.substr(2);
        }
    }
    const char *const last = header.timestamp.data() + header.timestamp.size();
    const auto [end, error] = std::from_chars(header.timestamp.data(), last, header.seconds);
    if (header.timestamp.empty() || error != std::errc{} || end != last || header.seconds < 0 ||
        header.signatures.empty())
        return std::nullopt;
    return header;
}

}  // namespace

std::string sign_webhook(std::span<const std::string> secrets, std::int64_t timestamp,
                         std::string_view body) {
    const std::string stamp = std::to_string(timestamp);
    std::string header = "t=" + stamp;
    for (const std::string &secret : secrets)
        header += ",v1=" + expected_signature(secret, stamp, body);
    return header;
}

SignatureCheck verify_webhook(std::string_view text, std::string_view body,
                              std::span<const std::string> secrets, std::int64_t now,
                              std::int64_t tolerance) {
    const std::optional<Header> header = parse(text);
    if (!header)
        return SignatureCheck::malformed;
    bool matches = false;
    for (const std::string &secret : secrets) {
        if (blank(secret))
            continue;
        const std::string expected = expected_signature(secret, header->timestamp, body);
        for (const std::string_view given : header->signatures)
            matches |= given.size() == expected.size() &&
                       CRYPTO_memcmp(given.data(), expected.data(), expected.size()) == 0;
    }
    if (!matches)
        return SignatureCheck::mismatch;
    if (header->seconds < now - tolerance)
        return SignatureCheck::too_old;
    return header->seconds > now + tolerance ? SignatureCheck::in_future : SignatureCheck::valid;
}

const char *describe(SignatureCheck check) {
    switch (check) {
        case SignatureCheck::valid:
            return "valid";
        case SignatureCheck::malformed:
            return "malformed Stripe-Signature header";
        case SignatureCheck::mismatch:
            return "no signature matches";
        case SignatureCheck::too_old:
            return "timestamp too old";
        case SignatureCheck::in_future:
            return "timestamp in the future";
    }
    return "unknown";
}

}  // namespace pg_billing::stripe
