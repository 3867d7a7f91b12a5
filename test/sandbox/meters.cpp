#include "test/sandbox/meters.hpp"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <limits>
#include <stdexcept>

#include "test/sandbox/accounts.hpp"
#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::int64_t kHour = 3'600, kDay = 86'400;
constexpr std::int64_t kOldest = 35 * kDay, kAhead = 300, kIdentifierMemory = kDay;
constexpr std::size_t kMaxDigits = 15, kMaxDecimals = 12;
constexpr std::int64_t kEver = std::numeric_limits<std::int64_t>::max();

std::int64_t width_of(const json &window) {
    return window == "hour" ? kHour : kDay;
}

std::int64_t floor_to(std::int64_t time, std::int64_t width) {
    return time - ((time % width) + width) % width;
}

std::string iso_hour(std::int64_t time) {
    const std::time_t seconds = time;
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:00:00Z", std::gmtime(&seconds));
    return text;
}

Decimal meter_value(const json &payload, const std::string &key) {
    if (!payload.contains(key) || payload[key] == "")
        throw invalid("The payload has no value under the meter's key '" + key + "'.", "payload[" + key + "]",
                      "meter_event_no_value_defined");
    const std::string text = payload[key];
    try {
        const Decimal value = Decimal::parse(text);
        const std::string plain = value.str();
        const auto digits =
            std::count_if(plain.begin(), plain.end(), [](char c) { return c >= '0' && c <= '9'; });
        const std::size_t point = text.find('.');
        const std::size_t decimals = point == std::string::npos ? 0 : text.size() - point - 1;
        if (static_cast<std::size_t>(digits) > kMaxDigits || decimals > kMaxDecimals)
            throw invalid("The value has too many digits: " + text, "payload[" + key + "]",
                          "meter_event_value_too_many_digits");
        return value;
    } catch (const std::invalid_argument &) {
        throw invalid("The value must be a decimal number: " + text, "payload[" + key + "]",
                      "meter_event_invalid_value");
    }
}

}  // namespace

void Meters::model(Catalog &catalog, std::function<void(const std::string &)> usage_changed) {
    usage_changed_ = std::move(usage_changed);
    catalog.model("POST /v1/billing/meters",
                  {"default_aggregation", "display_name", "event_name", "customer_mapping",
                   "event_time_window", "value_settings"},
                  [this](const Call &call) { return create(call); });
    catalog.model("GET /v1/billing/meters", {"status", "limit", "starting_after", "ending_before"},
                  [this](const Call &call) {
                      return store_.list(
                          "billing.meter", "/v1/billing/meters", call.params, [&](const json &meter) {
                              return !call.has("status") || meter["status"] == call.params["status"];
                          });
                  });
    catalog.model("GET /v1/billing/meters/{id}", {},
                  [this](const Call &call) { return store_.get("billing.meter", call.id()); });
    catalog.model("POST /v1/billing/meters/{id}", {"display_name"}, [this](const Call &call) {
        json &meter = store_.get("billing.meter", call.id());
        const json before = meter;
        meter.update(call.params);
        store_.emit("billing.meter.updated", meter, before);
        return meter;
    });
    for (const bool active : {true, false})
        catalog.model(
            std::string("POST /v1/billing/meters/{id}/") + (active ? "reactivate" : "deactivate"), {},
            [this, active](const Call &call) {
                json &meter = store_.get("billing.meter", call.id());
                if (active && meter["status"] == "inactive")
                    for (const json &other : store_.all("billing.meter"))
                        if (other["status"] == "active" && other["event_name"] == meter["event_name"])
                            throw invalid("An active meter already has this event_name.");
                meter["status"] = active ? "active" : "inactive";
                meter["status_transitions"]["deactivated_at"] = active ? json() : json(machine_time());
                store_.emit(active ? "billing.meter.reactivated" : "billing.meter.deactivated", meter);
                return meter;
            });
    catalog.model("POST /v1/billing/meter_events", {"event_name", "payload", "identifier", "timestamp"},
                  [this](const Call &call) { return take(call.params); });
    catalog.model("GET /v1/billing/meters/{id}/event_summaries",
                  {"customer", "start_time", "end_time", "value_grouping_window", "limit", "starting_after",
                   "ending_before"},
                  [this](const Call &call) { return summaries(call); });
}

