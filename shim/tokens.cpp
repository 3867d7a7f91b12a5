#include "shim/tokens.hpp"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/rand.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <optional>
#include <stdexcept>

#include "shim/json.hpp"
#include "shim/problem.hpp"
#include "shim/secret_file.hpp"

namespace pg_billing::shim {

namespace {

constexpr char kAudience[] = "pg_billing";
constexpr std::int64_t kSkew = 60;  // seconds by which clocks may differ
constexpr std::size_t kLongestToken = 4096;
constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// Nothing but the one way to write those bytes is taken.
std::optional<std::string> decoded(std::string_view text) {
    std::string bytes;
    std::uint32_t bits = 0;
    int have = 0;
    for (const char c : text) {
        const auto digit = kDigits.find(c);
        if (digit == kDigits.npos)
            return std::nullopt;
        bits = bits << 6 | static_cast<std::uint32_t>(digit);
        have += 6;
        if (have >= 8)
            bytes += static_cast<char>(bits >> (have -= 8) & 255);
    }
    return base64url(bytes) == text ? std::optional(bytes) : std::nullopt;
}

std::string hmac(const std::string &secret, std::string_view text) {
    unsigned char mac[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
         reinterpret_cast<const unsigned char *>(text.data()), text.size(), mac, &length);
    return std::string(reinterpret_cast<const char *>(mac), length);
}

Problem bad_token() {
    return Problem(401, "invalid_token", "The token is not valid here.", "Authorization");
}

// A NumericDate (RFC 7519 §2) of whole seconds, if there is one.
std::optional<std::int64_t> date(const Members &claims, const char *name) {
    const auto text = claims.integer(name);
    std::int64_t value = 0;
    if (!text)
        return std::nullopt;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
    if (error != std::errc() || end != text->data() + text->size() || value < 0 || value > 1LL << 40)
        throw bad_token();
    return value;
}

// "aud" is one name or several (RFC 7519 §4.1.3).
bool is_for_us(const Json &claims) {
    for (std::size_t i = 0; i < claims.names.size(); ++i) {
        if (claims.names[i] != "aud")
            continue;
        const Json &value = claims.items[i];
        const auto ours = [](const Json &one) {
            return one.kind == Json::Kind::string && one.text == kAudience;
        };
        return ours(value) ||
               (value.kind == Json::Kind::array && std::any_of(value.items.begin(), value.items.end(), ours));
    }
    return false;
}

}  // namespace

std::string base64url(std::string_view bytes) {
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t three = 0;
        const std::size_t have = std::min<std::size_t>(3, bytes.size() - i);
        for (std::size_t j = 0; j < 3; ++j)
            three = three << 8 | (j < have ? static_cast<unsigned char>(bytes[i + j]) : 0u);
        for (std::size_t j = 0; j <= have; ++j)
            text += kDigits[three >> (18 - 6 * j) & 63];
    }
    return text;
}

std::vector<std::string> words(const std::string &text) {
    std::vector<std::string> words;
    for (std::size_t start = 0; start < text.size();) {
        const std::size_t end = std::min(text.find(' ', start), text.size());
        if (end > start)
            words.push_back(text.substr(start, end - start));
        start = end + 1;
    }
    return words;
}

std::string joined(const std::vector<std::string> &scopes) {
    std::string text;
    for (const std::string &scope : scopes)
        text += (text.empty() ? "" : " ") + scope;
    return text;
}

void Session::must_have(const std::string &scope) const {
    if (std::find(scopes.begin(), scopes.end(), scope) == scopes.end())
        throw Problem(403, "insufficient_scope", "The token lacks the scope \"" + scope + "\".");
}

Tokens::Tokens(std::vector<std::string> secret_files, std::vector<std::string> public_key_files)
    : secret_files_(std::move(secret_files)), public_key_files_(std::move(public_key_files)) {
    reload();
}

