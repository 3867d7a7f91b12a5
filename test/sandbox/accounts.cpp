#include "test/sandbox/accounts.hpp"

#include <algorithm>
#include <cctype>

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

// Applies what create and update share.
void set_customer(json &customer, const Call &call) {
    for (const char *name :
         {"name", "email", "description", "phone", "address", "preferred_locales", "tax_exempt"})
        if (call.has(name))
            customer[name] = call.params[name] == "" ? json() : call.params[name];
    const json settings = call.params.value("invoice_settings", json::object());
    if (settings.contains("default_payment_method"))
        customer["invoice_settings"]["default_payment_method"] = settings["default_payment_method"];
    if (call.has("source"))
        customer["default_source"] = call.params["source"];
    // Stripe's test payment methods and tokens; a real one would have to exist.
    for (const json &method :
         {customer["invoice_settings"]["default_payment_method"], customer["default_source"]})
        if (!method.is_null() && method != "pm_card_visa" && method != "pm_card_chargeCustomerFail" &&
            method != "tok_visa")
            throw no_such("PaymentMethod", method, "invoice_settings[default_payment_method]");
    merge_metadata(customer, call.params);
}

json create_customer(Store &store, const Call &call) {
    std::string prefix = store.new_id("", 8).substr(1);
    std::transform(prefix.begin(), prefix.end(), prefix.begin(),
                   [](unsigned char c) { return std::toupper(c); });
    json customer = {{"id", store.new_id("cus")},
                     {"object", "customer"},
                     {"address", nullptr},
                     {"balance", 0},
                     {"currency", nullptr},
                     {"default_source", nullptr},
                     {"delinquent", false},
                     {"description", nullptr},
                     {"email", nullptr},
                     {"invoice_prefix", prefix},
                     {"invoice_settings",
                      {{"custom_fields", nullptr},
                       {"default_payment_method", nullptr},
                       {"footer", nullptr},
                       {"rendering_options", nullptr}}},
                     {"livemode", false},
                     {"metadata", json::object()},
                     {"name", nullptr},
                     {"next_invoice_sequence", 1},
                     {"phone", nullptr},
                     {"preferred_locales", json::array()},
                     {"shipping", nullptr},
                     {"tax_exempt", "none"},
                     {"test_clock", call.params.value("test_clock", json())}};
    if (call.has("test_clock"))
        store.get("test_helpers.test_clock", call.text("test_clock"), "test_clock");
    set_customer(customer, call);
    customer["created"] = store.time_of(customer);
    json &stored = store.add(std::move(customer));
    store.emit("customer.created", stored);
    return stored;
}

bool event_matches(const json &event, const json &params) {
    if (params.contains("type") && event["type"] != params["type"])
        return false;
    if (params.contains("types")) {
        const json &types = params["types"];
        if (std::find(types.begin(), types.end(), event["type"]) == types.end())
            return false;
    }
    if (params.contains("delivery_success") && params["delivery_success"] != (event["pending_webhooks"] == 0))
        return false;
    return in_range(params.value("created", json()), event["created"]);
}

// What is left of a deleted customer is what it owed: its drafts are finalized yet.
json delete_customer(Store &store, const std::string &id) {
    json &customer = living_customer(store, id, "id");
    const json before = customer;
    customer["_deleted"] = true;
    store.emit("customer.deleted", before);
    return {{"id", id}, {"object", "customer"}, {"deleted", true}};
}

}  // namespace

json &living_customer(Store &store, const std::string &id, const std::string &param) {
    json &customer = store.get("customer", id, param);
    if (customer.contains("_deleted"))
        throw no_such("customer", id, param);
    return customer;
}

void model_accounts(Catalog &catalog, Store &store, std::function<void(const std::string &)> deleted) {
    const std::set<std::string> settable = {"name",        "email",
                                            "description", "phone",
                                            "address",     "preferred_locales",
                                            "tax_exempt",  "invoice_settings[default_payment_method]",
                                            "metadata",    "source"};
    std::set<std::string> creatable = settable;
    creatable.insert("test_clock");
    catalog.model("POST /v1/customers", creatable,
                  [&store](const Call &call) { return create_customer(store, call); });
    catalog.model("GET /v1/customers/{id}", {}, [&store](const Call &call) -> json {
        const json &customer = store.get("customer", call.id());
        if (customer.contains("_deleted"))
            return {{"id", call.id()}, {"object", "customer"}, {"deleted", true}};
        return customer;
    });
    catalog.model("DELETE /v1/customers/{id}", {}, [&store, deleted](const Call &call) {
        json answer = delete_customer(store, call.id());
        deleted(call.id());
        return answer;
    });
    catalog.model("POST /v1/customers/{id}", settable, [&store](const Call &call) {
        json &customer = living_customer(store, call.id(), "id");
        const json before = customer;
        json changed = customer;
        set_customer(changed, call);
        customer = std::move(changed);
        store.emit("customer.updated", customer, before);
        return customer;
    });
    catalog.model("GET /v1/customers",
                  {"email", "created", "test_clock", "limit", "starting_after", "ending_before"},
                  [&store](const Call &call) {
                      return store.list("customer", "/v1/customers", call.params, [&](const json &row) {
                          // Stripe lists a test clock's customers only where the clock is asked for.
                          return !row.contains("_deleted") &&
                                 (call.has("test_clock") ? row["test_clock"] == call.params["test_clock"]
                                                         : row["test_clock"].is_null()) &&
                                 (!call.has("email") || row["email"] == call.params["email"]) &&
                                 in_range(call.params.value("created", json()), row["created"]);
                      });
                  });
    catalog.model("GET /v1/events/{id}", {},
                  [&store](const Call &call) { return store.get("event", call.id()); });
    catalog.model(
        "GET /v1/events",
        {"created", "delivery_success", "type", "types", "limit", "starting_after", "ending_before"},
        [&store](const Call &call) {
            if (call.has("types") && call.params["types"].size() > 20)
                throw invalid("You may pass up to 20 event types.", "types");
            return store.list("event", "/v1/events", call.params,
                              [&](const json &event) { return event_matches(event, call.params); });
        });
}

}  // namespace pg_billing::sandbox
