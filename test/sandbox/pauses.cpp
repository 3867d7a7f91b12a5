// Pauses (POST /v1/subscriptions/:id/pause, since 2026-09-30.endive): the period ends, what was used until then is billed
// and what is left of it credited as asked for; nothing is invoiced until the subscription is resumed, when a whole
// cycle begins (docs.stripe.com/billing/subscriptions/pausing).
#include "test/sandbox/errors.hpp"
#include "test/sandbox/prices.hpp"
#include "test/sandbox/subscriptions.hpp"

namespace pg_billing::sandbox {
namespace {

std::string type_of(const json &object, const char *name, const char *fallback) {
    return object.value(name, json::object()).value("type", fallback);
}

}  // namespace

bool Subscriptions::has_payment_method(const json &subscription) {
    const json &customer = store_.get("customer", subscription["customer"]);
    return !subscription["default_payment_method"].is_null() ||
           !customer["invoice_settings"]["default_payment_method"].is_null() ||
           !customer["default_source"].is_null();
}

json Subscriptions::unused_spans(const json &subscription, std::int64_t now) {
    json spans = json::array();
    if (subscription["status"] == "trialing")
        return spans;
    for (const json &item : subscription["items"]["data"])
        if (!metered(store_.get("price", item["price"])))
            spans.push_back(rest_of(subscription, item, now, true));
    return spans;
}

void Subscriptions::set_paused(json &subscription, std::int64_t time, const char *why) {
    const json before = subscription;
    subscription["status"] = "paused";
    subscription["status_details"]["paused"] = {
        {"type", "subscription"}, {"subscription", {{"type", why}}}, {"transitioned_at", time}};
    for (json &item : subscription["items"]["data"])
        item["current_period_end"] = time;
    store_.emit("customer.subscription.paused", subscription);
    store_.emit("customer.subscription.updated", subscription, before);
}

json Subscriptions::pause(const Call &call) {
    json &subscription = store_.get("subscription", call.id());
    if (subscription["status"] != "active")
        throw invalid("Only an active subscription can be paused. This subscription is " +
                      subscription["status"].get<std::string>() + ".");
    const std::int64_t now = store_.time_of(subscription);
    const json bill_for = call.params.value("bill_for", json::object());
    const std::string unused = type_of(bill_for, "unused_time_from", "now");
    if (unused == "item_current_period_start")
        throw not_modelled("bill_for[unused_time_from][type]=item_current_period_start");
    json &pending = subscription["_pending"];
    if (type_of(bill_for, "outstanding_usage_through", "now") == "now")
        for (const json &span : usage_spans(subscription, now))
            pending.push_back(invoices_.settled(span, subscription["customer"]));
    if (unused == "now")
        for (json &span : unused_spans(subscription, now))
            pending.push_back(std::move(span));
    if (call.text("invoicing_behavior", "pending_invoice_item") == "invoice" && !pending.empty()) {
        json &invoice = bill(subscription, "subscription_update", json::array(), now);
        if (subscription["collection_method"] == "charge_automatically")
            invoices_.finalize(invoice, now);
    }
    set_paused(subscription, now, "pause_requested");
    return subscription;
}

json Subscriptions::resume(const Call &call) {
    json &subscription = store_.get("subscription", call.id());
    if (subscription["status"] != "paused")
        throw invalid("Only a paused subscription can be resumed. This subscription is " +
                      subscription["status"].get<std::string>() + ".");
    if (type_of(call.params, "billing_cycle_anchor", "now") != "now" ||
        call.text("payment_behavior", "resume_on_payment_attempt") != "resume_on_payment_attempt")
        throw not_modelled("resuming within the old cycle, or only on payment");
    const json before = subscription;
    const std::int64_t now = store_.time_of(subscription);
    subscription["billing_cycle_anchor"] = subscription["_cycle"]["reference"] = now;
    subscription["status"] = "active";
    subscription.erase("status_details");
    json spans = json::array();
    for (json &item : subscription["items"]["data"]) {
        item["current_period_start"] = now;
        item["current_period_end"] = cycle_of(subscription, item).after(now);
        if (!metered(store_.get("price", item["price"])))
            spans.push_back(span_of(item, now, item["current_period_end"]));
    }
    if (!spans.empty() || !subscription["_pending"].empty())
        bill(subscription, "subscription_update", spans, now);
    store_.emit("customer.subscription.resumed", subscription);
    store_.emit("customer.subscription.updated", subscription, before);
    return subscription;
}

}  // namespace pg_billing::sandbox
