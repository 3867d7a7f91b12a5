#include "test/sandbox/subscriptions.hpp"

#include <algorithm>

#include "test/sandbox/accounts.hpp"
#include "test/sandbox/errors.hpp"
#include "test/sandbox/prices.hpp"
#include "test/sandbox/terms.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::int64_t kHour = 3'600, kDay = 86'400;
constexpr std::int64_t kIncompleteTime = 23 * kHour;  // then an unpaid first invoice ends the subscription
constexpr std::size_t kMaxBackdatedLines = 250;

bool living(const json &subscription) {
    const std::string status = subscription["status"];
    return status == "active" || status == "trialing" || status == "past_due";
}

json &items_of(json &subscription) {
    return subscription["items"]["data"];
}

// Where the first whole cycle begins: at once, or at the next boundary, in the month asked for.
std::int64_t first_anchor(const Call &call, const Cycle &cycle, std::int64_t now) {
    if (cycle.reference == now)
        return now;
    std::int64_t anchor = cycle.after(now);
    const json config = call.params.value("billing_cycle_anchor_config", json::object());
    while (config.contains("month") && month_number(anchor) % 12 != config["month"].get<int>() - 1)
        anchor = cycle.after(anchor);
    return anchor;
}

}  // namespace

Cycle Subscriptions::cycle_of(const json &subscription) {
    const json &cycle = subscription["_cycle"];
    return {cycle["reference"], cycle["interval"], cycle["interval_count"]};
}

Cycle Subscriptions::cycle_of(const json &subscription, const json &item) {
    Cycle cycle = cycle_of(subscription);
    const json &recurring = store_.get("price", item["price"])["recurring"];
    if (recurring["interval"] == cycle.interval && recurring["interval_count"] == cycle.interval_count)
        return cycle;
    cycle.interval = recurring["interval"];
    cycle.interval_count = recurring["interval_count"];
    cycle.shift = month_number(subscription["billing_cycle_anchor"]) - month_number(cycle.reference);
    return cycle;
}

json Subscriptions::first_spans(json &subscription, std::int64_t now, bool prorates) {
    json spans = json::array();
    const bool trial = subscription["status"] == "trialing";
    for (json &item : items_of(subscription)) {
        const Cycle cycle = cycle_of(subscription, item);
        std::int64_t from = subscription["start_date"];
        do {
            const std::int64_t to = trial ? subscription["trial_end"].get<std::int64_t>() : cycle.after(from);
            const std::int64_t whole = Cycle{from, cycle.interval, cycle.interval_count}.at(1) - from;
            const bool aligned = cycle.not_after(from) == from;
            std::int64_t numerator = aligned ? whole : std::min(to - from, whole);
            if (trial || (numerator < whole && !prorates))
                numerator = 0;
            if (!metered(store_.get("price", item["price"])))
                spans.push_back(span_of(item, from, to, numerator, whole));
            else if (to <= now)
                spans.push_back(span_of(item, from, to));
            if (spans.size() > kMaxBackdatedLines)
                throw invalid("Backdating isn't supported when the invoice has more than 250 line items.",
                              "backdate_start_date");
            item["current_period_start"] = from;
            item["current_period_end"] = to;
            from = to;
        } while (from <= now);
    }
    std::stable_sort(spans.begin(), spans.end(),
                     [](const json &one, const json &other) { return one["start"] < other["start"]; });
    return spans;
}

