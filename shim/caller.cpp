#include "shim/caller.hpp"

#include <openssl/sha.h>

#include <algorithm>
#include <cctype>
#include <ctime>

#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace {

bool equal_ignoring_case(std::string_view a, std::string_view b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

// Returns the key from "Authorization: Bearer" (RFC 6750) or X-API-Key.
std::string_view presented_key(const http::Request &request) {
    if (const auto authorization = request.field("authorization")) {
        const auto space = authorization->find(' ');
        if (space != authorization->npos && equal_ignoring_case(authorization->substr(0, space), "Bearer"))
            return trim(authorization->substr(space));
        throw Problem(401, "invalid_api_key", "The Authorization field must be: Bearer, then an API key.",
                      "Authorization");
    }
    if (const auto key = request.field("x-api-key"))
        return trim(*key);
    throw Problem(401, "missing_api_key", "Present an API key: Authorization: Bearer pgb_…", "Authorization");
}

// The form in which PostgreSQL reads a bytea.
std::string sha256_as_bytea(std::string_view text) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256(reinterpret_cast<const unsigned char *>(text.data()), text.size(), digest);
    std::string hex = "\\x";
    for (const unsigned char byte : digest) {
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    return hex;
}

std::optional<std::string> named_tenant(const http::Request &request) {
    const auto tenant = request.field("x-tenant-id");
    if (tenant && !is_text(*tenant))
        throw Problem(400, "invalid_tenant_id", "The header X-Tenant-Id is not UTF-8.", "X-Tenant-Id");
    return tenant ? std::optional<std::string>(*tenant) : std::nullopt;
}

// What the caller's token says, if it presents one: keys have no dot.
std::optional<Session> session_of(const Call &call) {
    if (!presents_token(call))
        return std::nullopt;
    return call.tokens->verify(presented_key(call.request), std::time(nullptr));
}

}  // namespace

bool presents_token(const Call &call) {
    try {
        return call.tokens && presented_key(call.request).find('.') != std::string_view::npos;
    } catch (const Problem &) {
        return false;
    }
}

std::optional<std::string> caller_of(const Call &call) {
    try {
        if (auto session = session_of(call))
            return std::move(session->tenant);
        const Credential key = credential(call);
        return *key.key_sha256 + " " + key.tenant.value_or("");
    } catch (const Problem &) {
        return std::nullopt;  // the endpoint will say so
    }
}

Credential credential(const Call &call) {
    const std::string_view key = presented_key(call.request);
    if (session_of(call))
        throw Problem(403, "insufficient_scope", "This takes an API key: a token is not enough.");
    if (!key.starts_with("pgb_"))
        throw Problem(401, "invalid_api_key", "This is not an API key: they start with pgb_.");
    return {sha256_as_bytea(key), named_tenant(call.request)};
}

Credential credential_or_token(const Call &call, const std::string &scope) {
    auto session = session_of(call);
    if (!session)
        return credential(call);
    session->must_have(scope);
    if (const auto named = named_tenant(call.request); named && *named != session->tenant)
        throw Problem(403, "tenant_not_permitted", "The token belongs to another tenant.");
    return {std::nullopt, std::move(session->tenant)};
}

Statement begin_request(const Call &call, std::string scope) {
    Credential caller = credential_or_token(call, scope);
    if (!caller.key_sha256)
        return {"SELECT billing.begin_session($1::text)", {std::move(caller.tenant)}};
    return {"SELECT billing.begin_request($1::bytea, $2::text, $3::text)",
            {std::move(caller.key_sha256), std::move(caller.tenant), std::move(scope)}};
}

std::string_view trim(std::string_view text) {
    const auto first = text.find_first_not_of(" \t");
    return first == text.npos ? std::string_view()
                              : text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::string media_type(std::string_view content_type) {
    const auto semicolon = content_type.find(';');
    const std::string_view parameter =
        semicolon == content_type.npos ? std::string_view() : trim(content_type.substr(semicolon + 1));
    // RFC 8259 §8.1: JSON between systems is UTF-8; the parameter is redundant but common.
    if (!parameter.empty() && !equal_ignoring_case(parameter, "charset=utf-8") &&
        !equal_ignoring_case(parameter, "charset=\"utf-8\""))
        return {};
    std::string type(trim(content_type.substr(0, semicolon)));
    std::transform(type.begin(), type.end(), type.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return type;
}

std::string unquoted(std::string_view text) {
    text = trim(text);
    if (text.size() < 2 || text.front() != '"' || text.back() != '"')
        return std::string(text);
    std::string plain;
    for (std::size_t i = 1; i + 1 < text.size(); ++i) {
        if (text[i] == '\\' && i + 2 < text.size())
            ++i;
        plain += text[i];
    }
    return plain;
}

Json json_body(const http::Request &request) {
    if (media_type(request.field("content-type").value_or("")) != "application/json")
        throw Problem(415, "unsupported_media_type", "The body must be application/json in UTF-8.",
                      "Content-Type");
    return parse_json(request.body);
}

Json optional_json_body(const http::Request &request) {
    if (!request.body.empty())
        return json_body(request);
    Json none;
    none.kind = Json::Kind::object;
    return none;
}

std::optional<std::string> idempotency_key(const http::Request &request) {
    const auto field = request.field("idempotency-key");
    if (!field)
        return std::nullopt;
    if (!is_text(*field))
        throw Problem(400, "invalid_value", "The header Idempotency-Key is not UTF-8.", "Idempotency-Key");
    return unquoted(*field);
}

http::Response json_response(unsigned status, std::string json) {
    http::Response response;
    response.status = status;
    response.fields.emplace_back("Content-Type", "application/json");
    response.body = std::move(json);
    return response;
}

}  // namespace pg_billing::shim
