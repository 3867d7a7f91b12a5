// Exact decimal arithmetic for quantities and prices: an integer scaled by 10^24.
//
// Stripe keeps at most 12 decimals of a quantity and of a price, so their product is exact here. Rounding
// happens only where an amount becomes minor units.
#pragma once

#include <boost/multiprecision/cpp_int.hpp>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

namespace pg_billing::sandbox {

class Decimal {
  public:
    Decimal() = default;
    explicit Decimal(std::int64_t whole);

    // Reads digits with an optional sign and fraction; throws std::invalid_argument for anything else
    // (exponents too).
    static Decimal parse(std::string_view text);

    std::string str() const;  // shortest form, never an exponent
    std::int64_t truncated() const;
    std::int64_t rounded() const;                     // to the nearest whole, halves away from zero
    Decimal divided(std::int64_t by, bool up) const;  // to a whole, of what is not negative
    double approximate() const;

    Decimal operator+(const Decimal &other) const { return Decimal(scaled_ + other.scaled_); }
    Decimal operator-(const Decimal &other) const { return Decimal(scaled_ - other.scaled_); }
    Decimal operator*(const Decimal &other) const;
    bool operator==(const Decimal &other) const { return scaled_ == other.scaled_; }
    bool operator<(const Decimal &other) const { return scaled_ < other.scaled_; }

  private:
    using Integer = boost::multiprecision::cpp_int;
    explicit Decimal(Integer scaled) : scaled_(std::move(scaled)) {}
    static const Integer &one();

    Integer scaled_ = 0;
};

// Returns amount * numerator / denominator to the nearest whole, halves up; amount and the fraction are not
// negative.
std::int64_t prorate(std::int64_t amount, std::int64_t numerator, std::int64_t denominator);

}  // namespace pg_billing::sandbox
