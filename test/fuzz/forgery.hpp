// The claim that fuzzing tries to break: of all deliveries that a sender without the secrets can make, none is accepted.
//
// A delivery is written as its header, a line feed and its body. What has been signed (the corpus) is what such a sender has
// seen; it is accepted, in whatever a header may hold besides. Anything else that is accepted is a forgery.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "stripe/signature.hpp"

namespace pg_billing::fuzz {

inline constexpr std::int64_t kNow = 1'700'000'000;
inline const std::array<std::string, 2> kSecrets{"whsec_fuzz_0123456789", "whsec_fuzz_rolled"};

struct Signed {
    std::int64_t time;
    std::string_view body;
};
inline constexpr std::array<Signed, 3> kSigned{{
    {kNow, R"({"id":"evt_1","object":"event","type":"invoice.paid","data":{"object":{"id":"in_1"}}})"},
    {kNow - 300, R"({"id":"evt_2","object":"v2.core.event","type":"v1.billing.meter.no_meter_found"})"},
    {kNow + 300, ""},
}};

enum class Result { refused, genuine, forged };

inline Result try_delivery(std::string_view delivery) {
    const std::size_t line = std::min(delivery.find('\n'), delivery.size());
    const std::string_view header = delivery.substr(0, line);
    const std::string_view body = delivery.substr(std::min(line + 1, delivery.size()));
    if (stripe::verify_webhook(header, body, kSecrets, kNow) != stripe::SignatureCheck::valid)
        return Result::refused;
    const bool genuine = std::any_of(kSigned.begin(), kSigned.end(), [&](const Signed &known) {
        return body == known.body && header.find("t=" + std::to_string(known.time)) != header.npos;
    });
    return genuine ? Result::genuine : Result::forged;
}

// As the sender writes it.
inline std::string genuine_delivery(const Signed &known) {
    return stripe::sign_webhook(kSecrets, known.time, known.body) + "\n" + std::string(known.body);
}

}  // namespace pg_billing::fuzz
