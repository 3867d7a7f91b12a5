#include "shim/cloud_events.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>

#include "shim/caller.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace {

constexpr std::string_view kHeaderPrefix = "ce-";

Problem invalid(const std::string &attribute, const std::string &rule) {
    return Problem(400, "invalid_value", "The attribute \"" + attribute + "\" " + rule + ".", attribute);
}

bool is_letter_or_digit(char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

// RFC 3986: the characters of a URI reference. What they mean is the producer's affair.
bool is_uri_reference(std::string_view text) {
    constexpr std::string_view others = "-._~:/?#[]@!$&'()*+,;=%";
    const auto allowed = [&](unsigned char c) {
        return std::isalnum(c) || others.find(static_cast<char>(c)) != others.npos;
    };
    return !text.empty() && std::all_of(text.begin(), text.end(), allowed);
}

bool is_json_type(std::string_view media_type) {
    return media_type == "application/json" || media_type == "text/json" || media_type.ends_with("+json");
}

// An optional attribute that must not be empty if it is there.
std::optional<std::string> text_of(const Members &attributes, const std::string &name) {
    auto text = attributes.text(name);
    if (text && text->empty())
        throw invalid(name, "must not be empty");
    return text;
}

std::string required(const Members &attributes, const std::string &name) {
    if (auto text = text_of(attributes, name))
        return std::move(*text);
    throw Problem(400, "missing_field", "The attribute \"" + name + "\" is missing.", name);
}

// CloudEvents §3.1: names of lower-case letters and digits; types of the JSON format §2.2, where a number is a 32-bit
// integer.
void check_attribute(const std::string &name, const Json &value) {
    if (name.empty() || !std::all_of(name.begin(), name.end(), is_letter_or_digit))
        throw Problem(
            400, "unknown_field",
            "\"" + name + "\" is no attribute's name: these have only lower-case letters and digits.", name);
    switch (value.kind) {
        case Json::Kind::null:
        case Json::Kind::boolean:
        case Json::Kind::string:
            return;
        case Json::Kind::number:
            if (value.text.size() <= 11 && value.text.find_first_of(".eE") == std::string::npos &&
                std::stoll(value.text) >= INT32_MIN && std::stoll(value.text) <= INT32_MAX)
                return;
            break;
        default:
            break;
    }
    throw Problem(400, "invalid_type",
                  "The attribute \"" + name + "\" must be a string, a boolean or a 32-bit integer.", name);
}

std::string key_of(const std::string &source, const std::string &id) {
    return source + " " + id;  // no URI has a space, so no two pairs make the same key
}

// Takes the quantity out of the data; the rest is properties.
void take_data(const Json &data, Event &event) {
    if (data.kind == Json::Kind::null)
        return;
    if (data.kind != Json::Kind::object)
        throw Problem(400, "invalid_type", "The member \"data\" must be an object.", "data");
    event.quantity = Members(data).decimal("quantity");
    Json rest;
    rest.kind = Json::Kind::object;
    for (std::size_t i = 0; i < data.names.size(); ++i)
        if (data.names[i] != "quantity") {
            rest.names.push_back(data.names[i]);
            rest.items.push_back(data.items[i]);
        }
    if (rest.names.empty())
        return;
    event.properties.emplace();
    write_json(*event.properties, rest);
}

// Reads the attributes, which are strings, booleans and integers.
Event read_attributes(const Members &attributes) {
    if (required(attributes, "specversion") != "1.0")
        throw invalid("specversion", "must be 1.0");
    const std::string source = required(attributes, "source");
    if (!is_uri_reference(source))
        throw invalid("source", "must be a URI reference");
    if (const auto schema = text_of(attributes, "dataschema");
        schema && (!is_uri_reference(*schema) || schema->find(':') == schema->npos))
        throw invalid("dataschema", "must be an absolute URI");
    Event event;
    event.metric = required(attributes, "type");
    event.idempotency_key = key_of(source, required(attributes, "id"));
    event.tenant = text_of(attributes, "subject");
    event.occurred_at = attributes.timestamp("time");
    return event;
}

std::string decode_base64(const std::string &text) {
    std::string bytes(text.size() / 4 * 3, '\0');
    const std::size_t padding = text.size() - (text.find_last_not_of('=') + 1);
    if (text.size() % 4 != 0 || padding > 2 ||
        EVP_DecodeBlock(reinterpret_cast<unsigned char *>(bytes.data()),
                        reinterpret_cast<const unsigned char *>(text.data()),
                        static_cast<int>(text.size())) != static_cast<int>(bytes.size()))
        throw Problem(400, "invalid_value", "The member \"data_base64\" is not Base64.", "data_base64");
    bytes.resize(bytes.size() - padding);
    return bytes;
}

std::string unpercented(const std::string &header, const std::string &value) {
    auto text = http::percent_decode(unquoted(value));
    if (!text || !is_text(*text))
        throw Problem(400, "invalid_value", "The header " + header + " is not percent-encoded UTF-8.",
                      header);
    return std::move(*text);
}

}  // namespace

