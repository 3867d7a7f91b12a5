// The description of the API has every endpoint, and no other. That answers look as it says is tested by the client.
#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "shim/endpoints.hpp"
#include "shim/openapi.hpp"

namespace pg_billing::shim {
namespace {

// "/usage/:metric" as the description writes it: "/usage/{metric}".
std::string as_described(const std::string &pattern) {
    std::string path;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        if (pattern[i] != ':') {
            path += pattern[i];
            continue;
        }
        const std::size_t end = std::min(pattern.find('/', i), pattern.size());
        path += '{' + pattern.substr(i + 1, end - i - 1) + '}';
        i = end - 1;
    }
    return path;
}

TEST(Openapi, DescribesEveryEndpointAndNoOther) {
    boost::asio::io_context context;  // is never run: nothing is connected
    Database database(context, {});
    Recorder recorder(context, database, {});
    const WebhookSecrets secrets({});
    const Tokens tokens({}, {});
    Router router;
    Checker checker(context, database);
    add_endpoints(router, {database, recorder, checker, secrets, tokens, {context, {}}});
    std::set<std::string> served, described;
    for (const auto &[method, pattern] : router.routes())
        if (!pattern.ends_with("/*"))  // which OpenAPI has no words for; any method is described as GET
            served.insert((method == "*" ? "GET" : method) + " " + as_described(pattern));
    const auto document = nlohmann::json::parse(openapi_document());
    for (const auto &[path, operations] : document.at("paths").items())
        for (const auto &[method, operation] : operations.items()) {
            std::string upper = method;
            for (char &c : upper)
                c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
            described.insert(upper + " " + path);
        }
    EXPECT_EQ(described, served);
}

}  // namespace
}  // namespace pg_billing::shim
