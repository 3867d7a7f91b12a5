#include "test/sandbox/catalog.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <stdexcept>

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::size_t kMaxDecimals = 12;

std::vector<std::string> split_path(const std::string &path) {
    std::vector<std::string> segments;
    for (std::size_t at = 1; at <= path.size();) {
        const std::size_t slash = std::min(path.find('/', at), path.size());
        segments.push_back(path.substr(at, slash - at));
        at = slash + 1;
    }
    return segments;
}

// Finds or makes the node that a[b][][c] names.
Param &node_at(Param &root, const std::string &name) {
    Param *node = &root;
    for (std::size_t at = 0; at < name.size();) {
        const bool bracketed = name[at] == '[';
        const std::size_t end = bracketed ? name.find(']', at) : std::min(name.find('[', at), name.size());
        const std::string part = bracketed ? name.substr(at + 1, end - at - 1) : name.substr(at, end - at);
        at = bracketed ? end + 1 : end;
        if (!part.empty()) {
            node = &node->members[part];
        } else {
            if (!node->element)
                node->element = std::make_unique<Param>();
            node = node->element.get();
        }
        node->name = name.substr(0, at);
    }
    return *node;
}

Param read_params(const json &table) {
    Param root;
    for (const json &row : table) {
        std::string name = row.at("name");
        // the API v2 takes JSON, and its members are written with dots
        for (std::size_t dot; (dot = name.find('.')) != name.npos;) {
            const std::size_t end = std::min(name.find_first_of(".[", dot + 1), name.size());
            name = name.substr(0, dot) + "[" + name.substr(dot + 1, end - dot - 1) + "]" + name.substr(end);
        }
        const std::string type = row.at("type");
        if (name.ends_with("[]"))
            name.resize(name.size() - 2);
        Param &param = node_at(root, name);
        param.name = name;
        param.type = type;
        param.required = row.value("required", false);
        param.unsets = row.value("empty_string_unsets", false);
        param.any_member = row.contains("subtree");
        param.max_length = row.value("maxLength", param.max_length);
        for (const auto &value : row.value("enum", json::array()))
            param.values.insert(value.get<std::string>());
        if (type.starts_with("array")) {
            if (!param.element)
                param.element = std::make_unique<Param>();
            param.element->type = type == "array" ? "string" : type.substr(6, type.size() - 7);
            param.element->name = name + "[]";
            param.element->values = param.values;
        }
    }
    return root;
}

std::string spelled(const std::string &parent, const std::string &key) {
    return parent.empty() ? key : parent + "[" + key + "]";
}

std::string one_of(const std::set<std::string> &values) {
    std::string list;
    std::size_t left = values.size();
    for (const std::string &value : values)
        list += value + (--left == 0 ? "" : left == 1 ? (values.size() > 2 ? ", or " : " or ") : ", ");
    return list;
}

bool whole_number(const std::string &text, std::int64_t &value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return !text.empty() && error == std::errc{} && end == text.data() + text.size();
}

bool decimal(const std::string &text) {
    const std::string_view number = std::string_view(text).substr(text.starts_with('-') ? 1 : 0);
    const std::size_t point = std::min(number.find('.'), number.size());
    const auto digits = [](std::string_view part) {
        return !part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos;
    };
    return digits(number.substr(0, point)) &&
           (point == number.size() ||
            (digits(number.substr(point + 1)) && number.size() - point - 1 <= kMaxDecimals));
}

json typed(const Param &param, const std::string &name, const json &value);

json scalar(const Param &param, const std::string &name, const std::string &text) {
    std::int64_t whole = 0;
    const bool is_whole = whole_number(text, whole);
    if (text.empty()) {
        if (!param.unsets)
            throw invalid("You passed an empty string for '" + name +
                              "'. We assume empty values are an attempt to unset a parameter; however '" +
                              name + "' cannot be unset. You should remove '" + name +
                              "' from your request or supply a non-empty value.",
                          name, "parameter_invalid_empty");
        return "";
    }
    if (text.size() > param.max_length)
        throw invalid("Invalid string: " + text.substr(0, 20) + "...; must be at most " +
                          std::to_string(param.max_length) + " characters",
                      name, "parameter_invalid_string_max_length");
    if (param.type.find("integer") != std::string::npos && is_whole)
        return whole;
    if (param.type.find("enum") != std::string::npos) {
        if (!param.values.empty() && !param.values.contains(text))
            throw invalid("Invalid " + name + ": must be one of " + one_of(param.values), name);
        return text;
    }
    if (param.type == "boolean") {
        if (text != "true" && text != "false")
            throw invalid("Invalid boolean: " + text, name, "parameter_invalid_boolean");
        return text == "true";
    }
    if (param.type.find("integer") != std::string::npos)
        throw invalid("Invalid integer: " + text, name, "parameter_invalid_integer");
    if ((param.type == "decimal_string" || param.type == "number") && !decimal(text))
        throw invalid("Invalid decimal: " + text + "; must contain at maximum " +
                          std::to_string(kMaxDecimals) + " decimal places.",
                      name, "parameter_invalid_decimal");
    return text;
}

