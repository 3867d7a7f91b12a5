#include "test/sandbox/invoices.hpp"

#include <algorithm>
#include <cstdio>

#include "test/sandbox/errors.hpp"
#include "test/sandbox/invoice_items.hpp"
#include "test/sandbox/prices.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::int64_t kDay = 86'400;

json line_of(const json &invoice, const json &span, const json &price, const Charge &charge,
             std::size_t number, const std::string &description) {
    return {{"id", "il_" + invoice["id"].get<std::string>().substr(3) + std::to_string(number)},
            {"object", "line_item"},
            {"amount", charge.amount},
            {"currency", price["currency"]},
            {"description", description},
            {"discount_amounts", json::array()},
            {"discountable", true},
            {"discounts", json::array()},
            {"invoice", invoice["id"]},
            {"livemode", false},
            {"metadata", json::object()},
            {"parent",
             {{"type", "subscription_item_details"},
              {"invoice_item_details", nullptr},
              {"subscription_item_details",
               {{"invoice_item", nullptr},
                {"proration", span.contains("credit") || span["numerator"] != span["denominator"]},
                {"proration_details", nullptr},
                {"subscription", invoice["parent"]["subscription_details"]["subscription"]},
                {"subscription_item", span["item"]}}}}},
            {"period", {{"start", span["start"]}, {"end", span["end"]}}},
            {"pretax_credit_amounts", json::array()},
            {"pricing",
             {{"type", "price_details"},
              {"price_details", {{"price", price["id"]}, {"product", price["product"]}}},
              {"unit_amount_decimal", charge.unit_amount_decimal}}},
            {"quantity", charge.quantity.truncated()},
            {"quantity_decimal", charge.quantity.str()},
            {"subtotal", charge.amount},
            {"taxes", json::array()}};
}

// The subscription an invoice is of; null: none.
json subscription_of(const json &invoice) {
    return invoice["parent"].is_null() ? json() : invoice["parent"]["subscription_details"]["subscription"];
}

}  // namespace

json span_of(const json &item, std::int64_t start, std::int64_t end, std::int64_t numerator,
             std::int64_t denominator) {
    return {{"item", item["id"]},
            {"price", item["price"]},
            {"quantity", item.value("quantity", std::int64_t{0})},
            {"start", start},
            {"end", end},
            {"numerator", numerator},
            {"denominator", denominator}};
}

Decimal Invoices::quantity_of(const json &span, const std::string &customer) {
    if (span.contains("usage"))
        return Decimal::parse(span["usage"].get<std::string>());
    const json &price = store_.get("price", span["price"]);
    return metered(price)
               ? meters_.billable(price["recurring"]["meter"], customer, span["start"], span["end"])
               : Decimal(span["quantity"].get<std::int64_t>());
}

json Invoices::settled(json span, const std::string &customer) {
    span["usage"] = quantity_of(span, customer).str();
    return span;
}

void Invoices::rate_lines(json &invoice) {
    json lines = json::array();
    std::int64_t total = 0;
    for (const json &span : invoice["_spans"]) {
        if (span.contains("invoice_item")) {
            lines.push_back(line_of_item(invoice, span, lines.size() + 1));
            total += span["amount"].get<std::int64_t>();
            continue;
        }
        const json &price = store_.get("price", span["price"]);
        const std::string product = store_.get("product", price["product"])["name"];
        for (Charge charge : rate(price, quantity_of(span, invoice["customer"]))) {
            charge.amount = prorate(charge.amount, span["numerator"], span["denominator"]);
            if (span.value("credit", false))
                charge.amount = -charge.amount;
            const std::string description = charge.quantity.str() + " × " + product +
                                            (charge.tier.empty() ? "" : " (" + charge.tier + ")");
            lines.push_back(line_of(invoice, span, price, charge, lines.size() + 1, description));
            total += charge.amount;
        }
    }
    invoice["_lines"] = std::move(lines);
    for (const char *sum : {"subtotal", "total"})
        invoice[sum] = total;
    for (const char *sum : {"amount_due", "amount_remaining"})
        invoice[sum] = std::max<std::int64_t>(total, 0);
}