void Tokens::reload() {
    std::vector<std::string> secrets = read_secrets(secret_files_, "token secret");
    for (const std::string &secret : secrets)
        if (secret.size() < 32)  // RFC 7518 §3.2: at least as long as the hash
            throw std::runtime_error("a token secret has fewer than 32 characters");
    std::vector<PublicKey> public_keys;
    for (const std::string &path : public_key_files_) {
        const std::unique_ptr<FILE, int (*)(FILE *)> file(
            std::fopen(path.c_str(), "r"), [](FILE *opened) { return opened ? std::fclose(opened) : 0; });
        PublicKey key(file ? PEM_read_PUBKEY(file.get(), nullptr, nullptr, nullptr) : nullptr);
        if (!key || EVP_PKEY_base_id(key.get()) != EVP_PKEY_RSA || EVP_PKEY_bits(key.get()) < 2048)
            throw std::runtime_error("token key file " + path +
                                     " cannot be read or holds no RSA public key of 2048 bits");
        public_keys.push_back(std::move(key));
    }
    secrets_ = std::move(secrets);
    public_keys_ = std::move(public_keys);
}

std::string Tokens::make(const Session &session, std::int64_t now, std::int64_t lifetime) const {
    unsigned char id[16];
    if (RAND_bytes(id, sizeof id) != 1)
        throw std::runtime_error("no random numbers");
    std::string claims = R"({"iss":"pg_billing","aud":"pg_billing","sub":)";
    write_json(claims, std::string_view(session.tenant));
    claims += R"(,"scope":)";
    write_json(claims, std::string_view(joined(session.scopes)));
    claims += ",\"iat\":" + std::to_string(now) + ",\"exp\":" + std::to_string(now + lifetime) +
              ",\"jti\":\"" + base64url({reinterpret_cast<const char *>(id), sizeof id}) + "\"}";
    const std::string text = base64url(R"({"alg":"HS256","typ":"JWT"})") + "." + base64url(claims);
    return text + "." + base64url(hmac(secrets_.at(0), text));
}

bool Tokens::signed_by_us(std::string_view text, std::string_view signature) const {
    bool good = false;
    for (const std::string &secret : secrets_) {
        const std::string mac = hmac(secret, text);
        good |=
            mac.size() == signature.size() && CRYPTO_memcmp(mac.data(), signature.data(), mac.size()) == 0;
    }
    return good;
}

bool Tokens::signed_elsewhere(std::string_view text, std::string_view signature) const {
    for (const PublicKey &key : public_keys_) {
        const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                              EVP_MD_CTX_free);
        if (EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha256(), nullptr, key.get()) == 1 &&
            EVP_DigestVerify(context.get(), reinterpret_cast<const unsigned char *>(signature.data()),
                             signature.size(), reinterpret_cast<const unsigned char *>(text.data()),
                             text.size()) == 1)
            return true;
    }
    return false;
}

Session Tokens::verify(std::string_view token, std::int64_t now) const {
    const auto first = token.find('.'), last = token.rfind('.');
    if (token.size() > kLongestToken || first == last || token.find('.', first + 1) != last)
        throw bad_token();
    const auto header = decoded(token.substr(0, first)),
               claims = decoded(token.substr(first + 1, last - first - 1)),
               signature = decoded(token.substr(last + 1));
    if (!header || !claims || !signature)
        throw bad_token();
    try {
        const Json head = parse_json(*header);
        const auto algorithm = string_member(head, "alg");
        const std::string_view text = token.substr(0, last);
        if (std::find(head.names.begin(), head.names.end(), "crit") != head.names.end() ||
            !(algorithm == "HS256" ? signed_by_us(text, *signature)
                                   : algorithm == "RS256" && signed_elsewhere(text, *signature)))
            throw bad_token();
        const Json said = parse_json(*claims);
        const Members members(said);
        const auto tenant = members.text("sub");
        const auto expires = date(members, "exp"), from = date(members, "nbf"), made = date(members, "iat");
        if (!tenant || tenant->empty() || !expires || !made || !is_for_us(said) ||
            from.value_or(0) > now + kSkew || *made > now + kSkew || *expires - *made > kLongest)
            throw bad_token();
        if (*expires <= now)
            throw Problem(401, "token_expired", "The token has expired: get another one.", "Authorization");
        return {*tenant, words(members.text("scope").value_or(""))};
    } catch (const Problem &problem) {
        if (problem.status == 401)
            throw;
        throw bad_token();  // a problem of what is written in it
    }
}

}  // namespace pg_billing::shim
