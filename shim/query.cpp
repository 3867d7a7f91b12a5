#include "shim/query.hpp"

#include <algorithm>
#include <charconv>

#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace {

std::string decoded(std::string_view text) {
    auto plain = http::percent_decode(text, true);
    if (!plain)
        throw Problem(400, "malformed_request", "The query has a malformed percent-encoding.");
    return std::move(*plain);
}

Problem wrong_type(std::string_view name, const std::string &expected) {
    return Problem(400, "invalid_type",
                   "The parameter \"" + std::string(name) + "\" must be " + expected + ".",
                   std::string(name));
}

}  // namespace

Query::Query(const http::Request &request, std::initializer_list<std::string_view> known) {
    std::string_view rest = request.query;
    while (!rest.empty()) {
        const std::string_view one = rest.substr(0, rest.find('&'));
        rest.remove_prefix(std::min(one.size() + 1, rest.size()));
        if (one.empty())
            continue;
        const auto equals = std::min(one.find('='), one.size());
        std::string name = decoded(one.substr(0, equals));
        std::string value = decoded(one.substr(std::min(equals + 1, one.size())));
        if (std::find(known.begin(), known.end(), name) == known.end())
            throw Problem(400, "unknown_parameter", "There is no parameter \"" + name + "\" here.", name);
        if (text(name))
            throw Problem(400, "duplicate_parameter", "The parameter \"" + name + "\" occurs twice.", name);
        if (value.find('\0') != value.npos)
            throw Problem(400, "invalid_value", "A text must not contain the character U+0000.", name);
        parameters_.emplace_back(std::move(name), std::move(value));
    }
}

std::optional<std::string> Query::text(std::string_view name) const {
    for (const auto &[key, value] : parameters_)
        if (key == name)
            return value;
    return std::nullopt;
}

std::string Query::required_text(std::string_view name) const {
    if (auto value = text(name))
        return std::move(*value);
    throw Problem(400, "missing_parameter", "The parameter \"" + std::string(name) + "\" is missing.",
                  std::string(name));
}

std::optional<std::string> Query::decimal(std::string_view name) const {
    auto value = text(name);
    if (value && !is_decimal(*value))
        throw wrong_type(name, "a decimal number");
    return value;
}

std::optional<std::string> Query::integer(std::string_view name, int least, int most) const {
    const auto value = text(name);
    if (!value)
        return std::nullopt;
    int number = 0;
    const char *end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, number);
    if (error != std::errc() || stop != end || number < least || number > most)
        throw wrong_type(name, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return std::to_string(number);
}

std::optional<std::string> Query::boolean(std::string_view name) const {
    auto value = text(name);
    if (value && *value != "true" && *value != "false")
        throw wrong_type(name, "true or false");
    return value;
}

std::optional<std::string> Query::boolean(std::string_view name, const Members &body) const {
    auto here = boolean(name), there = body.boolean(name);
    if (here && there)
        throw Problem(400, "duplicate_parameter",
                      "\"" + std::string(name) + "\" is both in the query and in the body.",
                      std::string(name));
    return here ? here : there;
}

void refuse_query(const http::Request &request) {
    const Query none(request, {});
}

}  // namespace pg_billing::shim