json Invoices::build(const json &subscription, const std::string &reason, json spans, std::int64_t time) {
    const json &customer = store_.get("customer", subscription["customer"]);
    const json &item = subscription["items"]["data"][0];
    for (json &span : pending_spans(store_, subscription))
        spans.push_back(std::move(span));
    json invoice = {{"id", store_.new_id("in", 24)},
                    {"object", "invoice"},
                    {"account_country", "US"},
                    {"amount_overpaid", 0},
                    {"amount_paid", 0},
                    {"attempt_count", 0},
                    {"attempted", false},
                    {"auto_advance", true},
                    {"automatically_finalizes_at", nullptr},
                    {"billing_reason", reason},
                    {"collection_method", subscription["collection_method"]},
                    {"confirmation_secret", nullptr},
                    {"created", time},
                    {"currency", subscription["currency"]},
                    {"customer", customer["id"]},
                    {"customer_email", customer["email"]},
                    {"customer_name", customer["name"]},
                    {"default_payment_method", subscription["default_payment_method"]},
                    {"description", nullptr},
                    {"due_date", nullptr},
                    {"effective_at", nullptr},
                    {"ending_balance", nullptr},
                    {"hosted_invoice_url", nullptr},
                    {"invoice_pdf", nullptr},
                    {"last_finalization_error", nullptr},
                    {"livemode", false},
                    {"metadata", json::object()},
                    {"next_payment_attempt", nullptr},
                    {"number", nullptr},
                    {"parent",
                     {{"type", "subscription_details"},
                      {"quote_details", nullptr},
                      {"subscription_details",
                       {{"metadata", subscription["metadata"]}, {"subscription", subscription["id"]}}}}},
                    {"period_start", item["current_period_start"]},
                    {"period_end", item["current_period_end"]},
                    {"starting_balance", 0},
                    {"status", "draft"},
                    {"status_transitions",
                     {{"finalized_at", nullptr},
                      {"marked_uncollectible_at", nullptr},
                      {"paid_at", nullptr},
                      {"voided_at", nullptr}}},
                    {"test_clock", customer["test_clock"]},
                    {"total_pretax_credit_amounts", json::array()},
                    {"total_taxes", json::array()},
                    {"_spans", std::move(spans)},
                    {"_days_until_due", subscription["days_until_due"]}};
    rate_lines(invoice);
    return invoice;
}

json Invoices::preview(json invoice) {
    const std::string id = "upcoming_" + invoice["id"].get<std::string>();
    invoice["id"] = id;
    return previews_[id] = std::move(invoice);
}

json &Invoices::add_draft(json built, json finalizes_at) {
    json &invoice = store_.add(std::move(built));
    attach_items(store_, invoice);
    invoice["automatically_finalizes_at"] = finalizes_at;
    store_.emit("invoice.created", invoice);
    return invoice;
}

void Invoices::add_item(const std::string &id, json &item) {
    json &invoice = store_.get("invoice", id);
    if (invoice["status"] != "draft")
        throw invalid("This invoice is no longer editable", "invoice", "invoice_not_editable");
    if (invoice["customer"] != item["customer"] || invoice["currency"] != item["currency"])
        throw invalid("The invoice is not one of this customer, in this currency.", "invoice");
    const json before = invoice;
    item["invoice"] = id;
    invoice["_spans"].push_back(span_of_item(item));
    rate_lines(invoice);
    store_.emit("invoice.updated", invoice, before);
}

json Invoices::create(const Call &call) {
    const json &params = call.params;
    const json &customer = store_.get("customer", call.text("customer"), "customer");
    const std::int64_t now = store_.time_of(customer);
    const json like = {{"id", nullptr},
                       {"customer", customer["id"]},
                       {"items", {{"data", {{{"current_period_start", now}, {"current_period_end", now}}}}}},
                       {"collection_method", params.value("collection_method", "charge_automatically")},
                       {"currency", params.value("currency", "usd")},
                       {"default_payment_method", nullptr},
                       {"metadata", json::object()},
                       {"days_until_due", params.value("days_until_due", json())}};
    json invoice = build(like, "manual", json::array(), now);
    if (params.value("pending_invoice_items_behavior", "exclude") != "include") {
        invoice["_spans"] = json::array();
        rate_lines(invoice);
    }
    invoice["parent"] = nullptr;
    merge_metadata(invoice, params);
    const bool advances = params.value("auto_advance", false);
    invoice["auto_advance"] = advances;
    return add_draft(std::move(invoice), advances ? json(now + kDraftTime) : json());
}

