// Stripe's endpoints and their parameters, read from stripe-endpoints.json, and the check of a request
// against them.
//
// Every parameter must be one Stripe knows, of its type, within its enum and length, and none that is
// required may be missing: what the sandbox accepts, Stripe accepts. What Stripe accepts but the sandbox does
// not model is refused aloud (501), never ignored.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace pg_billing::sandbox {

using nlohmann::json;

// A request that passed the check: parameters typed as Stripe's table says.
struct Call {
    json params;
    std::vector<std::string> args;  // what stood in the path's placeholders

    const std::string &id() const { return args.front(); }
    bool has(const char *name) const { return params.contains(name); }
    std::string text(const char *name, const std::string &fallback = {}) const;
};

using Handler = std::function<json(const Call &)>;

// One parameter, or one element of an array.
struct Param {
    std::string name;  // as in the table, e.g. items[][price]
    std::string type = "object";
    bool required = false, unsets = false, any_member = false;
    std::size_t max_length = 5000;
    std::set<std::string> values;  // of an enum; empty: any
    std::map<std::string, Param> members;
    std::unique_ptr<Param> element;
};

struct Endpoint {
    std::string method, path, removed_in, replaced_by;
    std::vector<std::string> segments;
    Param params;
    Handler handler;                 // none: not modelled
    std::set<std::string> modelled;  // parameters the handler honours, each with everything below it
};

class Catalog {
  public:
    explicit Catalog(const std::string &file);  // throws std::runtime_error naming the file

    // Binds a handler to an endpoint of the table, e.g. "POST /v1/products".
    void model(const std::string &name, std::set<std::string> params, Handler handler);

    // Finds the endpoint for a path, literal segments before placeholders; fills args. Null: no such
    // endpoint.
    const Endpoint *find(const std::string &method, const std::string &path,
                         std::vector<std::string> &args) const;

    // Checks and types the decoded parameters; throws ApiError.
    static json check(const Endpoint &endpoint, const json &params);

  private:
    std::vector<std::unique_ptr<Endpoint>> endpoints_;
};

}  // namespace pg_billing::sandbox
