// The parameters of a request's query (application/x-www-form-urlencoded), by name and type.
//
// As strict as Members is with bodies: a parameter nobody knows, one that occurs twice, a wrong type and text that
// PostgreSQL could not hold are each refused with a Problem 400 that names the parameter.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shim/http_server.hpp"
#include "shim/json.hpp"

namespace pg_billing::shim {

class Query {
  public:
    // Refuses a query with other parameters than those known.
    Query(const http::Request &request, std::initializer_list<std::string_view> known);

    std::optional<std::string> text(std::string_view name) const;
    std::string required_text(std::string_view name) const;
    std::optional<std::string> decimal(std::string_view name) const;
    std::optional<std::string> integer(std::string_view name, int least, int most) const;
    std::optional<std::string> boolean(std::string_view name) const;  // "true" or "false"

    // Returns a flag that may stand here or in the body, but not in both.
    std::optional<std::string> boolean(std::string_view name, const Members &body) const;

  private:
    std::vector<std::pair<std::string, std::string>> parameters_;
};

// Throws Problem 400 if there is a query.
void refuse_query(const http::Request &request);

}  // namespace pg_billing::shim
