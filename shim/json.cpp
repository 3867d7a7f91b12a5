#include "shim/json.hpp"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

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
    bool number_float(number_float_t, const string_t &text) override {
        if (!is_decimal(text))  // PostgreSQL's numeric has its limits, too
            throw Problem(400, "malformed_json", "A number in the request's body has too many digits.");
        return add(Json::Kind::number, text);
    }
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

// A date-time of RFC 3339 §5.6 that exists, and that PostgreSQL reads: so no time can fail in the database.
bool is_timestamp(std::string_view text) {
    std::size_t at = 0;
    // Reads that many digits, and returns their value, or -1.
    const auto number = [&](std::size_t count) {
        int value = 0;
        for (const std::size_t end = at + count; at < end; ++at) {
            if (at >= text.size() || text[at] < '0' || text[at] > '9')
                return -1;
            value = value * 10 + (text[at] - '0');
        }
        return value;
    };
    const auto one_of = [&](std::string_view characters) {
        return at < text.size() && characters.find(text[at++]) != characters.npos;
    };
    const int year = number(4);
    if (year < 1 || !one_of("-"))
        return false;
    const int month = number(2);
    if (month < 1 || !one_of("-"))
        return false;
    const int day = number(2);
    if (day < 1 || !one_of("Tt "))
        return false;
    if (!(std::chrono::year(year) / month / day).ok())
        return false;
    const int hour = number(2);
    if (hour < 0 || hour > 23 || !one_of(":"))
        return false;
    const int minute = number(2);
    if (minute < 0 || minute > 59 || !one_of(":"))
        return false;
    const int second = number(2);
    if (second < 0 || second > 60)
        return false;
    if (at < text.size() && text[at] == '.') {
        const std::size_t from = ++at;
        while (at < text.size() && text[at] >= '0' && text[at] <= '9')
            ++at;
        if (at == from || at - from > 9)
            return false;
    }
    if (!one_of("Zz+-"))
        return false;
    if (text[at - 1] == '+' || text[at - 1] == '-') {
        const int offset = number(2);
        if (offset < 0 || offset > 15 || !one_of(":"))
            return false;
        const int minutes = number(2);
        if (minutes < 0 || minutes > 59)
            return false;
    }
    return at == text.size();
}

}  // namespace

Json parse_json(std::string_view text) {
    Builder builder;
    nlohmann::json::sax_parse(text, &builder);
    return builder.take();
}

void write_json(std::string &to, std::string_view text) {
    // Most texts need no escape; to ask the library about them takes longer than all the rest of an answer.
    if (std::ranges::all_of(text,
                            [](const char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; })) {
        to += '"';
        to += text;
        to += '"';
        return;
    }
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

std::optional<std::string> string_member(const Json &value, std::string_view name) {
    for (std::size_t i = 0; i < value.names.size(); ++i)
        if (value.names[i] == name && value.items[i].kind == Json::Kind::string)
            return value.items[i].text;
    return std::nullopt;
}

bool is_text(std::string_view bytes) {
    try {
        return bytes.find('\0') == bytes.npos && !nlohmann::json(bytes).dump().empty();
    } catch (const nlohmann::json::type_error &) {  // 316: invalid UTF-8
        return false;
    }
}

bool is_decimal(const std::string &text) {
    if (text.size() > 1000)
        return false;
    std::size_t at = text.starts_with('-') ? 1 : 0;
    const auto digits = [&] {
        const std::size_t from = at;
        while (at < text.size() && text[at] >= '0' && text[at] <= '9')
            ++at;
        return at - from;
    };
    const bool zero = at < text.size() && text[at] == '0';
    const std::size_t whole = digits();
    if (whole == 0 || (zero && whole > 1))
        return false;
    if (at < text.size() && text[at] == '.' && (++at, digits() == 0))
        return false;
    if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
        ++at;
        if (at < text.size() && (text[at] == '-' || text[at] == '+'))
            ++at;
        const std::size_t exponent = digits();
        if (exponent == 0 || exponent > 4)
            return false;
    }
    return at == text.size();
}

Members::Members(const Json &object) : object_(object) {
    if (object.kind != Json::Kind::object)
        throw Problem(400, "invalid_type", "A JSON object is expected here.");
}

Members::Members(const Json &object, std::initializer_list<std::string_view> known) : Members(object) {
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
    if (value && !is_timestamp(*value))
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