void Invoices::usage_changed(const std::string &customer) {
    for (json &invoice : store_.all("invoice"))
        if (invoice["status"] == "draft" && invoice["customer"] == customer)
            rate_lines(invoice);
}

bool Invoices::payable(const json &invoice) {
    const json &customer = store_.get("customer", invoice["customer"]);
    for (const json &method :
         {invoice["default_payment_method"], customer["invoice_settings"]["default_payment_method"],
          customer["default_source"]})
        if (!method.is_null())
            return method != "pm_card_chargeCustomerFail";
    return false;
}

void Invoices::finalize(json &invoice, std::int64_t time, bool attempt) {
    const json before = invoice;
    json &customer = store_.get("customer", invoice["customer"]);
    const int sequence = customer["next_invoice_sequence"];
    customer["next_invoice_sequence"] = sequence + 1;
    char number[16];
    std::snprintf(number, sizeof number, "-%04d", sequence);
    const std::string id = invoice["id"];
    credits_.apply(invoice, time);
    const std::int64_t balance = customer["balance"], total = invoice["total"];  // below zero: a credit
    invoice["starting_balance"] = balance;
    invoice["ending_balance"] = customer["balance"] = std::min<std::int64_t>(balance + total, 0);
    invoice["amount_due"] = invoice["amount_remaining"] = std::max<std::int64_t>(balance + total, 0);
    invoice["number"] = customer["invoice_prefix"].get<std::string>() + number;
    invoice["status"] = "open";
    invoice["automatically_finalizes_at"] = nullptr;
    invoice["effective_at"] = invoice["status_transitions"]["finalized_at"] = time;
    invoice["hosted_invoice_url"] = "https://invoice.stripe.com/i/acct_sandbox/test_" + id;
    invoice["invoice_pdf"] = "https://pay.stripe.com/invoice/acct_sandbox/test_" + id + "/pdf";
    if (invoice["collection_method"] == "send_invoice")
        invoice["due_date"] = time + invoice["_days_until_due"].get<std::int64_t>() * kDay;
    else if (invoice["amount_due"] > 0)
        invoice["confirmation_secret"] = {
            {"type", "payment_intent"},
            {"client_secret", store_.new_id("pi", 24) + "_secret_" + id.substr(3)}};
    store_.emit("invoice.finalized", invoice, before);
    store_.emit("invoice.updated", invoice, before);
    if (invoice["amount_due"] == 0)
        mark_paid(invoice, time);
    else if (attempt && invoice["collection_method"] == "charge_automatically")
        collect(invoice, time);
}

void Invoices::collect(json &invoice, std::int64_t time) {
    invoice["attempted"] = true;
    invoice["attempt_count"] = invoice["attempt_count"].get<int>() + 1;
    if (payable(invoice)) {
        mark_paid(invoice, time);
        return;
    }
    store_.emit("invoice.payment_failed", invoice);
    const json id = subscription_of(invoice);
    if (id.is_null())
        return;
    json &subscription = store_.get("subscription", id);
    if (subscription["status"] == "active") {
        const json before = subscription;
        subscription["status"] = "past_due";
        store_.emit("customer.subscription.updated", subscription, before);
    }
}

void Invoices::mark_paid(json &invoice, std::int64_t time) {
    const json before = invoice;
    invoice["status"] = "paid";
    invoice["attempted"] = true;
    invoice["amount_paid"] = invoice["amount_due"];
    invoice["amount_remaining"] = 0;
    invoice["status_transitions"]["paid_at"] = time;
    store_.emit("invoice.paid", invoice, before);
    store_.emit("invoice.payment_succeeded", invoice);
    const json id = subscription_of(invoice);
    json *subscription = id.is_null() ? nullptr : store_.find("subscription", id);
    if (!subscription ||
        ((*subscription)["status"] != "incomplete" && (*subscription)["status"] != "past_due"))
        return;
    for (const json &other : store_.all("invoice"))
        if (other["status"] == "open" && other["collection_method"] == "charge_automatically" &&
            subscription_of(other) == id)
            return;
    const json old = *subscription;
    (*subscription)["status"] = "active";
    store_.emit("customer.subscription.updated", *subscription, old);
}

