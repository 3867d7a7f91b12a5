#include "shim/caller.hpp"
#include "shim/endpoints.hpp"
#include "shim/openapi.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

awaitable<http::Response> get_openapi(const Call &call) {
    refuse_query(call.request);
    co_return json_response(200, std::string(openapi_document()));
}

}  // namespace

void add_openapi_endpoint(Router &router) {
    router.add("GET", "/openapi.json", get_openapi);
}

}  // namespace pg_billing::shim
