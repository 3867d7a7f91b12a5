#include "notify/mail.hpp"

#include <algorithm>
#include <ctime>
#include <stdexcept>

#include "notify/signature.hpp"

namespace pg_billing::notify {
namespace {

constexpr std::size_t kLongestWord = 45;  // bytes in an encoded word of 75 characters at most
constexpr std::size_t kLongestLine = 57;  // bytes in a line of base64 of 76 characters

bool is_control(char c) {
    return static_cast<unsigned char>(c) < ' ' || c == '\x7f';
}

// A line's worth of text: what could end the line is a space.
std::string one_line(std::string_view text) {
    std::string line(text);
    std::replace_if(line.begin(), line.end(), is_control, ' ');
    return line;
}

// Where a character of UTF-8 ends that would begin at or before the limit.
std::size_t character_end(std::string_view text, std::size_t limit) {
    if (text.size() <= limit)
        return text.size();
    std::size_t end = limit;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80)
        end--;
    return end > 0 ? end : limit;  // not UTF-8: anywhere
}

// The text of a header, encoded if it is not plain ASCII, or would be taken for something encoded, or is long.
std::string unstructured(std::string_view text) {
    std::string line = one_line(text);
    std::string_view rest = line;
    const bool plain =
        std::all_of(line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
    if (plain && line.size() <= 66 && line.find("=?") == std::string::npos)
        return line;
    std::string encoded;
    while (!rest.empty()) {
        const std::size_t length = character_end(rest, kLongestWord);
        encoded += encoded.empty() ? "=?UTF-8?B?" : "\r\n =?UTF-8?B?";
        encoded += base64(rest.substr(0, length)) + "?=";
        rest.remove_prefix(length);
    }
    return encoded;
}

// As RFC 5322 has it, whatever the process's language.
std::string date(std::int64_t time) {
    static constexpr const char *kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static constexpr const char *kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                              "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const std::time_t seconds = static_cast<std::time_t>(time);
    std::tm utc{};
    gmtime_r(&seconds, &utc);
    char text[64];
    snprintf(text, sizeof text, "%s, %d %s %d %02d:%02d:%02d +0000", kDays[utc.tm_wday], utc.tm_mday,
             kMonths[utc.tm_mon], utc.tm_year + 1900, utc.tm_hour, utc.tm_min, utc.tm_sec);
    return text;
}

// The From header: a name, if there is one, is encoded as need be.
std::string sender(std::string_view from) {
    const std::string address = bare_address(from);
    const std::size_t bracket = from.find('<');
    std::string name = bracket == std::string_view::npos ? "" : one_line(from.substr(0, bracket));
    std::erase_if(name, [](char c) { return c == '"' || c == '\\'; });
    while (name.ends_with(' '))
        name.pop_back();
    name.erase(0, name.find_first_not_of(' '));
    if (name.empty())
        return address;
    const std::string encoded = unstructured(name);
    return (encoded == name ? "\"" + name + "\"" : encoded) + " <" + address + ">";
}

}  // namespace

std::string bare_address(std::string_view from) {
    const std::size_t open = from.find('<');
    if (open != std::string_view::npos) {
        const std::size_t close = from.find('>', open);
        if (close == std::string_view::npos)
            throw std::invalid_argument("\"" + one_line(from) + "\" is no e-mail address");
        from = from.substr(open + 1, close - open - 1);
    }
    const std::size_t at = from.find('@');
    if (at == 0 || at == std::string_view::npos || at + 1 == from.size() ||
        from.find('@', at + 1) != std::string_view::npos || std::any_of(from.begin(), from.end(), [](char c) {
            return is_control(c) || static_cast<unsigned char>(c) > 0x7e ||
                   std::string_view(" <>()[],;:\\\"").find(c) != std::string_view::npos;
        }))
        throw std::invalid_argument("\"" + one_line(from) + "\" is no e-mail address");
    return std::string(from);
}

std::string compose(const Mail &mail) {
    const std::string address = bare_address(mail.from);
    std::string message = "Date: " + date(mail.time) + "\r\n";
    message += "From: " + sender(mail.from) + "\r\n";
    message += "To: " + bare_address(mail.to) + "\r\n";
    message += "Subject: " + unstructured(mail.subject) + "\r\n";
    message += "Message-ID: <" + one_line(mail.id) + address.substr(address.find('@')) + ">\r\n";
    message +=
        "Auto-Submitted: auto-generated\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        "Content-Transfer-Encoding: base64\r\n\r\n";
    for (std::string_view rest = mail.text; !rest.empty();
         rest.remove_prefix(std::min(rest.size(), kLongestLine)))
        message += base64(rest.substr(0, kLongestLine)) + "\r\n";
    return message;
}

}  // namespace pg_billing::notify
