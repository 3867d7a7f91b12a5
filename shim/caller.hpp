// What the API's endpoints share: who calls, with what body, and how an answer in JSON looks.
//
// Authority of a key is decided in SQL, in the transaction that does the work: begin_request() looks the key up, checks its
// scope and fixes the tenant for the statements behind it. The shim only presents the key's hash. A token tells
// by its signature whose it is and what it may do (tokens.hpp).
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "shim/database.hpp"
#include "shim/http_server.hpp"
#include "shim/json.hpp"
#include "shim/router.hpp"

namespace pg_billing::shim {

// The tenant of a request in SQL, as begin_request() has fixed it.
inline constexpr char kTenant[] = "current_setting('pg_billing.tenant_id')";

// Who calls: what billing.begin_request() and billing.authenticate() look at.
struct Credential {
    std::optional<std::string> key_sha256;  // as PostgreSQL reads a bytea; absent: a token, verified here
    std::optional<std::string> tenant;

    bool operator==(const Credential &) const = default;
};

// Whether what a request presents looks like a token; it may not be valid.
bool presents_token(const Call &call);

// Returns who calls, as far as it can be told without asking the database: a token's tenant, or a key, valid or not, and the tenant it
// names. Nothing if the request presents neither, or a token that is not valid.
std::optional<std::string> caller_of(const Call &call);

// Returns the key of a request. Throws Problem 401 without one, 403 if it is a token, 400 if X-Tenant-Id is not UTF-8.
Credential credential(const Call &call);

// The same, or of a token its tenant without a key. Throws Problem 401 or 403 for one that is not valid or lacks the scope.
Credential credential_or_token(const Call &call, const std::string &scope);

// Returns the statement that must precede the others of a request. Throws as credential_or_token() does.
Statement begin_request(const Call &call, std::string scope);

// Returns a text without the blanks around it.
std::string_view trim(std::string_view text);

// Returns a content type's media type in lower case, nothing if its charset is not UTF-8.
std::string media_type(std::string_view content_type);

// Returns what is between the quotes of a quoted string (RFC 9110 §5.6.4), unescaped; any other text as it is.
std::string unquoted(std::string_view text);

// Returns the request's body. Throws Problem 415 if it is not application/json, 400 if it is malformed.
Json json_body(const http::Request &request);

// The same, of a request that needs no body: an object without members then.
Json optional_json_body(const http::Request &request);

// Returns the idempotency key of the request's header, quoted as a structured field or bare, if there is one.
std::optional<std::string> idempotency_key(const http::Request &request);

// Returns an answer whose body is that JSON text.
http::Response json_response(unsigned status, std::string json);

}  // namespace pg_billing::shim