json Meters::create(const Call &call) {
    for (const json &other : store_.all("billing.meter"))
        if (other["status"] == "active" && other["event_name"] == call.params["event_name"])
            throw invalid(
                "An active meter with the event_name '" + call.text("event_name") + "' already exists.",
                "event_name", "resource_already_exists");
    const std::int64_t now = machine_time();
    json meter = {{"id", store_.new_id("mtr_test", 16)},
                  {"object", "billing.meter"},
                  {"created", now},
                  {"customer_mapping", {{"type", "by_id"}, {"event_payload_key", "stripe_customer_id"}}},
                  {"default_aggregation", call.params["default_aggregation"]},
                  {"display_name", call.params["display_name"]},
                  {"event_name", call.params["event_name"]},
                  {"event_time_window", call.params.value("event_time_window", json())},
                  {"livemode", false},
                  {"status", "active"},
                  {"status_transitions", {{"deactivated_at", nullptr}}},
                  {"updated", now},
                  {"value_settings", {{"event_payload_key", "value"}}}};
    for (const char *settings : {"customer_mapping", "value_settings"})
        if (call.has(settings))
            meter[settings] = call.params[settings];
    json &stored = store_.add(std::move(meter));
    store_.emit("billing.meter.created", stored);
    return stored;
}

json &Meters::active_meter(const std::string &event_name) {
    const json *archived = nullptr;
    for (json &meter : store_.all("billing.meter")) {
        if (meter["event_name"] != event_name)
            continue;
        if (meter["status"] == "active")
            return meter;
        archived = &meter;
    }
    if (archived)
        throw invalid("The meter for event_name '" + event_name + "' is archived.", "event_name",
                      "archived_meter");
    throw invalid("No active meter found for event_name '" + event_name + "'.", "event_name", "no_meter");
}

json Meters::take(const json &event) {
    json taken = record(event);
    usage_changed_(taken.at("_customer"));
    return taken;
}

bool Meters::known(const std::string &identifier) const {
    const auto earlier = identifiers_.find(identifier);
    return earlier != identifiers_.end() && machine_time() < earlier->second + kIdentifierMemory;
}

// Stripe checks part of this later, on its own time (facts differ by source); refusing at once hides no mistake.
json Meters::record(const json &event) {
    const std::string event_name = event.at("event_name");
    const std::int64_t received = machine_time();
    const std::string identifier =
        event.contains("identifier") ? event["identifier"] : json(store_.new_id("mtrevt", 32));
    if (known(identifier)) {
        ApiError duplicate = invalid("An event already exists with identifier " + identifier + ".");
        duplicate.fields.emplace_back("stripe-should-retry", "false");
        throw duplicate;
    }
    const json &meter = active_meter(event_name);
    const json &payload = event.at("payload");
    const std::string customer_key = meter["customer_mapping"]["event_payload_key"];
    if (!payload.contains(customer_key) || payload[customer_key] == "")
        throw invalid("The payload has no customer under the meter's key '" + customer_key + "'.",
                      "payload[" + customer_key + "]", "meter_event_no_customer_defined");
    const json &customer = living_customer(store_, payload[customer_key], "payload[" + customer_key + "]");
    const Decimal value = meter["default_aggregation"]["formula"] == "count"
                              ? Decimal(1)
                              : meter_value(payload, meter["value_settings"]["event_payload_key"]);
    const std::int64_t now = store_.time_of(customer);
    const std::int64_t timestamp = event.value("timestamp", now);
    if (timestamp > now + kAhead)
        throw invalid("The timestamp is more than 5 minutes in the future.", "timestamp",
                      "timestamp_in_future");
    if (timestamp < now - kOldest)
        throw invalid("The timestamp is more than 35 days in the past.", "timestamp",
                      "timestamp_too_far_in_past");

    if (!uncounted || !uncounted(meter, identifier)) {
        Series &series = usage_[{meter["id"], customer["id"]}];
        if (!meter["event_time_window"].is_null()) {
            const std::int64_t width = width_of(meter["event_time_window"]),
                               bucket = floor_to(timestamp, width);
            series.erase(series.lower_bound(bucket), series.lower_bound(bucket + width));
        }
        series.emplace(timestamp, value);
    }
    identifiers_[identifier] = received;
    return {{"object", "billing.meter_event"}, {"created", received},        {"event_name", event_name},
            {"identifier", identifier},        {"livemode", false},          {"payload", payload},
            {"timestamp", timestamp},          {"_customer", customer["id"]}};
}

Decimal Meters::aggregate(const json &meter, const Series &series, std::int64_t start,
                          std::int64_t end) const {
    const auto first = series.lower_bound(start), last = series.lower_bound(end);
    if (first == last)
        return {};
    const std::string formula = meter["default_aggregation"]["formula"];
    if (formula == "last")
        return std::prev(last)->second;
    if (formula == "count")
        return Decimal(std::distance(first, last));
    Decimal sum;
    for (auto event = first; event != last; ++event)
        sum = sum + event->second;
    return sum;
}