json Subscriptions::create(const Call &call) {
    const json &given = call.params;
    if (!call.has("customer"))
        throw invalid("Missing required param: customer.", "customer", "parameter_missing");
    const std::int64_t now = store_.time_of(living_customer(store_, call.text("customer"), "customer"));
    if (given.value("billing_mode", json{{"type", "flexible"}})["type"] != "flexible")
        throw not_modelled("billing_mode[type]=classic");
    if (given.value("backdate_start_date", now) > now)
        throw invalid("backdate_start_date must be in the past.", "backdate_start_date");
    json built = read_subscription(store_, call, now);
    Cycle cycle = read_cycle(call, shortest_price(store_, items_of(built)), now);
    if (call.has("trial_period_days") || call.has("trial_end")) {
        if (call.has("billing_cycle_anchor") || call.has("billing_cycle_anchor_config") ||
            call.has("backdate_start_date") || given.value("trial_end", json()) == "now")
            throw not_modelled("a trial combined with another start or anchor");
        const std::int64_t trial_end = call.has("trial_end")
                                           ? given["trial_end"].get<std::int64_t>()
                                           : now + given["trial_period_days"].get<std::int64_t>() * kDay;
        if (trial_end <= now)
            throw invalid("The trial must end in the future.", "trial_end");
        built["status"] = "trialing";
        built["trial_start"] = now;
        built["trial_end"] = cycle.reference = trial_end;
    }
    built["billing_cycle_anchor"] = first_anchor(call, cycle, now);
    if (built["status"] == "trialing" || call.has("billing_cycle_anchor"))
        built["billing_cycle_anchor"] = cycle.reference;
    built["_cycle"] = {{"reference", cycle.reference},
                       {"interval", cycle.interval},
                       {"interval_count", cycle.interval_count}};
    const json spans = first_spans(built, now, given.value("proration_behavior", "") != "none");
    json invoice = spans.empty() ? json() : invoices_.build(built, "subscription_create", spans, now);

    const std::string behavior = given.value("payment_behavior", "allow_incomplete");
    const bool sends = built["collection_method"] == "send_invoice";
    const bool due = !sends && !invoice.is_null() && invoice["total"] > 0;
    const bool pays = due && behavior != "default_incomplete" && invoices_.payable(invoice);
    if (due && !pays && behavior == "error_if_incomplete")
        throw ApiError(402, "card_error", "The customer has no payment method that can be charged.",
                       "card_declined");
    if (due && !pays)
        built["status"] = "incomplete";
    built["_missing_payment_method"] = given.value("trial_settings", json::object())
                                           .value("end_behavior", json::object())
                                           .value("missing_payment_method", "create_invoice");
    built["_expires_at"] = now + kIncompleteTime;
    built["_pending"] = json::array();
    if (built["cancel_at_period_end"] == true)
        built["cancel_at"] = first_end(built);

    json &subscription = store_.add(std::move(built));
    if (!invoice.is_null()) {
        invoice["period_start"] = invoice["period_end"] = now;
        subscription["latest_invoice"] = invoice["id"];
    }
    store_.emit("customer.subscription.created", subscription);
    if (!invoice.is_null()) {
        json &stored = invoices_.add_draft(std::move(invoice), now + kDraftTime);
        if (!sends)
            invoices_.finalize(stored, now, pays);
    }
    return subscription;
}

json Subscriptions::usage_spans(const json &subscription, std::int64_t until) {
    json spans = json::array();
    if (subscription["status"] == "trialing")
        return spans;
    for (const json &item : subscription["items"]["data"])
        if (metered(store_.get("price", item["price"])))
            spans.push_back(usage_span(item, until));
    return spans;
}

json Subscriptions::usage_span(const json &item, std::int64_t until) {
    const std::int64_t start = item["current_period_start"];
    return span_of(item, std::max(start, item.value("_since", start)), until);
}

json &Subscriptions::bill(json &subscription, const std::string &reason, const json &spans,
                          std::int64_t time) {
    json all = std::move(subscription["_pending"]);
    all.insert(all.end(), spans.begin(), spans.end());
    subscription["_pending"] = json::array();
    json &invoice =
        invoices_.add_draft(invoices_.build(subscription, reason, std::move(all), time), time + kDraftTime);
    subscription["latest_invoice"] = invoice["id"];
    return invoice;
}

json Subscriptions::cancel(const Call &call) {
    json &subscription = store_.get("subscription", call.id());
    if (subscription["ended_at"].is_number())
        throw no_such("subscription", call.id());
    const std::int64_t now = store_.time_of(subscription);
    const bool invoices = call.params.value("invoice_now", false);
    if (call.params.value("prorate", false)) {
        if (!invoices)
            throw not_modelled("prorate=true on cancellation without invoice_now");
        if (living(subscription))
            for (json &span : unused_spans(subscription, now))
                subscription["_pending"].push_back(std::move(span));
    }
    if (invoices && living(subscription))
        bill_arrears(subscription, now);
    subscription["cancellation_details"]["reason"] = "cancellation_requested";
    const json details = call.params.value("cancellation_details", json::object());
    for (const auto &[name, value] : details.items())
        subscription["cancellation_details"][name] = value;
    end(subscription, now);
    return subscription;
}