CloudEventsMode cloud_events_mode(const http::Request &request) {
    const std::string_view given = request.field("content-type").value_or("");
    const std::string type = media_type(given);
    if (type == "application/cloudevents+json")
        return CloudEventsMode::structured;
    if (type == "application/cloudevents-batch+json")
        return CloudEventsMode::batched;
    if (type.starts_with("application/cloudevents"))
        throw Problem(415, "unsupported_media_type", "CloudEvents are read in the JSON format, in UTF-8.",
                      "Content-Type");
    const bool binary = std::any_of(request.fields.begin(), request.fields.end(),
                                    [](const auto &field) { return field.first.starts_with(kHeaderPrefix); });
    return binary ? CloudEventsMode::binary : CloudEventsMode::none;
}

Event read_cloud_event(const Json &json) {
    const Members members(json);
    const Json *data = nullptr;
    bool encoded = false;
    for (std::size_t i = 0; i < json.names.size(); ++i) {
        const bool base64 = json.names[i] == "data_base64";
        if (!base64 && json.names[i] != "data") {
            check_attribute(json.names[i], json.items[i]);
            continue;
        }
        if (data)
            throw Problem(400, "duplicate_field", "An event has either \"data\" or \"data_base64\".",
                          "data_base64");
        data = &json.items[i];
        encoded = base64;
    }
    Event event = read_attributes(members);
    const auto content = text_of(members, "datacontenttype");
    if (content ? !is_json_type(media_type(*content)) : encoded)
        throw invalid("datacontenttype", "must be application/json");
    if (encoded)
        take_data(parse_json(decode_base64(members.text("data_base64").value_or(""))), event);
    else if (data)
        take_data(*data, event);
    return event;
}

Event read_binary_cloud_event(const http::Request &request) {
    Json attributes;
    attributes.kind = Json::Kind::object;
    for (const auto &[name, value] : request.fields) {
        if (!name.starts_with(kHeaderPrefix))
            continue;
        const std::string attribute = name.substr(kHeaderPrefix.size());
        if (std::find(attributes.names.begin(), attributes.names.end(), attribute) != attributes.names.end())
            throw Problem(400, "duplicate_field", "The header " + name + " occurs twice.", name);
        attributes.names.push_back(attribute);
        Json &item = attributes.items.emplace_back();
        item.kind = Json::Kind::string;
        item.text = unpercented(name, value);
    }
    Event event;
    try {
        for (std::size_t i = 0; i < attributes.names.size(); ++i)
            check_attribute(attributes.names[i], attributes.items[i]);
        const Members members(attributes);
        event = read_attributes(members);
        if (members.text("datacontenttype"))
            throw invalid("datacontenttype", "is the Content-Type header in binary mode");
    } catch (Problem &problem) {
        problem.field.insert(0, kHeaderPrefix);
        throw;
    }
    if (request.body.empty())
        return event;
    if (!is_json_type(media_type(request.field("content-type").value_or(""))))
        throw Problem(415, "unsupported_media_type", "The event's data must be application/json in UTF-8.",
                      "Content-Type");
    take_data(parse_json(request.body), event);
    return event;
}

std::optional<std::string> cloud_event_key(const Json &json) {
    const std::string source = string_member(json, "source").value_or("");
    const std::string id = string_member(json, "id").value_or("");
    return source.empty() || id.empty() ? std::nullopt : std::optional(key_of(source, id));
}

std::string cloud_event_attribute(const std::string &field) {
    constexpr std::pair<std::string_view, std::string_view> names[] = {{"metric", "type"},
                                                                       {"idempotencyKey", "id"},
                                                                       {"occurredAt", "time"},
                                                                       {"properties", "data"},
                                                                       {"X-Tenant-Id", "subject"}};
    for (const auto &[ours, theirs] : names)
        if (field == ours)
            return std::string(theirs);
    return field;
}

}  // namespace pg_billing::shim
