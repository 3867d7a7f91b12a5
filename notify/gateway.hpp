// A text message as an HTTP request to a gateway, whose form the operator describes by two templates: a URL and a body, in
// which {to}, {message} and {id} stand for the number, the text and the notification's id.
#pragma once

#include <string>
#include <string_view>

namespace pg_billing::notify {

struct GatewayRequest {
    std::string url;
    std::string content_type;  // empty: no body, so a GET
    std::string body;
};

// Fills in the templates: in the URL and in a form (a=b&c=d) percent-encoded, in the strings of a JSON object as they are.
// Throws std::invalid_argument if a body that begins with a brace is no JSON.
GatewayRequest fill(std::string_view url, std::string_view body, std::string_view to,
                    std::string_view message, std::string_view id);

// Returns the Authorization header's value for a gateway's token: Basic for user:password, else Bearer.
std::string authorization(std::string_view token);

}  // namespace pg_billing::notify
