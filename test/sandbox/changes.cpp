// Changes of a subscription's items within its period, and of its trial's end, by flexible billing's rules: what is left of the period is
// credited at a licensed item's old price and charged at its new one, by the second; what a metered item has counted is
// billed at its old price, as it is now, and counted from zero at its new one
// (docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup).
#include <algorithm>

#include "test/sandbox/errors.hpp"
#include "test/sandbox/prices.hpp"
#include "test/sandbox/subscriptions.hpp"
#include "test/sandbox/terms.hpp"

namespace pg_billing::sandbox {
namespace {

const json *change_of(const json &item, const json &changes) {
    for (const json &change : changes)
        if (change.value("id", "") == item["id"])
            return &change;
    return nullptr;
}

}  // namespace

json Subscriptions::rest_of(const json &subscription, const json &item, std::int64_t now, bool credit) {
    const std::int64_t start = item["current_period_start"], end = item["current_period_end"];
    const Cycle cycle = cycle_of(subscription, item);
    const std::int64_t whole =
        (cycle.not_after(start) == start ? end : Cycle{start, cycle.interval, cycle.interval_count}.at(1)) -
        start;
    json span = span_of(item, now, end, end - now, whole);
    span["credit"] = credit;
    return span;
}

json Subscriptions::change_items(json &subscription, const json &changes, std::int64_t now) {
    const bool trial = subscription["status"] == "trialing";
    if (!trial && subscription["status"] != "active" && subscription["status"] != "past_due")
        throw not_modelled(
            "a change of items of a subscription that is neither active, in a trial nor past due");
    json &items = subscription["items"]["data"];
    for (const json &change : changes)
        if (change.contains("id") && std::none_of(items.begin(), items.end(), [&](const json &item) {
                return item["id"] == change["id"];
            }))
            throw no_such("subscription_item", change["id"], "items");

    json wanted = json::array(), before = json::array(), leaving = json::array();
    for (const json &item : items) {
        const json *change = change_of(item, changes);
        if (change && change->value("deleted", false)) {
            leaving.push_back(item);
            continue;
        }
        json next = {{"price", item["price"]}, {"metadata", item["metadata"]}};
        if (item.contains("quantity"))
            next["quantity"] = item["quantity"];
        if (change)
            next["price"] = change->value("price", item["price"].get<std::string>());
        if (next["price"] == item["price"])
            next["_kept"] = true;
        wanted.push_back(std::move(next));
        before.push_back(item);
    }
    for (const json &change : changes)
        if (!change.contains("id")) {
            wanted.push_back(change);
            before.push_back(nullptr);
        }
    json changed = read_items(store_, wanted, "items");
    const json &price = shortest_price(store_, changed);
    const Cycle cycle = cycle_of(subscription);
    if (price["recurring"]["interval"] != cycle.interval ||
        price["recurring"]["interval_count"] != cycle.interval_count)
        throw not_modelled("a change of the shortest billing interval");
    if (price["currency"] != subscription["currency"])
        throw invalid("All prices on a subscription must have the same currency.", "items");

    json entering = json::array();
    for (std::size_t i = 0; i < changed.size(); ++i) {
        json &item = changed[i];
        if (!before[i].is_null() && before[i]["price"] == item["price"]) {
            item = before[i];
            continue;
        }
        const json &alike = before[i].is_null() ? items[0] : before[i];
        for (const char *name : {"subscription", "current_period_start", "current_period_end"})
            item[name] = alike[name];
        const Cycle its = cycle_of(subscription, item), other = cycle_of(subscription, alike);
        if (its.interval != other.interval || its.interval_count != other.interval_count) {
            item["current_period_start"] = its.not_after(now);
            item["current_period_end"] = its.after(now);
        }
        item["created"] = now;
        if (!before[i].is_null()) {
            item["id"] = alike["id"];
            item["created"] = alike["created"];
            leaving.push_back(before[i]);
        }
        item["_since"] = now;
        entering.push_back(item);
    }
    json spans = json::array();
    for (const json &item : leaving)
        spans.push_back(metered(store_.get("price", item["price"]))
                            ? invoices_.settled(usage_span(item, now), subscription["customer"])
                            : rest_of(subscription, item, now, true));
    for (const json &item : entering)
        if (!metered(store_.get("price", item["price"])))
            spans.push_back(rest_of(subscription, item, now, false));
    items = std::move(changed);
    return trial ? json::array() : spans;
}

// A trial's end is where the first cycle begins: now, or at a time to come.
void Subscriptions::move_trial_end(json &subscription, const json &trial_end, std::int64_t now) {
    if (subscription["status"] != "trialing")
        throw not_modelled("a trial of a subscription that is not in one");
    const std::int64_t end = trial_end == "now" ? now : trial_end.get<std::int64_t>();
    if (end < now || (end == now && trial_end != "now"))
        throw invalid("Invalid timestamp: must be an integer Unix timestamp in the future.", "trial_end");
    subscription["trial_end"] = subscription["billing_cycle_anchor"] = subscription["_cycle"]["reference"] =
        end;
    for (json &item : subscription["items"]["data"])
        item["current_period_end"] = end;
    if (end == now)
        renew(subscription, now);
}

json Subscriptions::update(const Call &call) {
    json &subscription = store_.get("subscription", call.id());
    if (subscription["status"] == "canceled" || subscription["status"] == "incomplete_expired")
        throw invalid("A canceled subscription can only update its cancellation_details and metadata.");
    const json before = subscription;
    const std::int64_t now = store_.time_of(subscription);
    const std::string behavior = call.text("proration_behavior", "create_prorations");
    if (call.has("items"))
        for (json &span : change_items(subscription, call.params["items"], now))
            if (behavior != "none")
                subscription["_pending"].push_back(std::move(span));
    if (call.has("trial_end"))
        move_trial_end(subscription, call.params["trial_end"], now);
    for (const char *name : {"description", "default_payment_method", "cancel_at_period_end"})
        if (call.has(name))
            subscription[name] = call.params[name] == "" ? json() : call.params[name];
    if (call.has("cancel_at_period_end")) {
        const bool cancels = call.params["cancel_at_period_end"];
        subscription["cancel_at"] = cancels ? json(first_end(subscription)) : json();
        subscription["canceled_at"] = cancels ? json(now) : json();
        subscription["cancellation_details"]["reason"] = cancels ? json("cancellation_requested") : json();
    }
    merge_metadata(subscription, call.params);
    if (behavior == "always_invoice" && !subscription["_pending"].empty()) {
        json &invoice = bill(subscription, "subscription_update", json::array(), now);
        if (subscription["collection_method"] == "charge_automatically")
            invoices_.finalize(invoice, now);
    }
    store_.emit("customer.subscription.updated", subscription, before);
    return subscription;
}

}  // namespace pg_billing::sandbox