// Metadata's own limits: docs.stripe.com/metadata.
json typed_map(const Param &param, const std::string &name, const json &value) {
    json out = json::object();
    for (const auto &[key, member] : value.items()) {
        const std::string full = spelled(name, key);
        if (!member.is_string())
            throw invalid("Invalid value for " + full + ": must be a string", full);
        const std::string &text = member.get_ref<const std::string &>();
        if (param.name.ends_with("metadata") && (key.size() > 40 || text.size() > 500 || value.size() > 50))
            throw invalid("Metadata may have up to 50 keys of 40 characters with values of 500 characters",
                          full);
        out[key] = text;
    }
    return out;
}

json typed_object(const Param &param, const std::string &name, const json &value) {
    json out = json::object();
    for (const auto &[key, member] : value.items()) {
        const std::string full = spelled(name, key);
        const auto known = param.members.find(key);
        if (known == param.members.end()) {
            if (!param.any_member)
                throw invalid("Received unknown parameter: " + full, full, "parameter_unknown");
            out[key] = member;
            continue;
        }
        out[key] = typed(known->second, full, member);
    }
    for (const auto &[key, member] : param.members)
        if (member.required && !out.contains(key))
            throw invalid("Missing required param: " + spelled(name, key) + ".", spelled(name, key),
                          "parameter_missing");
    return out;
}

json typed(const Param &param, const std::string &name, const json &value) {
    if (value.is_string()) {
        const std::string &text = value.get_ref<const std::string &>();
        const bool structured =
            param.type == "object" || param.type == "map" || param.type.starts_with("array");
        if (structured && !(text.empty() && param.unsets))
            throw invalid(param.type.starts_with("array") ? "Invalid array" : "Invalid object", name);
        return structured ? json("") : scalar(param, name, text);
    }
    if (param.type == "map")
        return typed_map(param, name, value);
    if (param.type.starts_with("array")) {
        if (!value.is_array())
            throw invalid("Invalid array", name);
        json out = json::array();
        for (std::size_t i = 0; i < value.size(); ++i)
            out.push_back(typed(*param.element, spelled(name, std::to_string(i)), value[i]));
        return out;
    }
    if (param.type.find("object") == std::string::npos)
        throw invalid(
            "Invalid " + (param.type == "string" ? std::string("string") : param.type) + ": " + value.dump(),
            name);
    return typed_object(param, name, value);
}

// Whether a handler honours the parameter: it, something it lies in, or (for a container) something in it is
// listed.
bool honoured(const std::set<std::string> &modelled, const std::string &name) {
    return name == "expand" || name == "expand[]" ||
           std::any_of(modelled.begin(), modelled.end(), [&](const std::string &listed) {
               return name == listed || name.starts_with(listed + "[") || listed.starts_with(name + "[");
           });
}

void require_modelled(const Endpoint &endpoint, const Param &param, const json &value) {
    if (!param.name.empty() && !honoured(endpoint.modelled, param.name))
        throw not_modelled("the parameter " + param.name + " of " + endpoint.method + " " + endpoint.path);
    if (value.is_array() && param.element)
        for (const json &element : value)
            require_modelled(endpoint, *param.element, element);
    if (value.is_object())
        for (const auto &[key, member] : value.items())
            if (const auto known = param.members.find(key); known != param.members.end())
                require_modelled(endpoint, known->second, member);
}

}  // namespace

std::string Call::text(const char *name, const std::string &fallback) const {
    const auto value = params.find(name);
    return value != params.end() && value->is_string() ? value->get<std::string>() : fallback;
}

Catalog::Catalog(const std::string &file) {
    std::ifstream in(file);
    if (!in)
        throw std::runtime_error("cannot read " + file);
    const json table = json::parse(in);
    for (const json &row : table.at("endpoints")) {
        if (!row.at("path").is_string() || !row.at("path").get_ref<const std::string &>().starts_with("/v"))
            continue;
        auto endpoint = std::make_unique<Endpoint>();
        endpoint->method = row.at("method");
        endpoint->path = row.at("path");
        endpoint->segments = split_path(endpoint->path);
        endpoint->removed_in = row.value("removed_in", "");
        endpoint->replaced_by = row.value("replaced_by", "");
        endpoint->params = read_params(row.at("params"));
        endpoints_.push_back(std::move(endpoint));
    }
}

void Catalog::model(const std::string &name, std::set<std::string> params, Handler handler) {
    for (const auto &endpoint : endpoints_)
        if (endpoint->method + " " + endpoint->path == name) {
            endpoint->handler = std::move(handler);
            endpoint->modelled = std::move(params);
            return;
        }
    throw std::logic_error("stripe-endpoints.json has no " + name);
}

const Endpoint *Catalog::find(const std::string &method, const std::string &path,
                              std::vector<std::string> &args) const {
    const std::vector<std::string> segments = split_path(path);
    const Endpoint *best = nullptr;
    for (const auto &endpoint : endpoints_) {
        if (endpoint->method != method || endpoint->segments.size() != segments.size())
            continue;
        std::vector<std::string> found;
        bool matches = true;
        for (std::size_t i = 0; i < segments.size() && matches; ++i) {
            const bool placeholder = endpoint->segments[i].starts_with('{');
            matches = placeholder ? !segments[i].empty() : endpoint->segments[i] == segments[i];
            if (placeholder)
                found.push_back(segments[i]);
        }
        if (matches && (!best || found.size() < args.size())) {
            best = endpoint.get();
            args = std::move(found);
        }
    }
    return best;
}

json Catalog::check(const Endpoint &endpoint, const json &params) {
    json out = typed_object(endpoint.params, "", params);
    require_modelled(endpoint, endpoint.params, out);
    return out;
}

}  // namespace pg_billing::sandbox
