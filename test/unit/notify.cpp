#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "notify/address.hpp"
#include "notify/gateway.hpp"
#include "notify/mail.hpp"
#include "notify/outcome.hpp"
#include "notify/signature.hpp"

namespace pg_billing::notify {
namespace {

using Secrets = std::vector<std::string>;

// Computed by Python's hmac module; test/e2e/notify.sh has Standard Webhooks' own library check what is sent.
const std::string kSecret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const std::string kSignature = "v1,/485aUtxlie+TIScVpHggMfqOB4so2KWb7+Gf727B44=";
const std::string kOther = "whsec_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoM=";
const std::string kOtherSignature = "v1,nreglw9HPgFb2Lfl1Wu4xzLPBPNc6RIasyTtCP2K77o=";

std::string signature(const Secrets &secrets) {
    return sign(secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1'614'265'330, R"({"test": 2432232314})");
}

TEST(NotifySignature, IsStandardWebhooks) {
    EXPECT_EQ(signature({kSecret}), kSignature);
    EXPECT_EQ(signature({kOther, kSecret}), kOtherSignature + " " + kSignature) << "one for each secret";
    EXPECT_EQ(signature({kSecret.substr(6)}), kSignature) << "the prefix is none of the key";
    EXPECT_EQ(signature({}), "");
}

TEST(NotifySignature, RefusesWhatIsNoSecretWithoutShowingIt) {
    for (const char *secret : {"whsec_", "whsec_abc", "whsec_a*b$"}) {
        try {
            signature({secret});
            ADD_FAILURE() << secret;
        } catch (const std::invalid_argument &e) {
            EXPECT_EQ(std::string(e.what()).find(secret), std::string::npos);
        }
    }
}

bool reachable(const char *text) {
    sockaddr_in v4{};
    sockaddr_in6 v6{};
    v4.sin_family = AF_INET;
    v6.sin6_family = AF_INET6;
    if (inet_pton(AF_INET, text, &v4.sin_addr) == 1)
        return is_public(reinterpret_cast<sockaddr *>(&v4));
    EXPECT_EQ(inet_pton(AF_INET6, text, &v6.sin6_addr), 1) << text;
    return is_public(reinterpret_cast<sockaddr *>(&v6));
}

TEST(NotifyAddress, TellsTheInternetFromWhatIsNot) {
    for (const char *text :
         {"8.8.8.8",         "9.255.255.255", "11.0.0.0",        "100.63.255.255",   "100.128.0.0",
          "126.255.255.255", "128.0.0.1",     "169.253.255.255", "172.15.255.255",   "172.32.0.0",
          "192.167.255.255", "192.169.0.0",   "198.17.255.255",  "198.20.0.0",       "223.255.255.255",
          "2606:4700::1111", "2a00:1450::1",  "::ffff:8.8.8.8",  "64:ff9b::8.8.8.8", "2002:808:808::"})
        EXPECT_TRUE(reachable(text)) << text;
    for (const char *text : {"0.0.0.0",
                             "10.0.0.1",
                             "100.64.0.1",
                             "127.0.0.1",
                             "127.255.255.255",
                             "169.254.169.254",
                             "172.16.0.1",
                             "172.31.255.255",
                             "192.0.0.1",
                             "192.0.2.1",
                             "192.168.1.1",
                             "198.18.0.1",
                             "198.51.100.1",
                             "203.0.113.1",
                             "224.0.0.1",
                             "255.255.255.255",
                             "::",
                             "::1",
                             "::127.0.0.1",
                             "fe80::1",
                             "fc00::1",
                             "fd12::1",
                             "fec0::1",
                             "ff02::1",
                             "2001:db8::1",
                             "2001::1",
                             "3fff::1",
                             "::ffff:127.0.0.1",
                             "::ffff:10.1.2.3",
                             "64:ff9b::169.254.169.254",
                             "2002:7f00:1::",
                             "2002:a00:1::"})
        EXPECT_FALSE(reachable(text)) << text;
    const sockaddr local{AF_UNIX, {}};
    EXPECT_FALSE(is_public(&local));
}

Mail mail() {
    return {
        "Billing <billing@example.com>", "acme@example.org", "Quota reached", "Text", "msg_1", 1'795'664'260};
}

TEST(NotifyMail, HasTheHeadersItNeeds) {
    EXPECT_EQ(compose(mail()),
              "Date: Thu, 26 Nov 2026 03:37:40 +0000\r\n"
              "From: \"Billing\" <billing@example.com>\r\n"
              "To: acme@example.org\r\n"
              "Subject: Quota reached\r\n"
              "Message-ID: <msg_1@example.com>\r\n"
              "Auto-Submitted: auto-generated\r\n"
              "MIME-Version: 1.0\r\n"
              "Content-Type: text/plain; charset=utf-8\r\n"
              "Content-Transfer-Encoding: base64\r\n"
              "\r\n"
              "VGV4dA==\r\n");
    EXPECT_EQ(bare_address("Billing <billing@example.com>"), "billing@example.com");
    EXPECT_EQ(bare_address("billing@example.com"), "billing@example.com");
}

TEST(NotifyMail, EncodesWhatIsNotAscii) {
    Mail m = mail();
    m.subject = "Grüße";
    m.from = "Büro <a@b.example>";
    EXPECT_NE(compose(m).find("\r\nSubject: =?UTF-8?B?R3LDvMOfZQ==?=\r\n"), std::string::npos);
    EXPECT_NE(compose(m).find("\r\nFrom: =?UTF-8?B?QsO8cm8=?= <a@b.example>\r\n"), std::string::npos);
    m.subject = "=?UTF-8?Q?fake?=";
    EXPECT_EQ(compose(m).find("=?UTF-8?Q?fake"), std::string::npos) << "taken for what it is";
}

TEST(NotifyMail, FoldsLongLinesBetweenCharacters) {
    Mail m = mail();
    m.subject = m.text = "";
    for (int i = 0; i < 100; i++) {
        m.subject += "€";
        m.text += "€";
    }
    const std::string message = compose(m);
    std::size_t from = 0;
    for (std::size_t end; (end = message.find("\r\n", from)) != std::string::npos; from = end + 2)
        EXPECT_LE(end - from, 87u) << message.substr(from, end - from);
    // 45 bytes are 15 of these characters: no word ends within one
    EXPECT_NE(message.find("\r\n =?UTF-8?B?"), std::string::npos);
    EXPECT_EQ(message.find("?B?gqz"), std::string::npos);
}

TEST(NotifyMail, LetsNothingIntoTheHeaders) {
    Mail m = mail();
    m.subject = "a\r\nBcc: all@example.com\r\n\r\nbody";
    const std::string message = compose(m);
    EXPECT_EQ(message.find("\r\nBcc"), std::string::npos);
    EXPECT_NE(message.find("\r\nSubject: a  Bcc: all@example.com    body\r\n"), std::string::npos);
    for (const char *address : {"a@b.example\r\nBcc: c@d.example", "a@b.example> SIZE=1", "a b@c.example",
                                "a@b@c", "@b", "a@", "nobody", "", "a@b.example,c@d.example"}) {
        m = mail();
        m.to = address;
        EXPECT_THROW(compose(m), std::invalid_argument) << address;
    }
    m = mail();
    m.from = "A\r\nBcc: x@y.example <a@b.example>";
    EXPECT_EQ(compose(m).find("\r\nBcc"), std::string::npos);
}

TEST(NotifyGateway, FillsInTheTemplates) {
    const GatewayRequest json =
        fill("https://sms.example/send", R"({"to": ["{to}"], "text": "{message}", "n": 1})", "+15550100123",
             "\"Hello\"\n{to}", "msg_1");
    EXPECT_EQ(json.url, "https://sms.example/send");
    EXPECT_EQ(json.content_type, "application/json");
    EXPECT_EQ(nlohmann::json::parse(json.body),
              nlohmann::json({{"to", {"+15550100123"}}, {"text", "\"Hello\"\n{to}"}, {"n", 1}}));
    const GatewayRequest form =
        fill("https://sms.example/", "To={to}&Body={message}&From=me", "+1555", "a&b=ü c", "msg_1");
    EXPECT_EQ(form.content_type, "application/x-www-form-urlencoded");
    EXPECT_EQ(form.body, "To=%2B1555&Body=a%26b%3D%C3%BC%20c&From=me");
    const GatewayRequest get =
        fill("https://sms.example/?to={to}&m={message}&id={id}", "", "+1555", "x&y", "msg_1");
    EXPECT_EQ(get.url, "https://sms.example/?to=%2B1555&m=x%26y&id=msg_1");
    EXPECT_EQ(get.content_type, "");
    EXPECT_THROW(fill("https://sms.example/", "{to", "+1555", "x", "msg_1"), std::invalid_argument);
}

TEST(NotifyGateway, AuthorizesByTokenOrPassword) {
    EXPECT_EQ(authorization("secret"), "Bearer secret");
    EXPECT_EQ(authorization("user:pass"), "Basic dXNlcjpwYXNz");
}

std::string outcome(const char *kind, int status, const std::string &trouble = "") {
    return outcome_name(judge(kind, status, trouble).outcome);
}

TEST(NotifyOutcome, DependsOnTheKind) {
    for (const char *kind : {"webhook", "email", "sms"}) {
        EXPECT_EQ(outcome(kind, 0, "timed out"), "retry");
        EXPECT_EQ(outcome(kind, 250), "delivered");
    }
    EXPECT_EQ(outcome("webhook", 200, "the body was cut off"), "delivered");
    EXPECT_EQ(outcome("email", 250, "connection lost"), "retry") << "only the last answer counts";
    for (const int status : {301, 400, 404, 429, 500})
        EXPECT_EQ(outcome("webhook", status), "retry");
    EXPECT_EQ(outcome("webhook", 410), "gone");
    for (const int status : {400, 404, 410, 422})
        EXPECT_EQ(outcome("sms", status), "dead");
    for (const int status : {302, 401, 403, 408, 429, 503})
        EXPECT_EQ(outcome("sms", status), "retry");
    for (const int status : {421, 451, 530, 535})
        EXPECT_EQ(outcome("email", status, "refused"), "retry");
    for (const int status : {550, 552, 554})
        EXPECT_EQ(outcome("email", status, "refused"), "dead");
    EXPECT_EQ(judge("email", 550, "RCPT failed").reason, "SMTP 550: RCPT failed");
    EXPECT_EQ(judge("webhook", 500, "").reason, "HTTP 500");
    EXPECT_EQ(judge("webhook", 0, "").reason, "no answer: connection lost");
    EXPECT_EQ(judge("webhook", 204, "").reason, "");
}

}  // namespace
}  // namespace pg_billing::notify
