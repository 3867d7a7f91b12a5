#include "notify/gateway.hpp"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "notify/signature.hpp"

namespace pg_billing::notify {
namespace {

using nlohmann::json;

struct Values {
    std::string_view to, message, id;
};

std::string percent_encoded(std::string_view text) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    std::string encoded;
    for (const char c : text) {
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
            std::string_view("-._~").find(c) != std::string_view::npos) {
            encoded += c;
        } else {
            encoded += '%';
            encoded += kHex[static_cast<unsigned char>(c) >> 4];
            encoded += kHex[static_cast<unsigned char>(c) & 15];
        }
    }
    return encoded;
}

// Puts the values in place; what is put in is not looked at again.
template <class Encode>
std::string filled(std::string_view text, const Values &values, Encode encode) {
    const std::pair<std::string_view, std::string_view> names[] = {
        {"{to}", values.to}, {"{message}", values.message}, {"{id}", values.id}};
    std::string result;
    while (!text.empty()) {
        bool found = false;
        for (const auto &[name, value] : names) {
            if (!text.starts_with(name))
                continue;
            result += encode(value);
            text.remove_prefix(name.size());
            found = true;
            break;
        }
        if (!found) {
            result += text.front();
            text.remove_prefix(1);
        }
    }
    return result;
}

void fill_strings(json &value, const Values &values) {
    if (value.is_string())
        value =
            filled(value.get<std::string>(), values, [](std::string_view text) { return std::string(text); });
    else if (value.is_structured())
        for (json &part : value)
            fill_strings(part, values);
}

}  // namespace

GatewayRequest fill(std::string_view url, std::string_view body, std::string_view to,
                    std::string_view message, std::string_view id) {
    const Values values{to, message, id};
    GatewayRequest request;
    request.url = filled(url, values, percent_encoded);
    if (body.starts_with('{')) {
        json filled_in = json::parse(body, nullptr, false);
        if (filled_in.is_discarded())
            throw std::invalid_argument("pg_billing.sms_body is no JSON");
        fill_strings(filled_in, values);
        request.content_type = "application/json";
        request.body = filled_in.dump(-1, ' ', false, json::error_handler_t::replace);
    } else if (!body.empty()) {
        request.content_type = "application/x-www-form-urlencoded";
        request.body = filled(body, values, percent_encoded);
    }
    return request;
}

std::string authorization(std::string_view token) {
    return token.find(':') == std::string_view::npos ? "Bearer " + std::string(token)
                                                     : "Basic " + base64(token);
}

}  // namespace pg_billing::notify
