#include "shim/json.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>

#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace {

constexpr std::size_t kMaxDepth = 32;
constexpr std::size_t kMaxMembers = 200;  // of one object; also bounds the search for duplicates

// Receives the parser's events and builds the tree; a false return would hide why, so it throws Problems.
class Builder final : public nlohmann::json::json_sax_t {
  public:
    bool null() override { return add(Json::Kind::null, "null"); }
    bool boolean(bool value) override { return add(Json::Kind::boolean, value ? "true" : "false"); }
    bool number_integer(number_integer_t value) override {
        return add(Json::Kind::number, std::to_string(value));
    }
    bool number_unsigned(number_unsigned_t value) override {
        return add(Json::Kind::number, std::to_string(value));
    }
    bool number_float(number_float_t, const string_t &text) override { return add(Json::Kind::number, text); }
    bool string(string_t &value) override {
        refuse_nul(value);
        return add(Json::Kind::string, value);
    }
    bool binary(binary_t &) override { return false; }  // never in text
    bool start_object(std::size_t) override { return open(Json::Kind::object); }
    bool start_array(std::size_t) override { return open(Json::Kind::array); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t &name) override {
        refuse_nul(name);
        std::vector<std::string> &names = stack_.back()->names;
        if (std::find(names.begin(), names.end(), name) != names.end())
            throw Problem(400, "duplicate_field", "The member \"" + name + "\" occurs twice.", name);
        if (names.size() >= kMaxMembers)
            throw Problem(400, "malformed_json", "An object in the request's body has too many members.");
        names.push_back(name);
        return true;
    }
    bool parse_error(std::size_t position, const std::string &, const nlohmann::json::exception &e) override {
        if (e.id == 406)
            throw Problem(400, "malformed_json", "A number in the request's body is too large.");
        throw Problem(400, "malformed_json",
                      "The request's body is not JSON in UTF-8: it stops making sense at byte " +
                          std::to_string(position) + ".");
    }

    Json take() { return std::move(root_); }

  private:
    void refuse_nul(const std::string &text) const {
        if (text.find('\0') == std::string::npos)
            return;
        const bool in_member = !stack_.empty() && !stack_.back()->names.empty();
        throw Problem(400, "invalid_value", "A text must not contain the character U+0000.",
                      in_member ? stack_.back()->names.back() : "");
    }

    // Places a value where the parser is: at the top, or as the next item of the innermost container.
    Json &place() { return stack_.empty() ? root_ : stack_.back()->items.emplace_back(); }

    bool add(Json::Kind kind, std::string text) {
        Json &value = place();
        value.kind = kind;
        value.text = std::move(text);
        return true;
    }

    bool open(Json::Kind kind) {
        if (stack_.size() >= kMaxDepth)
            throw Problem(400, "malformed_json", "The request's body is nested too deeply.");
        Json &value = place();
        value.kind = kind;
        // Stable while it is on the stack: its parent gains no further item before it is closed.
        stack_.push_back(&value);
        return true;
    }

    bool close() {
        stack_.pop_back();
        return true;
    }

    Json root_;
    std::vector<Json *> stack_;
};

}  // namespace

Json parse_json(std::string_view text) {
    Builder builder;
    nlohmann::json::sax_parse(text, &builder);
    return builder.take();
}

void write_json(std::string &to, std::string_view text) {
    to += nlohmann::json(text).dump();
}

void write_json(std::string &to, const Json &value) {
    switch (value.kind) {
        case Json::Kind::string:
            write_json(to, std::string_view(value.text));
            return;
        case Json::Kind::array:
        case Json::Kind::object:
            break;
        default:
            to += value.text;
            return;
    }
    const bool object = value.kind == Json::Kind::object;
    to += object ? '{' : '[';
    for (std::size_t i = 0; i < value.items.size(); ++i) {
        if (i > 0)
            to += ',';
        if (object) {
            write_json(to, std::string_view(value.names[i]));
            to += ':';
        }
        write_json(to, value.items[i]);
    }
    to += object ? '}' : ']';
}

bool is_decimal(const std::string &text) {
    static const std::regex decimal("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]{1,4})?");
    return text.size() <= 1000 && std::regex_match(text, decimal);
}

Members::Members(const Json &object, std::initializer_list<std::string_view> known) : object_(object) {
    if (object.kind != Json::Kind::object)
        throw Problem(400, "invalid_type", "A JSON object is expected here.");
    for (const std::string &name : object.names)
        if (std::find(known.begin(), known.end(), name) == known.end())
            throw Problem(400, "unknown_field", "There is no member \"" + name + "\" here.", name);
}

const Json *Members::find(std::string_view name) const {
    const auto found = std::find(object_.names.begin(), object_.names.end(), name);
    if (found == object_.names.end())
        return nullptr;
    const Json &value = object_.items[static_cast<std::size_t>(found - object_.names.begin())];
    return value.kind == Json::Kind::null ? nullptr : &value;
}

const Json *Members::find(std::string_view name, Json::Kind kind, std::string_view expected) const {
    const Json *value = find(name);
    if (value && value->kind != kind)
        throw Problem(400, "invalid_type",
                      "The member \"" + std::string(name) + "\" must be " + std::string(expected) + ".",
                      std::string(name));
    return value;
}

std::optional<std::string> Members::text(std::string_view name) const {
    const Json *value = find(name, Json::Kind::string, "a string");
    return value ? std::optional(value->text) : std::nullopt;
}

std::string Members::required_text(std::string_view name) const {
    if (const auto value = text(name))
        return *value;
    throw Problem(400, "missing_field", "The member \"" + std::string(name) + "\" is missing.",
                  std::string(name));
}

std::optional<std::string> Members::integer(std::string_view name) const {
    const Json *value = find(name, Json::Kind::number, "an integer");
    if (!value)
        return std::nullopt;
    if (value->text.find_first_of(".eE") != std::string::npos)
        throw Problem(400, "invalid_type", "The member \"" + std::string(name) + "\" must be an integer.",
                      std::string(name));
    return value->text;
}

std::optional<std::string> Members::boolean(std::string_view name) const {
    const Json *value = find(name, Json::Kind::boolean, "true or false");
    return value ? std::optional(value->text) : std::nullopt;
}

std::optional<std::string> Members::decimal(std::string_view name) const {
    const Json *value = find(name);
    if (!value)
        return std::nullopt;
    const bool fits = value->kind == Json::Kind::number || value->kind == Json::Kind::string;
    if (!fits || !is_decimal(value->text))
        throw Problem(400, "invalid_type",
                      "The member \"" + std::string(name) + "\" must be a decimal number.",
                      std::string(name));
    return value->text;
}

std::optional<std::string> Members::timestamp(std::string_view name) const {
    const auto value = text(name);
    static const std::regex rfc3339(
        "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt "
        "][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?([Zz]|[-+][0-9]{2}:[0-9]{2})");
    if (value && !std::regex_match(*value, rfc3339))
        throw Problem(
            400, "invalid_type",
            "The member \"" + std::string(name) + "\" must be a date and time such as 2026-01-31T12:00:00Z.",
            std::string(name));
    return value;
}

std::optional<std::string> Members::object(std::string_view name) const {
    const Json *value = find(name, Json::Kind::object, "an object");
    if (!value)
        return std::nullopt;
    std::string text;
    write_json(text, *value);
    return text;
}

}  // namespace pg_billing::shim