void Subscriptions::bill_arrears(json &subscription, std::int64_t time) {
    if (const json spans = usage_spans(subscription, time);
        !spans.empty() || !subscription["_pending"].empty())
        bill(subscription, "subscription_cycle", spans, time);
}

void Subscriptions::end(json &subscription, std::int64_t time) {
    subscription["status"] = "canceled";
    subscription["ended_at"] = time;
    if (subscription["canceled_at"].is_null())
        subscription["canceled_at"] = time;
    store_.emit("customer.subscription.deleted", subscription);
}

std::int64_t Subscriptions::first_end(const json &subscription) {
    std::int64_t end = subscription["items"]["data"][0]["current_period_end"];
    for (const json &item : subscription["items"]["data"])
        end = std::min(end, item["current_period_end"].get<std::int64_t>());
    return end;
}

void Subscriptions::end_all(const std::string &customer) {
    for (json &subscription : store_.all("subscription"))
        if (subscription["customer"] == customer && subscription["status"] != "canceled" &&
            subscription["status"] != "incomplete_expired")
            end(subscription, store_.time_of(subscription));
}

std::optional<std::int64_t> Subscriptions::next_change(const json &subscription) {
    if (subscription["status"] == "incomplete")
        return subscription["_expires_at"].get<std::int64_t>();
    if (!living(subscription))
        return std::nullopt;
    return first_end(subscription);
}

void Subscriptions::change(json &subscription) {
    const std::int64_t time = *next_change(subscription);
    if (subscription["status"] == "incomplete") {
        const json before = subscription;
        subscription["status"] = "incomplete_expired";
        subscription["ended_at"] = time;
        invoices_.void_invoice(store_.get("invoice", subscription["latest_invoice"]), time);
        store_.emit("customer.subscription.updated", subscription, before);
    } else if (subscription["cancel_at_period_end"] == true) {
        bill_arrears(subscription, time);
        end(subscription, time);
    } else {
        renew(subscription, time);
    }
}

json Subscriptions::renewal_spans(const json &subscription, std::int64_t time, bool renews) {
    json usage = json::array(), fees = json::array();
    for (const json &item : subscription["items"]["data"]) {
        if (item["current_period_end"] != time)
            continue;
        if (!metered(store_.get("price", item["price"])) && renews)
            fees.push_back(span_of(item, time, cycle_of(subscription, item).after(time)));
        else if (metered(store_.get("price", item["price"])) && subscription["status"] != "trialing")
            usage.push_back(usage_span(item, time));
    }
    usage.insert(usage.end(), fees.begin(), fees.end());
    return usage;
}

void Subscriptions::renew(json &subscription, std::int64_t time) {
    const json before = subscription;
    const bool trial = subscription["status"] == "trialing";
    if (trial && subscription["collection_method"] == "charge_automatically" &&
        subscription["_missing_payment_method"] != "create_invoice" && !has_payment_method(subscription)) {
        if (subscription["_missing_payment_method"] == "cancel")
            end(subscription, time);
        else
            set_paused(subscription, time, "trial_end_without_payment_method");
        return;
    }
    const json spans = renewal_spans(subscription, time, true);
    if (!spans.empty() || !subscription["_pending"].empty())
        bill(subscription, "subscription_cycle", spans, time);
    for (json &item : items_of(subscription))
        if (item["current_period_end"] == time) {
            item["current_period_start"] = time;
            item["current_period_end"] = cycle_of(subscription, item).after(time);
        }
    if (trial)
        subscription["status"] = "active";
    store_.emit("customer.subscription.updated", subscription, before);
}

json Subscriptions::preview(const Call &call) {
    json spans = json::array(), subscription;
    std::int64_t time = 0;
    if (call.has("subscription_details")) {
        if (call.has("subscription"))
            throw not_modelled("the preview of a subscription's change");
        Call first = call;
        first.params["items"] = call.params["subscription_details"].value("items", json::array());
        time = store_.time_of(living_customer(store_, call.text("customer"), "customer"));
        subscription = read_subscription(store_, first, time);
        const Cycle cycle = read_cycle(first, shortest_price(store_, items_of(subscription)), time);
        subscription["_cycle"] = {{"reference", cycle.reference},
                                  {"interval", cycle.interval},
                                  {"interval_count", cycle.interval_count}};
        subscription["billing_cycle_anchor"] = first_anchor(first, cycle, time);
        spans = first_spans(subscription, time, true);
    } else {
        const json *found = call.has("subscription")
                                ? &store_.get("subscription", call.text("subscription"), "subscription")
                                : nullptr;
        for (const json &other : store_.all("subscription"))
            if (!found && other["customer"] == call.text("customer") && living(other))
                found = &other;
        if (!found || !living(*found))
            throw ApiError(404, "invalid_request_error",
                           "No upcoming invoices for customer: " + call.text("customer"),
                           "invoice_upcoming_none");
        subscription = *found;
        time = *next_change(subscription);
        spans = subscription["_pending"];
        for (json &span : renewal_spans(subscription, time, subscription["cancel_at_period_end"] != true))
            spans.push_back(std::move(span));
    }
    json invoice = invoices_.build(subscription, "upcoming", std::move(spans), time);
    invoices_.preview_credit(invoice, time);
    return invoices_.preview(std::move(invoice));
}

