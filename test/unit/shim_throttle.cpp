// What a caller and an address may ask in a second: shares of time, whose address it is, and which requests count.
#include "shim/throttle.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <ctime>
#include <fstream>

#include "shim/problem.hpp"

namespace pg_billing::shim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const Shares::Clock::time_point kNow{std::chrono::hours(1)};

int taken(Shares &shares, const std::string &whose, Shares::Clock::time_point now) {
    int taken = 0;
    while (taken < 1000 && !shares.take(whose, now))
        ++taken;
    return taken;
}

TEST(Shares, AreFiveSecondsWorthAtOnceAndThenTheRate) {
    Shares shares(10);
    EXPECT_EQ(taken(shares, "a", kNow), 50);
    EXPECT_EQ(*shares.take("a", kNow), milliseconds(100));
    EXPECT_EQ(taken(shares, "a", kNow + milliseconds(250)), 2) << "what is refused costs nothing";
    EXPECT_EQ(taken(shares, "b", kNow), 50) << "another's share is another";
    EXPECT_EQ(taken(shares, "a", kNow + seconds(100)), 50) << "idle time saves up no more";
}

TEST(Shares, OfLessThanOneInFiveSecondsIsOneAtATime) {
    Shares shares(0.01);
    EXPECT_EQ(taken(shares, "a", kNow), 1);
    EXPECT_EQ(*shares.take("a", kNow + seconds(40)), seconds(60));
    EXPECT_EQ(taken(shares, "a", kNow + seconds(100)), 1);
}

TEST(Shares, WithoutARateAreUnlimited) {
    Shares shares(0);
    EXPECT_EQ(taken(shares, "a", kNow), 1000);
}

TEST(Shares, RememberNoMoreThanTheirLimit) {
    Shares shares(0.01, 2);
    EXPECT_EQ(taken(shares, "a", kNow), 1);
    EXPECT_EQ(taken(shares, "b", kNow + seconds(50)), 1);
    EXPECT_EQ(taken(shares, "c", kNow + seconds(100)), 1) << "in the place of the one that is whole again";
    EXPECT_EQ(taken(shares, "b", kNow + seconds(100)), 0);
    EXPECT_EQ(taken(shares, "d", kNow + seconds(100)), 1);
    EXPECT_EQ(taken(shares, "b", kNow + seconds(100)), 1) << "all are forgotten when none is whole";
}

