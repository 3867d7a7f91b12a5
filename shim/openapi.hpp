// The API's description (OpenAPI 3.1): shim/openapi.json, which the build makes part of the program. Whoever changes an
// endpoint changes it there, too; tests hold the two together.
#pragma once

#include <string_view>

namespace pg_billing::shim {

std::string_view openapi_document();

}  // namespace pg_billing::shim
