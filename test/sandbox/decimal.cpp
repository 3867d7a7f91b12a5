#include "test/sandbox/decimal.hpp"

#include <algorithm>
#include <stdexcept>

namespace pg_billing::sandbox {
namespace {

constexpr std::size_t kDecimals = 24;

bool digits(std::string_view text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

const Decimal::Integer &Decimal::one() {
    static const Integer value = boost::multiprecision::pow(Integer(10), kDecimals);
    return value;
}

Decimal::Decimal(std::int64_t whole) : scaled_(one() * whole) {}

Decimal Decimal::parse(std::string_view text) {
    const bool negative = text.starts_with('-');
    const std::string_view number = text.substr(negative ? 1 : 0);
    const std::size_t point = std::min(number.find('.'), number.size());
    const std::string_view whole = number.substr(0, point);
    const std::string_view fraction = number.substr(std::min(point + 1, number.size()));
    if (!digits(whole) || (point < number.size() && !digits(fraction)) || fraction.size() > kDecimals ||
        whole.size() > 40)
        throw std::invalid_argument("not a decimal: " + std::string(text));
    std::string all =
        std::string(whole) + std::string(fraction) + std::string(kDecimals - fraction.size(), '0');
    // A leading zero would make cpp_int read octal.
    all.erase(0, std::min(all.find_first_not_of('0'), all.size() - 1));
    const Integer scaled(all);
    return Decimal(negative ? Integer(-scaled) : scaled);
}

std::string Decimal::str() const {
    std::string text = Integer(boost::multiprecision::abs(scaled_)).str();
    if (text.size() <= kDecimals)
        text.insert(0, kDecimals + 1 - text.size(), '0');
    text.insert(text.size() - kDecimals, ".");
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.'))
        text.pop_back();
    return scaled_ < 0 ? "-" + text : text;
}

std::int64_t Decimal::truncated() const {
    return static_cast<std::int64_t>(Integer(scaled_ / one()));
}

std::int64_t Decimal::rounded() const {
    const Integer half = one() / 2;
    return static_cast<std::int64_t>(
        Integer((scaled_ < 0 ? Integer(scaled_ - half) : Integer(scaled_ + half)) / one()));
}

Decimal Decimal::divided(std::int64_t by, bool up) const {
    const Integer whole = one() * by;
    return Decimal(Integer((scaled_ + (up ? Integer(whole - 1) : Integer(0))) / whole * one()));
}

double Decimal::approximate() const {
    return std::stod(str());
}

Decimal Decimal::operator*(const Decimal &other) const {
    const Integer product = scaled_ * other.scaled_;
    if (product % one() != 0)
        throw std::range_error("a product of decimals has more than 24 decimals");
    return Decimal(Integer(product / one()));
}

std::int64_t prorate(std::int64_t amount, std::int64_t numerator, std::int64_t denominator) {
    using boost::multiprecision::cpp_int;
    return static_cast<std::int64_t>(
        cpp_int((cpp_int(amount) * numerator * 2 + denominator) / (cpp_int(denominator) * 2)));
}

}  // namespace pg_billing::sandbox
