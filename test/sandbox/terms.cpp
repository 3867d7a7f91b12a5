#include "test/sandbox/terms.hpp"

#include <algorithm>

#include "test/sandbox/errors.hpp"
#include "test/sandbox/prices.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::int64_t kHour = 3'600, kDay = 86'400;
constexpr std::size_t kMaxItems = 20;

// How many months lie between two invoices of a price; 0: it bills by days or weeks.
int months_of(const json &price) {
    const std::string interval = price["recurring"]["interval"];
    const int count = price["recurring"]["interval_count"];
    return interval == "month" ? count : interval == "year" ? count * 12 : 0;
}

}  // namespace

json read_items(Store &store, const json &given, const std::string &where) {
    if (given.empty() || given.size() > kMaxItems)
        throw invalid("A subscription takes 1 to 20 items.", where);
    json items = json::array();
    std::string interval, currency;
    int months = 0;  // the shortest so far
    for (std::size_t i = 0; i < given.size(); ++i) {
        const std::string at = where + "[" + std::to_string(i) + "]";
        if (!given[i].contains("price"))
            throw invalid("Missing required param: " + at + "[price].", at + "[price]", "parameter_missing");
        const json &price = store.get("price", given[i]["price"], at + "[price]");
        if (!price["active"].get<bool>() && !given[i].contains("_kept"))
            throw invalid("The price specified is inactive. This field only accepts active prices.",
                          at + "[price]");
        if (price["type"] != "recurring")
            throw invalid(
                "The price specified is set to `type=one_time` but this field only accepts prices with "
                "`type=recurring`.",
                at + "[price]");
        for (const json &other : items)
            if (other["price"] == price["id"])
                throw invalid("Cannot add multiple subscription items with the same price.", at + "[price]");
        const std::string its_interval = price["recurring"]["interval"].get<std::string>() + "/" +
                                         std::to_string(price["recurring"]["interval_count"].get<int>());
        if (i > 0 && its_interval != interval && (months == 0 || months_of(price) == 0))
            throw not_modelled("subscriptions of mixed intervals other than months and years");
        if (i > 0 && months > 0 && months_of(price) % months != 0 && months % months_of(price) != 0)
            throw invalid("The intervals of all prices must be multiples of the shortest.", at + "[price]");
        months = i == 0 ? months_of(price) : std::min(months, months_of(price));
        if (i > 0 && price["currency"] != currency)
            throw invalid("All prices on a subscription must have the same currency.", at + "[price]");
        interval = its_interval;
        currency = price["currency"];
        json item = {
            {"id", store.new_id("si")},      {"object", "subscription_item"},
            {"billing_thresholds", nullptr}, {"created", 0},
            {"discounts", json::array()},    {"metadata", given[i].value("metadata", json::object())},
            {"price", price["id"]},          {"tax_rates", json::array()}};
        if (!metered(price))
            item["quantity"] = given[i].value("quantity", std::int64_t{1});
        else if (given[i].contains("quantity"))
            throw invalid("You cannot set the quantity for metered prices.", at + "[quantity]");
        items.push_back(std::move(item));
    }
    return items;
}

const json &shortest_price(Store &store, const json &items) {
    const json *shortest = &store.get("price", items[0]["price"]);
    for (const json &item : items)
        if (const json &price = store.get("price", item["price"]); months_of(price) < months_of(*shortest))
            shortest = &price;
    return *shortest;
}

