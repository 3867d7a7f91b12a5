// Billing meters and the usage they received.
//
// A meter with event_time_window keeps, per customer and UTC hour or day, only the event received last; a raw one keeps
// every event (docs.stripe.com/billing/subscriptions/usage-based/meters/configure). An identifier is accepted once in
// 24 hours of the machine's time, whichever meter it was for; the repeat is refused as the documented 400.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/decimal.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

class Meters {
  public:
    explicit Meters(Store &store) : store_(store) {}

    // Binds the meter endpoints; `usage_changed` is told which customer's usage grew.
    void model(Catalog &catalog, std::function<void(const std::string &customer)> usage_changed);

    // Takes a meter event, its timestamp in seconds; throws what is wrong with it.
    json take(const json &event);
    // Whether an event of that identifier has been taken in the last 24 hours.
    bool known(const std::string &identifier) const;

    // Aggregates a customer's usage in [start, end) by the meter's formula, as it is billed: never below zero.
    Decimal billable(const std::string &meter, const std::string &customer, std::int64_t start,
                     std::int64_t end);

    // Names what one call at a time is allowed for, "" if the call is not a meter event's.
    static std::string exclusive_key(const std::string &method, const std::string &path, const json &params);

    // Sets what a customer used in the hour of `timestamp` to `value`, or without one to nothing, behind everybody's back.
    // Throws json::exception where the wish is malformed.
    void tamper(const json &wish);

    // Totals per event_name, customer and hour, for the test control.
    json state();

    // Asked of every event that is accepted whether it is not counted after all.
    std::function<bool(const json &meter, const std::string &identifier)> uncounted;

  private:
    using Series = std::multimap<std::int64_t, Decimal>;  // by timestamp; equal ones in order of arrival

    json create(const Call &call);
    json record(const json &event);
    json summaries(const Call &call);
    Decimal aggregate(const json &meter, const Series &series, std::int64_t start, std::int64_t end) const;
    json &active_meter(const std::string &event_name);

    Store &store_;
    std::function<void(const std::string &customer)> usage_changed_;
    std::map<std::pair<std::string, std::string>, Series> usage_;  // (meter, customer)
    std::unordered_map<std::string, std::int64_t> identifiers_;    // machine time of arrival
};

}  // namespace pg_billing::sandbox
