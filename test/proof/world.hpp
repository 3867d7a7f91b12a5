// What a proof bills: many tenants, of whom a few get most of the traffic, with three metrics each. Clients and monitor,
// setup and verification agree on it here.
#pragma once

#include <string>

namespace pg_billing::proof {

inline constexpr const char *kCapped =
    "api_calls";  // a counter with a hard cap, which the monitor raises now and then
inline constexpr const char *kOpen = "llm_tokens";   // a counter without limit
inline constexpr const char *kGauge = "storage_gb";  // goes up and down below a hard cap
inline constexpr const char *kSeats = "user_seats";  // a gauge that is at its cap or at zero most of the time

inline constexpr const char *kItems = "items";  // the rows of a table, counted by a trigger

inline constexpr int kFirstCap = 30, kGaugeCap = 20, kSeatsCap = 10, kItemsCap = 8;
inline constexpr int kHourCap = 25, kDayCap = 40;  // of every fourth tenant each, inside the billing period

// The first few are hot.
inline constexpr unsigned kHotTenants = 3;

inline std::string tenant_name(unsigned number) {
    return "tenant-" + std::to_string(number);
}

// What a client does about a piece of usage.
enum class Act { use, set, hold, settle, release, retract, insert, remove, move };

// One piece of usage as a client knows it.
struct Event {
    std::string key, tenant, metric;
    int quarters = 0;         // the quantity, in quarters; of Act::set, the level
    Act act = Act::use;       // what was done last
    std::string reservation;  // its id, once it is held
    int held = 0;             // quarters
    bool abandoned = false;   // it is held for a moment, and nobody will end it
    bool shared = false;      // other clients send the same event under the same key
    bool answered = false;    // this client was answered "recorded"
    bool counts = false;      // its fate, once that is known: recorded and committed
    bool retracted = false;   // and taken back again
    std::string to = {};      // Act::move: the other tenant
};

inline std::string quantity(int quarters) {
    static const char *const kDecimals[] = {"", ".25", ".5", ".75"};
    const int whole = quarters < 0 ? -quarters : quarters;
    return (quarters < 0 ? "-" : "") + std::to_string(whole / 4) + kDecimals[whole % 4];
}

}  // namespace pg_billing::proof
