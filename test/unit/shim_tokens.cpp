// Tokens of tenants: what is made is accepted until it expires, and nothing else is.
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>

#include "shim/problem.hpp"
#include "shim/tokens.hpp"

namespace pg_billing::shim {
namespace {

constexpr std::int64_t kNow = 1'900'000'000;
const std::string kSecret = "0123456789abcdef0123456789abcdef";

std::string file_with(const std::string &name, const std::string &text) {
    const std::string path = ::testing::TempDir() + name;
    std::ofstream(path) << text;
    return path;
}

std::string base64url(const std::string &bytes) {
    std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
    text.resize(static_cast<std::size_t>(EVP_EncodeBlock(
        reinterpret_cast<unsigned char *>(text.data()), reinterpret_cast<const unsigned char *>(bytes.data()),
        static_cast<int>(bytes.size()))));
    while (text.ends_with('='))
        text.pop_back();
    for (char &c : text)
        c = c == '+' ? '-' : c == '/' ? '_' : c;
    return text;
}

std::string hmac(const std::string &key, const std::string &text) {
    unsigned char mac[EVP_MAX_MD_SIZE];
    std::size_t length = 0;
    EVP_Q_mac(nullptr, "HMAC", nullptr, "SHA256", nullptr, key.data(), key.size(),
              reinterpret_cast<const unsigned char *>(text.data()), text.size(), mac, sizeof mac, &length);
    return std::string(reinterpret_cast<char *>(mac), length);
}

class TokensTest : public ::testing::Test {
  protected:
    const Tokens tokens{{file_with("secret", kSecret + "\n" + std::string(32, 'b') + "\n")}, {}};