Cycle read_cycle(const Call &call, const json &price, std::int64_t now) {
    const std::string interval = price["recurring"]["interval"];
    const int count = price["recurring"]["interval_count"];
    Cycle cycle{now, interval, count};
    if (call.has("billing_cycle_anchor_config")) {
        const json &config = call.params["billing_cycle_anchor_config"];
        if (interval != "month")
            throw not_modelled("billing_cycle_anchor_config for an interval other than month");
        const auto part = [&](const char *name, std::int64_t fallback, std::int64_t least,
                              std::int64_t most) {
            const std::int64_t value = config.value(name, fallback);
            if (value < least || value > most)
                throw invalid(std::string("Invalid ") + name,
                              std::string("billing_cycle_anchor_config[") + name + "]");
            return static_cast<int>(value);
        };
        const std::int64_t today = now % kDay;
        cycle = cycle_on(part("day_of_month", 1, 1, 31), part("hour", today / kHour, 0, 23),
                         part("minute", today % kHour / 60, 0, 59), part("second", today % 60, 0, 59), now);
        cycle.interval_count = count;
    } else if (call.has("billing_cycle_anchor")) {
        cycle.reference = call.params["billing_cycle_anchor"];
        const std::int64_t natural = Cycle{now, interval, count}.at(1);
        if (cycle.reference <= now)
            throw invalid("billing_cycle_anchor must be a timestamp in the future.", "billing_cycle_anchor");
        if (cycle.reference > natural)
            throw invalid("billing_cycle_anchor cannot be later than next natural billing date (" +
                              std::to_string(natural) + ") for plan",
                          "billing_cycle_anchor");
    }
    return cycle;
}

json read_subscription(Store &store, const Call &call, std::int64_t now) {
    const json &given = call.params;
    const json &customer = store.get("customer", call.text("customer"), "customer");
    const bool sends = given.value("collection_method", "charge_automatically") == "send_invoice";
    if (sends != call.has("days_until_due"))
        throw invalid("days_until_due must be given for collection_method=send_invoice, and only then.",
                      "days_until_due");
    if (sends && customer["email"].is_null())
        throw invalid(
            "Missing email. In order to create invoices that are sent to the customer, the customer must "
            "have "
            "a valid email.",
            "customer");
    const json flexible = {{"type", "flexible"}, {"flexible", {{"proration_discounts", "included"}}}};
    json subscription = {
        {"id", store.new_id("sub", 24)},
        {"object", "subscription"},
        {"application", nullptr},
        {"billing_cycle_anchor_config", given.value("billing_cycle_anchor_config", json())},
        {"billing_mode", flexible},
        {"billing_thresholds", nullptr},
        {"cancel_at", nullptr},
        {"cancel_at_period_end", given.value("cancel_at_period_end", false)},
        {"canceled_at", nullptr},
        {"cancellation_details", {{"comment", nullptr}, {"feedback", nullptr}, {"reason", nullptr}}},
        {"collection_method", sends ? "send_invoice" : "charge_automatically"},
        {"created", now},
        {"customer", customer["id"]},
        {"days_until_due", given.value("days_until_due", json())},
        {"default_payment_method", given.value("default_payment_method", json())},
        {"description", given.value("description", json())},
        {"discounts", json::array()},
        {"ended_at", nullptr},
        {"latest_invoice", nullptr},
        {"livemode", false},
        {"metadata", json::object()},
        {"pause_collection", nullptr},
        {"payment_settings", given.value("payment_settings", json::object())},
        {"pending_setup_intent", nullptr},
        {"pending_update", nullptr},
        {"schedule", nullptr},
        {"start_date", given.value("backdate_start_date", now)},
        {"status", "active"},
        {"test_clock", customer["test_clock"]},
        {"trial_end", nullptr},
        {"trial_start", nullptr}};
    const std::string id = subscription["id"];
    subscription["items"] = {{"object", "list"},
                             {"data", read_items(store, given.value("items", json::array()), "items")},
                             {"has_more", false},
                             {"url", "/v1/subscription_items?subscription=" + id}};
    for (json &item : subscription["items"]["data"]) {
        item["subscription"] = id;
        item["created"] = now;
    }
    subscription["currency"] = store.get("price", subscription["items"]["data"][0]["price"])["currency"];
    merge_metadata(subscription, given);
    return subscription;
}

}  // namespace pg_billing::sandbox
