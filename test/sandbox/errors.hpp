// Stripe's error answers, thrown as exceptions by whatever finds the fault.
#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "shim/http_server.hpp"

namespace pg_billing::sandbox {

using nlohmann::json;

struct ApiError : std::runtime_error {
    ApiError(int status, std::string type, const std::string &message, std::string code = {},
             std::string param = {})
        : std::runtime_error(message),
          status(status),
          type(std::move(type)),
          code(std::move(code)),
          param(std::move(param)) {}

    json body() const {
        json error = {{"type", type}, {"message", what()}};
        if (!code.empty())
            error["code"] = code;
        if (!param.empty())
            error["param"] = param;
        return {{"error", error}};
    }

    int status;
    std::string type, code, param;
    http::Fields fields;  // extra headers
};

// The request cannot be carried out as it is.
inline ApiError invalid(const std::string &message, std::string param = {}, std::string code = {}) {
    return ApiError(400, "invalid_request_error", message, std::move(code), std::move(param));
}

// The id names nothing.
inline ApiError no_such(const std::string &kind, const std::string &id, std::string param = "id") {
    const int status = param == "id" ? 404 : 400;
    return ApiError(status, "invalid_request_error", "No such " + kind + ": '" + id + "'", "resource_missing",
                    std::move(param));
}

// Stripe could, this sandbox cannot: said aloud rather than ignored.
inline ApiError not_modelled(const std::string &what) {
    return ApiError(501, "invalid_request_error", "The sandbox does not model " + what,
                    "sandbox_unsupported");
}

}  // namespace pg_billing::sandbox
