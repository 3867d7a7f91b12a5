// Request bodies: strict JSON whose numbers stay the text they were written as.
//
// Quantities are decimals of any size, so no number passes through a double. Refused with a Problem that names the
// member: duplicate names (RFC 7493), members nobody knows, wrong types, invalid UTF-8, U+0000 (PostgreSQL has no
// such character), nesting deeper than 32, objects of more than 200 members.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pg_billing::shim {

struct Json {
    enum class Kind { null, boolean, number, string, array, object };

    Kind kind = Kind::null;
    std::string text;                // a string's characters; a number or boolean as JSON writes it
    std::vector<std::string> names;  // an object's, in order
    std::vector<Json> items;         // an array's items, or an object's values by the order of `names`
};

// Parses a whole body, or throws a Problem.
Json parse_json(std::string_view text);

// Appends a value as JSON text.
void write_json(std::string &to, const Json &value);

// Appends a string as a JSON string.
void write_json(std::string &to, std::string_view text);

// Returns a member that is a string, of a value that may be anything.
std::optional<std::string> string_member(const Json &value, std::string_view name);

// Whether PostgreSQL can hold it: UTF-8 without U+0000.
bool is_text(std::string_view bytes);

// Whether a text is a decimal number as JSON writes one, of a length that can be meant.
bool is_decimal(const std::string &text);

// An object's members by name and type. A member that is null counts as absent. Throws Problems.
class Members {
  public:
    // Refuses anything but an object with no other members than those known.
    Members(const Json &object, std::initializer_list<std::string_view> known);
    // Refuses anything but an object.
    explicit Members(const Json &object);

    std::string required_text(std::string_view name) const;
    std::optional<std::string> text(std::string_view name) const;
    std::optional<std::string> integer(std::string_view name) const;
    std::optional<std::string> boolean(std::string_view name) const;  // "true" or "false"
    // A decimal number, also accepted as a string, as it was written.
    std::optional<std::string> decimal(std::string_view name) const;
    // A date-time of RFC 3339: PostgreSQL alone would also take "yesterday".
    std::optional<std::string> timestamp(std::string_view name) const;
    // An object, as JSON text.
    std::optional<std::string> object(std::string_view name) const;

  private:
    const Json *find(std::string_view name, Json::Kind kind, std::string_view expected) const;
    const Json *find(std::string_view name) const;

    const Json &object_;
};

}  // namespace pg_billing::shim