    std::string signed_by(const std::string &key, const std::string &header, const std::string &claims) {
        const std::string text = base64url(header) + "." + base64url(claims);
        return text + "." + base64url(hmac(key, text));
    }
    std::string with_claims(const std::string &claims) {
        return signed_by(kSecret, R"({"alg":"HS256"})", claims);
    }
    std::string code(const std::string &token, std::int64_t now = kNow) {
        try {
            return tokens.verify(token, now).tenant;
        } catch (const Problem &problem) {
            EXPECT_EQ(problem.status, 401u);
            EXPECT_EQ(problem.detail.find(token), std::string::npos);
            return problem.code;
        }
    }
    static std::string claims(std::int64_t expires = kNow + 60, const std::string &more = "") {
        return R"({"sub":"acme","aud":"pg_billing","scope":"usage:read","iat":)" +
               std::to_string(expires - 60) + R"(,"exp":)" + std::to_string(expires) + more + "}";
    }
};

TEST_F(TokensTest, AreAcceptedUntilTheyExpire) {
    const std::string token = tokens.make({"acme \"1\"", {"usage:read", "subscription:read"}}, kNow, 900);
    const Session session = tokens.verify(token, kNow + 899);
    EXPECT_EQ(session.tenant, "acme \"1\"");
    EXPECT_EQ(joined(session.scopes), "usage:read subscription:read");
    EXPECT_NO_THROW(session.must_have("usage:read"));
    EXPECT_THROW(session.must_have("usage:write"), Problem);
    EXPECT_EQ(code(token, kNow + 900), "token_expired");
    EXPECT_NE(token, tokens.make({"acme \"1\"", {"usage:read", "subscription:read"}}, kNow, 900));
}

TEST_F(TokensTest, AreNotChanged) {
    const std::string token = tokens.make({"acme", {"usage:read"}}, kNow, 900);
    for (std::size_t i = 0; i < token.size(); ++i)
        for (const char c : {'A', 'z', '0', '-', '.', '=', '+'}) {
            std::string other = token;
            other[i] = c;
            if (other != token) {
                EXPECT_EQ(code(other), "invalid_token") << i << c;
            }
        }
    EXPECT_EQ(code(token.substr(0, token.size() - 1)), "invalid_token");
    EXPECT_EQ(code(token + "="), "invalid_token");
    EXPECT_EQ(code(token + std::string(5000, 'A')), "invalid_token");
}

TEST_F(TokensTest, AreSignedByAKnownSecretAndInNoOtherWay) {
    EXPECT_EQ(code(with_claims(claims())), "acme");
    EXPECT_EQ(code(signed_by(std::string(32, 'b'), R"({"alg":"HS256","typ":"JWT"})", claims())), "acme");
    EXPECT_EQ(code(signed_by(std::string(32, 'c'), R"({"alg":"HS256"})", claims())), "invalid_token");
    EXPECT_EQ(code(base64url(R"({"alg":"none"})") + "." + base64url(claims()) + "."), "invalid_token");
    for (const char *header :
         {R"({"alg":"none"})", R"({"alg":"hs256"})", R"({"alg":"HS512"})", R"({"alg":"RS256"})",
          R"({"alg":1})", R"({})", R"([])", R"("HS256")", R"({"alg":"HS256","alg":"none"})",
          R"({"alg":"HS256","crit":["exp"]})", "", "{"})
        EXPECT_EQ(code(signed_by(kSecret, header, claims())), "invalid_token") << header;
}

TEST_F(TokensTest, SayWhoseTheyAreForUsAndForAnHourAtMost) {
    EXPECT_EQ(code(with_claims(claims(kNow + 60, R"(,"nbf":1,"jti":"x","other":[{}])"))), "acme");
    EXPECT_EQ(
        code(with_claims(R"({"sub":"acme","aud":["x","pg_billing"],"iat":1900000000,"exp":1900000060})")),
        "acme");
    for (const std::string &wrong :
         {std::string(R"({"aud":"pg_billing","iat":1900000000,"exp":1900000060})"),
          std::string(R"({"sub":"acme","iat":1900000000,"exp":1900000060})"),
          std::string(R"({"sub":"","aud":"pg_billing","iat":1900000000,"exp":1900000060})"),
          std::string(R"({"sub":7,"aud":"pg_billing","iat":1900000000,"exp":1900000060})"),
          std::string(R"({"sub":"acme","aud":"other","iat":1900000000,"exp":1900000060})"),
          std::string(R"({"sub":"acme","aud":"pg_billing"})"),
          std::string(R"({"sub":"acme","sub":"bolt","aud":"pg_billing","iat":1900000000,"exp":1900000060})"),
          std::string(R"({"sub":"acme","aud":"pg_billing","exp":"soon"})"),
          std::string(R"({"sub":"acme","aud":"pg_billing","exp":1e99})"),
          std::string(
              "{\"sub\":\"ac\\u0000me\",\"aud\":\"pg_billing\",\"iat\":1900000000,\"exp\":1900000060}"),
          std::string("[]"), std::string("nothing"), claims(kNow + 181),
          claims(kNow + 60, ",\"nbf\":1900000100"),
          // of a day, in its last hour; of an hour and a second; made nobody knows when
          std::string(R"({"sub":"acme","aud":"pg_billing","iat":1899913660,"exp":1900000060})"),
          std::string(R"({"sub":"acme","aud":"pg_billing","iat":1900000000,"exp":1900003601})"),
          std::string(R"({"sub":"acme","aud":"pg_billing","exp":1900000060})")})
        EXPECT_EQ(code(with_claims(wrong)), "invalid_token") << wrong;
    EXPECT_EQ(code(with_claims(claims(kNow))), "token_expired");
}

TEST_F(TokensTest, OfOthersAreVerifiedByTheirPublicKey) {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_RSA_gen(2048), EVP_PKEY_free);
    const std::string path = ::testing::TempDir() + "public.pem";
    {
        const std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "w"), std::fclose);
        PEM_write_PUBKEY(file.get(), key.get());
    }
    const Tokens theirs({}, {path});
    EXPECT_FALSE(theirs.can_sign());
    const std::string text = base64url(R"({"alg":"RS256"})") + "." + base64url(claims());
    std::string signature(512, '\0');
    std::size_t length = signature.size();
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key.get());
    EVP_DigestSign(context.get(), reinterpret_cast<unsigned char *>(signature.data()), &length,
                   reinterpret_cast<const unsigned char *>(text.data()), text.size());
    signature.resize(length);
    EXPECT_EQ(theirs.verify(text + "." + base64url(signature), kNow).tenant, "acme");
    EXPECT_THROW(tokens.verify(text + "." + base64url(signature), kNow), Problem);
    signature[7] ^= 1;
    EXPECT_THROW(theirs.verify(text + "." + base64url(signature), kNow), Problem);
    // the public key is no secret, though its text is known to all
    std::ifstream file(path);
    const std::string pem((std::istreambuf_iterator<char>(file)), {});
    EXPECT_THROW(theirs.verify(signed_by(pem, R"({"alg":"HS256"})", claims()), kNow), Problem);
}

TEST(TokenFiles, AreReadableAndStrong) {
    EXPECT_THROW(Tokens({file_with("short", std::string(31, 'a'))}, {}), std::runtime_error);
    EXPECT_THROW(Tokens({"/nowhere"}, {}), std::runtime_error);
    EXPECT_THROW(Tokens({}, {"/nowhere"}), std::runtime_error);
    EXPECT_THROW(Tokens({}, {file_with("no.pem", "nonsense")}), std::runtime_error);
    const std::string path = file_with("rolled", std::string(32, 'a'));
    Tokens tokens({path}, {});
    const std::string token = tokens.make({"acme", {}}, kNow, 60);
    file_with("rolled", std::string(32, 'n') + "\n" + std::string(32, 'a'));
    tokens.reload();
    EXPECT_EQ(tokens.verify(token, kNow).tenant, "acme");
    file_with("rolled", std::string(32, 'n'));
    tokens.reload();
    EXPECT_THROW(tokens.verify(token, kNow), Problem);
    file_with("rolled", "weak");
    EXPECT_THROW(tokens.reload(), std::runtime_error);
    EXPECT_EQ(tokens.verify(tokens.make({"acme", {}}, kNow, 60), kNow).tenant, "acme");
}

}  // namespace
}  // namespace pg_billing::shim