TEST(Networks, ContainAddresses) {
    const Networks networks({"10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "::1"});
    for (const char *inside : {"10.1.255.255", "192.0.2.7", "2001:db8:1::5", "::1", "::ffff:10.1.0.1"})
        EXPECT_TRUE(networks.contain(inside)) << inside;
    for (const char *outside :
         {"10.2.0.0", "192.0.2.8", "2001:db9::", "::2", "::ffff:10.2.0.1", "", "unknown"})
        EXPECT_FALSE(networks.contain(outside)) << outside;
    EXPECT_ANY_THROW(Networks({"10.1.0.0/33"}));
    EXPECT_ANY_THROW(Networks({"proxy.example"}));
}

http::Request from(std::string peer, http::Fields fields = {}) {
    http::Request request;
    request.method = "GET";
    request.peer = std::move(peer);
    request.fields = std::move(fields);
    return request;
}

TEST(ClientAddress, IsWhatTheLastTrustedProxyHasSeen) {
    const Networks trusted({"127.0.0.1", "10.0.0.0/8"});
    const auto client = [&](std::string peer, http::Fields fields = {}) {
        return client_address(from(std::move(peer), std::move(fields)), trusted).value_or("nobody");
    };
    EXPECT_EQ(client("192.0.2.1"), "192.0.2.1");
    EXPECT_EQ(client("192.0.2.1", {{"x-forwarded-for", "192.0.2.9"}}), "192.0.2.1") << "not trusted";
    EXPECT_EQ(client("127.0.0.1"), "nobody");
    EXPECT_EQ(client("127.0.0.1", {{"x-forwarded-for", "198.51.100.1, 192.0.2.9"}}), "192.0.2.9")
        << "what the client itself has written is before";
    EXPECT_EQ(client("127.0.0.1", {{"x-forwarded-for", "192.0.2.9 ,10.0.0.5"}}), "192.0.2.9")
        << "two proxies";
    EXPECT_EQ(client("127.0.0.1", {{"x-forwarded-for", "192.0.2.9"}, {"x-forwarded-for", "10.0.0.5"}}),
              "192.0.2.9");
    EXPECT_EQ(client("127.0.0.1", {{"x-forwarded-for", "10.0.0.5"}}), "nobody");
    EXPECT_EQ(client("127.0.0.1", {{"x-forwarded-for", "192.0.2.9, nonsense"}}), "127.0.0.1");
}

class Throttling : public ::testing::Test {
  protected:
    Throttling() {
        const std::string path = ::testing::TempDir() + "throttle_secret";
        std::ofstream(path) << std::string(32, 's') << "\n";
        tokens.emplace(std::vector<std::string>{path}, std::vector<std::string>{});
        std::remove(path.c_str());
    }

    // How many of ten requests are permitted.
    int permitted(const std::string &pattern, std::string peer, http::Fields fields) {
        int permitted = 0;
        for (int i = 0; i < 10; ++i) {
            Call call{from(peer, fields), {}, &*tokens};
            try {
                throttle.charge(call, pattern);
                ++permitted;
            } catch (const Problem &problem) {
                EXPECT_EQ(problem.status, 429);
                EXPECT_EQ(problem.code, "too_many_requests");
                EXPECT_EQ(problem.headers.at(0).first, "Retry-After");
                EXPECT_LE(std::stoi(problem.headers.at(0).second), 1000);
                EXPECT_GT(std::stoi(problem.headers.at(0).second), 0);
            }
        }
        return permitted;
    }
    static http::Fields key(const std::string &key, const std::string &tenant = "acme") {
        return {{"authorization", "Bearer pgb_" + key}, {"x-tenant-id", tenant}};
    }

    std::optional<Tokens> tokens;
    Throttle throttle{0.001, 0.001, Networks({"127.0.0.1"})};
    const std::string billing = "/api/billing/subscription", usage = "/api/billing/usage/:metric";
};

TEST_F(Throttling, IsForEachKeyAndTenant) {
    EXPECT_EQ(permitted(billing, "127.0.0.1", key("a")), 1);
    EXPECT_EQ(permitted(billing, "127.0.0.1", key("a", "globex")), 1);
    EXPECT_EQ(permitted("/api/billing/invoices/:id", "127.0.0.1", key("a")), 0) << "all of them together";
    EXPECT_EQ(permitted(billing, "127.0.0.1", key("b")), 1) << "a key that may not be valid uses up nobody's";
}

TEST_F(Throttling, IsForEachAddress) {
    EXPECT_EQ(permitted(billing, "192.0.2.1", key("a")), 1);
    EXPECT_EQ(permitted(billing, "192.0.2.1", key("b")), 0);
    EXPECT_EQ(permitted(billing, "192.0.2.1", {}), 0) << "nor without a key";
    EXPECT_EQ(permitted(billing, "192.0.2.2", {}), 1);
    EXPECT_EQ(permitted(billing, "2001:db8::1", {}), 1);
    EXPECT_EQ(permitted(billing, "2001:db8::2", {}), 0) << "a network of 64 bits is one's own";
    EXPECT_EQ(permitted(billing, "2001:db8:0:1::1", {}), 1);
    EXPECT_EQ(permitted(billing, "127.0.0.1", {}), 10) << "who is trusted, speaking for itself";
}

TEST_F(Throttling, OfUsageIsForTokensOnly) {
    EXPECT_EQ(permitted(usage, "192.0.2.1", key("a")), 10);
    const std::string token = tokens->make({"acme", {"usage:read"}}, std::time(nullptr), 600);
    EXPECT_EQ(permitted(usage, "127.0.0.1", {{"authorization", "Bearer " + token}}), 1);
    EXPECT_EQ(permitted(billing, "127.0.0.1", {{"authorization", "Bearer " + token}}), 0);
    const http::Fields forged{{"authorization", "Bearer " + token.substr(0, token.size() - 3)}};
    EXPECT_EQ(permitted(usage, "192.0.2.2", forged), 1) << "what is not valid uses up the address";
}

}  // namespace
}  // namespace pg_billing::shim
