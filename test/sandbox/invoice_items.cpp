#include "test/sandbox/invoice_items.hpp"

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

json create(Store &store, const AddToDraft &add_to_draft, const Call &call) {
    const json &params = call.params;
    for (const char *name : {"customer", "amount", "currency"})
        if (!call.has(name))
            throw invalid(std::string("Missing required param: ") + name + ".", name, "parameter_missing");
    const json &customer = store.get("customer", call.text("customer"), "customer");
    const json subscription = params.value("subscription", json());
    if (!subscription.is_null()) {
        const json &found = store.get("subscription", subscription, "subscription");
        if (found["customer"] != customer["id"] || found["ended_at"].is_number())
            throw invalid("The subscription is not a live one of this customer.", "subscription");
    }
    const std::int64_t now = store.time_of(customer);
    json item = {{"id", store.new_id("ii", 24)},
                 {"object", "invoiceitem"},
                 {"amount", params["amount"]},
                 {"currency", params["currency"]},
                 {"customer", customer["id"]},
                 {"date", now},
                 {"description", params.value("description", json())},
                 {"discountable", true},
                 {"discounts", json::array()},
                 {"invoice", nullptr},
                 {"livemode", false},
                 {"metadata", json::object()},
                 {"parent", nullptr},
                 {"period", params.value("period", json{{"start", now}, {"end", now}})},
                 {"proration", false},
                 {"quantity", 1},
                 {"quantity_decimal", "1"},
                 {"tax_rates", json::array()},
                 {"test_clock", customer["test_clock"]},
                 {"_subscription", subscription}};
    if (!subscription.is_null())
        item["parent"] = {
            {"type", "subscription_details"},
            {"subscription_details", {{"subscription", subscription}, {"subscription_item", nullptr}}}};
    merge_metadata(item, params);
    if (call.has("invoice"))
        add_to_draft(params["invoice"], item);
    json &stored = store.add(std::move(item));
    store.emit("invoiceitem.created", stored);
    return stored;
}

}  // namespace

json span_of_item(const json &item) {
    return {{"invoice_item", item["id"]},   {"amount", item["amount"]},
            {"currency", item["currency"]}, {"description", item["description"]},
            {"metadata", item["metadata"]}, {"period", item["period"]}};
}

json pending_spans(Store &store, const json &subscription) {
    json spans = json::array();
    for (const json &item : store.all("invoiceitem"))
        if (item["invoice"].is_null() && item["customer"] == subscription["customer"] &&
            (item["_subscription"].is_null() || item["_subscription"] == subscription.value("id", json())))
            spans.push_back(span_of_item(item));
    return spans;
}

void attach_items(Store &store, const json &invoice) {
    for (const json &span : invoice["_spans"])
        if (span.contains("invoice_item"))
            store.get("invoiceitem", span["invoice_item"])["invoice"] = invoice["id"];
}

json line_of_item(const json &invoice, const json &span, std::size_t number) {
    return {{"id", "il_" + invoice["id"].get<std::string>().substr(3) + std::to_string(number)},
            {"object", "line_item"},
            {"amount", span["amount"]},
            {"currency", span["currency"]},
            {"description", span["description"]},
            {"discount_amounts", json::array()},
            {"discountable", true},
            {"discounts", json::array()},
            {"invoice", invoice["id"]},
            {"livemode", false},
            {"metadata", span["metadata"]},
            {"parent",
             {{"type", "invoice_item_details"},
              {"invoice_item_details", {{"invoice_item", span["invoice_item"]}, {"proration", false}}},
              {"subscription_item_details", nullptr}}},
            {"period", span["period"]},
            {"pretax_credit_amounts", json::array()},
            {"pricing", nullptr},
            {"quantity", 1},
            {"quantity_decimal", "1"},
            {"subtotal", span["amount"]},
            {"taxes", json::array()}};
}

void model_invoice_items(Catalog &catalog, Store &store, AddToDraft add_to_draft) {
    catalog.model(
        "POST /v1/invoiceitems",
        {"customer", "amount", "currency", "description", "invoice", "metadata", "period", "subscription"},
        [&store, add_to_draft](const Call &call) { return create(store, add_to_draft, call); });
    catalog.model("GET /v1/invoiceitems",
                  {"customer", "created", "invoice", "pending", "limit", "starting_after", "ending_before"},
                  [&store](const Call &call) {
                      const json &params = call.params;
                      return store.list("invoiceitem", "/v1/invoiceitems", params, [&](const json &item) {
                          return (!call.has("customer") || item["customer"] == params["customer"]) &&
                                 (!call.has("invoice") || item["invoice"] == params["invoice"]) &&
                                 (!call.has("pending") || item["invoice"].is_null() == params["pending"]) &&
                                 in_range(params.value("created", json()), item["date"]);
                      });
                  });
}

}  // namespace pg_billing::sandbox
