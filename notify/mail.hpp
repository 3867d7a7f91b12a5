// A notification as an e-mail: a plain text in UTF-8, as RFC 5322 and 2047 want it.
//
// Invariant: nothing that is passed in can end a header line or begin another one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pg_billing::notify {

struct Mail {
    std::string from;  // an address, or a name and an address in angle brackets
    std::string to;    // an address
    std::string subject, text;
    std::string id;  // of the notification: Message-ID is made of it, so that a repeat is known as such
    std::int64_t time = 0;  // Unix time
};

// Returns the message with its headers, in lines that end in CRLF.
std::string compose(const Mail &mail);

// Returns the address within a From value, as SMTP's MAIL FROM wants it; throws std::invalid_argument if there is none.
std::string bare_address(std::string_view from);

}  // namespace pg_billing::notify
