#include <gtest/gtest.h>

#include <vector>

#include "stripe/signature.hpp"

namespace pg_billing::stripe {
namespace {

using Secrets = std::vector<std::string>;

// Vectors computed by Stripe's own client (stripe-node's generateTestHeaderString); test/e2e/stripe_client
// checks them against it again.
constexpr std::int64_t kTime = 1'700'000'000;
const std::string kBody = R"({"id":"evt_1","object":"event","note":"é€"})";
const std::string kSecret = "whsec_test_0123456789";
const std::string kSignature = "2848f567d51fd8144a7c933948deb799e5dd3ed0eb7b7ba4d8d98c6d2bc8128b";
const std::string kHeader = "t=1700000000,v1=" + kSignature;

SignatureCheck check(const std::string &header, std::int64_t now = kTime, const Secrets &secrets = {kSecret},
                     const std::string &body = kBody) {
    return verify_webhook(header, body, secrets, now);
}

TEST(StripeSignature, SignsAsStripeDoes) {
    EXPECT_EQ(sign_webhook(Secrets{kSecret}, kTime, kBody), kHeader);
    EXPECT_EQ(sign_webhook(Secrets{"whsec_other", kSecret}, kTime, kBody).substr(13 + 3 + 64),
              ",v1=" + kSignature);
}

TEST(StripeSignature, AcceptsAuthenticDeliveries) {
    EXPECT_EQ(check(kHeader), SignatureCheck::valid);
    EXPECT_EQ(check("v0=abc,v1=00,x=y," + kHeader.substr(13) + ",t=1700000000"), SignatureCheck::valid)
        << "any v1 may match, in any order, unknown schemes are ignored";
    EXPECT_EQ(check(kHeader, kTime, {"whsec_new", kSecret}), SignatureCheck::valid)
        << "a secret being rolled";
}

TEST(StripeSignature, HoldsTheTimestampToTheToleranceBothWays) {
    EXPECT_EQ(check(kHeader, kTime + 300), SignatureCheck::valid);
    EXPECT_EQ(check(kHeader, kTime + 301), SignatureCheck::too_old);
    EXPECT_EQ(check(kHeader, kTime - 300), SignatureCheck::valid);
    EXPECT_EQ(check(kHeader, kTime - 301), SignatureCheck::in_future);
    EXPECT_EQ(check("t=1700000001,v1=" + kSignature), SignatureCheck::mismatch) << "the stamp is signed too";
}

TEST(StripeSignature, RefusesForgeries) {
    std::string upper = kSignature, changed = kSignature;
    for (char &c : upper)
        c = static_cast<char>(std::toupper(c));
    changed.back() = changed.back() == '0' ? '1' : '0';
    EXPECT_EQ(check("t=1700000000,v1=" + upper), SignatureCheck::mismatch) << "Stripe sends lower case";
    EXPECT_EQ(check("t=1700000000,v1=" + changed), SignatureCheck::mismatch);
    EXPECT_EQ(check("t=1700000000,v1=" + kSignature.substr(1)), SignatureCheck::mismatch);
    EXPECT_EQ(check("t=1700000000,v0=" + kSignature), SignatureCheck::malformed) << "v0 proves nothing";
    EXPECT_EQ(check(kHeader, kTime, {kSecret}, kBody + " "), SignatureCheck::mismatch);
    EXPECT_EQ(check(kHeader, kTime, {"whsec_other"}), SignatureCheck::mismatch);
    EXPECT_EQ(check(kHeader, kTime, {}), SignatureCheck::mismatch);
    const Secrets blank{""};
    EXPECT_EQ(check(sign_webhook(blank, kTime, kBody), kTime, blank), SignatureCheck::mismatch)
        << "no secret set";
}

TEST(StripeSignature, RefusesMalformedHeaders) {
    for (const std::string header :
         {"", ",", "t=1700000000", "v1=abc", "t=,v1=abc", "t=abc,v1=abc", "t=-5,v1=abc", "t=17e8,v1=abc",
          "t=99999999999999999999,v1=abc", "t=1,t=1,v1=abc", " t=1700000000, v1=abc"})
        EXPECT_EQ(check(header), SignatureCheck::malformed) << header;
}

}  // namespace
}  // namespace pg_billing::stripe