Decimal Meters::billable(const std::string &meter, const std::string &customer, std::int64_t start,
                         std::int64_t end) {
    const Decimal value =
        aggregate(store_.get("billing.meter", meter), usage_[{meter, customer}], start, end);
    return value < Decimal() ? Decimal() : value;
}

json Meters::summaries(const Call &call) {
    const json &meter = store_.get("billing.meter", call.id());
    const json &customer = store_.get("customer", call.text("customer"), "customer");
    const std::int64_t start = call.params["start_time"], end = call.params["end_time"];
    const std::string window = call.text("value_grouping_window");
    const std::int64_t alignment = window == "hour" ? kHour : window == "day" ? kDay : 60;
    for (const char *bound : {"start_time", "end_time"})
        if (floor_to(call.params[bound], alignment) != call.params[bound])
            throw invalid(std::string(bound) + " must be aligned with " +
                              (window.empty()    ? "minute"
                               : window == "day" ? "daily"
                                                 : "hourly") +
                              " boundaries.",
                          bound);
    if (start >= end)
        throw invalid("start_time must be before end_time.", "start_time");

    const Series &series = usage_[{meter["id"], customer["id"]}];
    std::vector<std::pair<std::int64_t, std::int64_t>> buckets;
    if (window.empty())
        buckets.emplace_back(start, end);
    else
        for (auto event = series.lower_bound(start); event != series.end() && event->first < end;) {
            const std::int64_t bucket = floor_to(event->first, alignment);
            buckets.emplace_back(bucket, bucket + alignment);
            event = series.lower_bound(bucket + alignment);
        }
    std::deque<json> rows;
    for (const auto &[from, to] : buckets)
        rows.push_front({{"id", "mtrusg_" + meter["id"].get<std::string>().substr(9) +
                                    customer["id"].get<std::string>().substr(4) + "_" + std::to_string(from)},
                         {"object", "billing.meter_event_summary"},
                         {"aggregated_value", aggregate(meter, series, from, to).approximate()},
                         {"end_time", to},
                         {"livemode", false},
                         {"meter", meter["id"]},
                         {"start_time", from}});
    std::vector<const json *> newest_first;
    for (const json &row : rows)
        newest_first.push_back(&row);
    return page_of(newest_first, "/v1/billing/meters/" + call.id() + "/event_summaries", call.params);
}

std::string Meters::exclusive_key(const std::string &method, const std::string &path, const json &params) {
    if (method != "POST" || path != "/v1/billing/meter_events")
        return {};
    std::string key = params.value("event_name", "");
    for (const json &value : params.value("payload", json::object()))
        if (value.is_string() && value.get_ref<const std::string &>().starts_with("cus_"))
            key += "\n" + value.get<std::string>();
    return key;
}

void Meters::tamper(const json &wish) {
    const json &meter = active_meter(wish.at("event_name"));
    const std::string customer = store_.get("customer", wish.at("customer"), "customer")["id"];
    Series &series = usage_[{meter["id"], customer}];
    const std::int64_t hour = floor_to(wish.at("timestamp"), kHour);
    series.erase(series.lower_bound(hour), series.lower_bound(hour + kHour));
    if (wish.contains("value"))
        series.emplace(hour + 1, Decimal::parse(wish["value"].get<std::string>()));
    usage_changed_(customer);
}

json Meters::state() {
    json out = json::object();
    std::map<std::string, Decimal> totals;
    for (const auto &[key, series] : usage_) {
        const auto &[meter_id, customer] = key;
        const json &meter = store_.get("billing.meter", meter_id);
        const std::string event_name = meter["event_name"];
        const Decimal total = aggregate(meter, series, 0, kEver);
        json &entry = out[event_name]["customers"][customer];
        entry["total"] = total.str();
        for (auto event = series.begin(); event != series.end();) {
            const std::int64_t hour = floor_to(event->first, kHour);
            entry["hours"][iso_hour(hour)] = aggregate(meter, series, hour, hour + kHour).str();
            event = series.lower_bound(hour + kHour);
        }
        totals[event_name] = totals[event_name] + (total < Decimal() ? Decimal() : total);
    }
    for (const auto &[event_name, total] : totals)
        out[event_name]["total"] = total.str();
    return out;
}

}  // namespace pg_billing::sandbox