void Invoices::void_invoice(json &invoice, std::int64_t time) {
    const json before = invoice;
    credits_.reinstate(invoice, time);
    invoice["status"] = "void";
    invoice["status_transitions"]["voided_at"] = time;
    store_.emit("invoice.voided", invoice, before);
    store_.emit("invoice.updated", invoice, before);
}

json &Invoices::invoice_in(const Call &call, const char *status) {
    json &invoice = store_.get("invoice", call.id());
    if (invoice["status"] != status)
        throw invalid("You can only pass in " + std::string(status) + " invoices. This invoice is " +
                      invoice["status"].get<std::string>() + ".");
    return invoice;
}

json Invoices::pay(const Call &call) {
    json &invoice = store_.get("invoice", call.id());
    const std::int64_t time = store_.time_of(invoice);
    if (invoice["status"] == "draft")
        finalize(invoice, time, false);
    else if (invoice["status"] == "paid")
        throw invalid("Invoice is already paid", "", "invoice_already_paid");
    else if (invoice["status"] != "open")
        throw invalid("This invoice can no longer be paid.");
    if (invoice["status"] == "paid")
        return invoice;
    json attempt = invoice;
    if (call.has("payment_method"))
        attempt["default_payment_method"] = call.params["payment_method"];
    if (!call.params.value("paid_out_of_band", false) && !payable(attempt))
        throw ApiError(402, "card_error", "The invoice has no payment method that can be charged.",
                       "card_declined");
    mark_paid(invoice, time);
    return invoice;
}

void Invoices::model(Catalog &catalog) {
    catalog.model("POST /v1/invoices",
                  {"customer", "auto_advance", "collection_method", "currency", "days_until_due", "metadata",
                   "pending_invoice_items_behavior"},
                  [this](const Call &call) { return create(call); });
    catalog.model("GET /v1/invoices/{id}", {},
                  [this](const Call &call) { return store_.get("invoice", call.id()); });
    catalog.model(
        "GET /v1/invoices",
        {"collection_method", "created", "customer", "due_date", "status", "subscription", "limit",
         "starting_after", "ending_before"},
        [this](const Call &call) {
            const json &params = call.params;
            return store_.list("invoice", "/v1/invoices", params, [&](const json &invoice) {
                for (const char *name : {"collection_method", "customer", "status"})
                    if (params.contains(name) && invoice[name] != params[name])
                        return false;
                if (call.has("subscription") && subscription_of(invoice) != params["subscription"])
                    return false;
                const json &due = invoice["due_date"];
                return in_range(params.value("created", json()), invoice["created"]) &&
                       (!call.has("due_date") || (!due.is_null() && in_range(params["due_date"], due)));
            });
        });
    catalog.model(
        "GET /v1/invoices/{id}/lines", {"limit", "starting_after", "ending_before"},
        [this](const Call &call) {
            const auto preview = previews_.find(call.id());
            const json &lines =
                (preview != previews_.end() ? preview->second : store_.get("invoice", call.id()))["_lines"];
            std::vector<const json *> in_order;
            for (const json &line : lines)
                in_order.push_back(&line);
            return page_of(in_order, "/v1/invoices/" + call.id() + "/lines", call.params);
        });
    catalog.model("POST /v1/invoices/{id}/finalize", {}, [this](const Call &call) {
        json &invoice = invoice_in(call, "draft");
        finalize(invoice, store_.time_of(invoice));
        return invoice;
    });
    catalog.model("POST /v1/invoices/{id}/void", {}, [this](const Call &call) {
        json &invoice = invoice_in(call, "open");
        void_invoice(invoice, store_.time_of(invoice));
        return invoice;
    });
    catalog.model("POST /v1/invoices/{id}/mark_uncollectible", {}, [this](const Call &call) {
        json &invoice = invoice_in(call, "open");
        const json before = invoice;
        invoice["status"] = "uncollectible";
        invoice["status_transitions"]["marked_uncollectible_at"] = store_.time_of(invoice);
        store_.emit("invoice.marked_uncollectible", invoice, before);
        return invoice;
    });
    catalog.model("POST /v1/invoices/{id}/pay", {"paid_out_of_band", "payment_method", "off_session"},
                  [this](const Call &call) { return pay(call); });
}

}  // namespace pg_billing::sandbox
