#include "stripe/form.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace pg_billing::stripe {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 16;  // Stripe's deepest parameter has seven levels

bool unreserved(unsigned char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.' || c == '~';
}

void append_encoded(std::string &out, std::string_view text, bool brackets_stay) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    for (const unsigned char c : text) {
        if (unreserved(c) || (brackets_stay && (c == '[' || c == ']'))) {
            out += static_cast<char>(c);
        } else {
            out += '%';
            out += kHex[c >> 4];
            out += kHex[c & 15];
        }
    }
}

std::string scalar_text(const std::string &key, const json &value) {
    switch (value.type()) {
        case json::value_t::null:
            return "";
        case json::value_t::string:
            return value.get<std::string>();
        case json::value_t::boolean:
            return value.get<bool>() ? "true" : "false";
        case json::value_t::number_integer:
        case json::value_t::number_unsigned:
            return value.dump();
        default:
            throw FormError("parameter " + key + " is a floating-point number: pass decimals as strings");
    }
}

void append(std::string &out, const std::string &key, const json &value) {
    if (value.is_structured()) {
        for (const auto &[name, child] : value.items())
            append(out, key + "[" + name + "]", child);
        return;
    }
    const std::string text = scalar_text(key, value);
    if (!out.empty())
        out += '&';
    append_encoded(out, key, true);
    out += '=';
    append_encoded(out, text, false);
}

int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

std::string percent_decoded(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i] == '+' ? ' ' : text[i];
            continue;
        }
        const int high = i + 2 < text.size() ? hex_digit(text[i + 1]) : -1;
        const int low = i + 2 < text.size() ? hex_digit(text[i + 2]) : -1;
        if (high < 0 || low < 0)
            throw FormError("malformed percent-encoding in " + std::string(text));
        out += static_cast<char>(high * 16 + low);
        i += 2;
    }
    return out;
}

// Splits items[0][price] into items, 0, price.
std::vector<std::string> key_parts(const std::string &key) {
    const std::size_t bracket = key.find('[');
    std::vector<std::string> parts{key.substr(0, bracket)};
    for (std::size_t at = bracket; at < key.size();) {
        const std::size_t close = key.find(']', at);
        if (key[at] != '[' || close == std::string::npos)
            throw FormError("malformed parameter name " + key);
        parts.push_back(key.substr(at + 1, close - at - 1));
        at = close + 1;
    }
    if (parts[0].empty() || parts.size() > kMaxDepth)
        throw FormError("malformed parameter name " + key);
    return parts;
}

void insert(json &root, const std::string &key, std::string value) {
    json *node = &root;
    for (const std::string &part : key_parts(key)) {
        if (node->is_null())
            *node = json::object();
        if (!node->is_object())
            throw FormError("parameter " + key + " is given both as a value and as an object");
        node = &(*node)[part.empty() ? std::to_string(node->size()) : part];
    }
    if (!node->is_null())
        throw FormError("parameter " + key + " is given twice");
    *node = std::move(value);
}

// Turns every object whose keys are 0 to n-1 into the array it stands for.
void restore_arrays(json &node) {
    if (!node.is_object())
        return;
    for (auto &child : node)
        restore_arrays(child);
    json array = json::array();
    for (std::size_t i = 0; i < node.size(); ++i) {
        const auto element = node.find(std::to_string(i));
        if (element == node.end())
            return;
        array.push_back(*element);
    }
    if (!array.empty())
        node = std::move(array);
}

}  // namespace

std::string encode_form(const json &params) {
    std::string out;
    for (const auto &[name, value] : params.items())
        append(out, name, value);
    return out;
}

json decode_form(std::string_view text) {
    json root = json::object();
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('&'), text.size());
        const std::string_view pair = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        if (pair.empty())
            continue;
        const std::size_t equals = std::min(pair.find('='), pair.size());
        insert(root, percent_decoded(pair.substr(0, equals)),
               percent_decoded(pair.substr(std::min(equals + 1, pair.size()))));
    }
    for (auto &child : root)
        restore_arrays(child);
    return root;
}

}  // namespace pg_billing::stripe
