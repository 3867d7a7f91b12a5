// What a proof bills: many tenants, of whom a few get most of the traffic, with three metrics each. Clients and monitor,
// setup and verification agree on it here.
#pragma once

#include <string>

namespace pg_billing::proof {

inline constexpr const char *kCapped =
    "api_calls";  // a counter with a hard cap, which the monitor raises now and then
inline constexpr const char *kOpen = "llm_tokens";   // a counter without limit
inline constexpr const char *kGauge = "storage_gb";  // goes up and down below a hard cap

inline constexpr int kFirstCap = 30, kGaugeCap = 20;
inline constexpr int kHourCap = 25, kDayCap = 40;  // of every fourth tenant each, inside the billing period

// The first few are hot.
inline constexpr unsigned kHotTenants = 3;

inline std::string tenant_name(unsigned number) {
    return "tenant-" + std::to_string(number);
}

// One fact of usage as a client knows it.
struct Event {
    std::string key, tenant, metric;
    int quarters;           // the quantity, in quarters
    bool shared = false;    // other clients send the same event under the same key
    bool counts = false;    // its fate, once that is known: committed, or denied or rolled back
    bool answered = false;  // counts, and this client was answered "recorded"
};

inline std::string quantity(int quarters) {
    static const char *const kDecimals[] = {"", ".25", ".5", ".75"};
    const int whole = quarters < 0 ? -quarters : quarters;
    return (quarters < 0 ? "-" : "") + std::to_string(whole / 4) + kDecimals[whole % 4];
}

}  // namespace pg_billing::proof
