// Stripe's v1 request encoding: form bodies and query strings with bracketed keys.
//
// {"items":[{"price":"p"}],"metadata":{"a":"b c"}}  <->  items[0][price]=p&metadata[a]=b%20c
// Rules (observed on Stripe's own client libraries): arrays are indexed, brackets in keys stay as they are,
// everything else outside RFC 3986's unreserved set is percent-encoded, booleans are true/false, an empty
// value unsets.
//
// Invariant: decode_form(encode_form(x)) equals x with every scalar turned into a string, for any x without
// null, floating-point, empty arrays or empty objects.
#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pg_billing::stripe {

// The text is not a form, or the value cannot be sent as one. The message names the key.
class FormError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Encodes an object's members; null becomes an empty value. A floating-point number throws FormError, because
// its decimal digits are no longer known: decimals travel as strings.
std::string encode_form(const nlohmann::json &params);

// Decodes a form body or query string; every scalar is a string. `key[]=` appends; keys 0 to n-1 make an
// array.
nlohmann::json decode_form(std::string_view text);

}  // namespace pg_billing::stripe