void Subscriptions::model(Catalog &catalog) {
    catalog.model("POST /v1/subscriptions",
                  {"customer",
                   "items[][price]",
                   "items[][quantity]",
                   "items[][metadata]",
                   "backdate_start_date",
                   "billing_cycle_anchor",
                   "billing_cycle_anchor_config[day_of_month]",
                   "billing_cycle_anchor_config[hour]",
                   "billing_cycle_anchor_config[minute]",
                   "billing_cycle_anchor_config[month]",
                   "billing_cycle_anchor_config[second]",
                   "billing_mode",
                   "cancel_at_period_end",
                   "collection_method",
                   "days_until_due",
                   "default_payment_method",
                   "description",
                   "metadata",
                   "off_session",
                   "payment_behavior",
                   "payment_settings",
                   "proration_behavior",
                   "trial_end",
                   "trial_period_days",
                   "trial_settings[end_behavior][missing_payment_method]"},
                  [this](const Call &call) { return create(call); });
    catalog.model("GET /v1/subscriptions/{id}", {},
                  [this](const Call &call) { return store_.get("subscription", call.id()); });
    catalog.model("POST /v1/subscriptions/{id}",
                  {"cancel_at_period_end", "default_payment_method", "description", "items[][id]",
                   "items[][price]", "items[][deleted]", "metadata", "proration_behavior", "trial_end"},
                  [this](const Call &call) { return update(call); });
    catalog.model("POST /v1/subscriptions/{id}/pause", {"bill_for", "invoicing_behavior", "type"},
                  [this](const Call &call) { return pause(call); });
    catalog.model("POST /v1/subscriptions/{id}/resume", {"billing_cycle_anchor", "payment_behavior"},
                  [this](const Call &call) { return resume(call); });
    catalog.model("DELETE /v1/subscriptions/{id}", {"cancellation_details", "invoice_now", "prorate"},
                  [this](const Call &call) { return cancel(call); });
    catalog.model(
        "GET /v1/subscriptions",
        {"customer", "status", "created", "test_clock", "limit", "starting_after", "ending_before"},
        [this](const Call &call) {
            const std::string status = call.text("status");
            // A test clock's subscriptions are listed only where the clock or a customer is asked for.
            return store_.list("subscription", "/v1/subscriptions", call.params, [&](const json &row) {
                const bool fits = status.empty()      ? row["status"] != "canceled"
                                  : status == "all"   ? true
                                  : status == "ended" ? row["ended_at"].is_number()
                                                      : row["status"] == status;
                return fits && (!call.has("customer") || row["customer"] == call.params["customer"]) &&
                       (call.has("test_clock") ? row["test_clock"] == call.params["test_clock"]
                                               : call.has("customer") || row["test_clock"].is_null()) &&
                       in_range(call.params.value("created", json()), row["created"]);
            });
        });
    catalog.model("GET /v1/subscription_items", {"subscription", "limit", "starting_after", "ending_before"},
                  [this](const Call &call) {
                      std::vector<const json *> items;
                      for (const json &item :
                           items_of(store_.get("subscription", call.text("subscription"), "subscription")))
                          items.push_back(&item);
                      return page_of(items, "/v1/subscription_items", call.params);
                  });
    catalog.model("POST /v1/invoices/create_preview",
                  {"customer", "subscription", "subscription_details[items][][price]",
                   "subscription_details[items][][quantity]", "subscription_details[billing_mode]"},
                  [this](const Call &call) { return preview(call); });
}

}  // namespace pg_billing::sandbox
