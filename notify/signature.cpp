#include "notify/signature.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <stdexcept>

namespace pg_billing::notify {
namespace {

constexpr std::string_view kPrefix = "whsec_";

// Decodes a secret into the key it stands for.
std::string key_of(std::string_view secret) {
    if (secret.starts_with(kPrefix))
        secret.remove_prefix(kPrefix.size());
    std::string key(secret.size() / 4 * 3, '\0');
    const int length = secret.size() % 4 == 0 && !secret.empty()
                           ? EVP_DecodeBlock(reinterpret_cast<unsigned char *>(key.data()),
                                             reinterpret_cast<const unsigned char *>(secret.data()),
                                             static_cast<int>(secret.size()))
                           : -1;
    if (length < 0)
        throw std::invalid_argument("a webhook's secret is not in base64");
    // What pads the text is decoded, too, as zeros.
    const std::size_t padding = secret.ends_with("==") ? 2 : secret.ends_with("=") ? 1 : 0;
    key.resize(static_cast<std::size_t>(length) - padding);
    return key;
}

}  // namespace

std::string base64(std::string_view bytes) {
    std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
    text.resize(static_cast<std::size_t>(EVP_EncodeBlock(
        reinterpret_cast<unsigned char *>(text.data()), reinterpret_cast<const unsigned char *>(bytes.data()),
        static_cast<int>(bytes.size()))));
    return text;
}

std::string sign(std::span<const std::string> secrets, std::string_view id, std::int64_t timestamp,
                 std::string_view body) {
    std::string message(id);
    message += "." + std::to_string(timestamp) + ".";
    message += body;
    std::string header;
    for (const std::string &secret : secrets) {
        std::string key = key_of(secret);
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned int length = 0;
        const auto *done =
            HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
                 reinterpret_cast<const unsigned char *>(message.data()), message.size(), digest, &length);
        OPENSSL_cleanse(key.data(), key.size());
        if (!done)
            throw std::runtime_error("HMAC-SHA256 is not available");
        header += header.empty() ? "v1," : " v1,";
        header += base64({reinterpret_cast<const char *>(digest), length});
    }
    return header;
}

}  // namespace pg_billing::notify
