#include "test/sandbox/entitlements.hpp"

#include <set>

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr const char *kFeature = "entitlements.feature", *kProductFeature = "product_feature";

// A lookup key names one feature for ever, archived or not.
json create_feature(Store &store, const Call &call) {
    for (const json &other : store.all(kFeature))
        if (other["lookup_key"] == call.params["lookup_key"])
            throw invalid("A feature with that lookup_key already exists.", "lookup_key",
                          "resource_already_exists");
    json feature = {{"id", store.new_id("feat")},
                    {"object", kFeature},
                    {"active", true},
                    {"livemode", false},
                    {"lookup_key", call.params["lookup_key"]},
                    {"metadata", json::object()},
                    {"name", call.params["name"]}};
    merge_metadata(feature, call.params);
    return store.add(std::move(feature));
}

// As Stripe shows it: the feature is embedded as it is now.
json shown(Store &store, json attached) {
    attached["entitlement_feature"] = store.get(kFeature, attached["_feature"]);
    return attached;
}

json attach_feature(Store &store, const Call &call) {
    const std::string product = store.get("product", call.id())["id"];
    const json &feature = store.get(kFeature, call.text("entitlement_feature"), "entitlement_feature");
    if (!feature["active"].get<bool>())
        throw invalid("The feature is archived.", "entitlement_feature");
    for (const json &other : store.all(kProductFeature))
        if (other["_product"] == product && other["_feature"] == feature["id"])
            throw invalid("The feature is already attached to this product.", "entitlement_feature",
                          "resource_already_exists");
    return shown(store, store.add({{"id", store.new_id("prodft")},
                                   {"object", kProductFeature},
                                   {"livemode", false},
                                   {"_product", product},
                                   {"_feature", feature["id"]}}));
}

json list_attached(Store &store, const Call &call) {
    const std::string product = store.get("product", call.id())["id"];
    json page = store.list(kProductFeature, "/v1/products/" + product + "/features", call.params,
                           [&](const json &row) { return row["_product"] == product; });
    for (json &row : page["data"])
        row = shown(store, row);
    return page;
}

// The features of all products that the customer's living subscriptions have.
json list_active(Store &store, const Call &call) {
    const std::string customer = store.get("customer", call.text("customer"), "customer")["id"];
    std::set<std::string> products, granted;
    for (const json &subscription : store.all("subscription")) {
        const std::string status = subscription["status"];
        if (subscription["customer"] == customer && (status == "active" || status == "trialing"))
            for (const json &item : subscription["items"]["data"])
                products.insert(store.get("price", item["price"])["product"]);
    }
    for (const json &row : store.all(kProductFeature))
        if (products.count(row["_product"]))
            granted.insert(row["_feature"]);
    std::vector<json> rows;
    for (const std::string &id : granted)
        rows.push_back({{"id", "ent_" + customer.substr(4) + id.substr(5)},
                        {"object", "entitlements.active_entitlement"},
                        {"feature", id},
                        {"livemode", false},
                        {"lookup_key", store.get(kFeature, id)["lookup_key"]}});
    std::vector<const json *> newest_first;
    for (const json &row : rows)
        newest_first.push_back(&row);
    return page_of(newest_first, "/v1/entitlements/active_entitlements", call.params);
}

}  // namespace

void model_entitlements(Catalog &catalog, Store &store) {
    catalog.model("POST /v1/entitlements/features", {"lookup_key", "name", "metadata"},
                  [&store](const Call &call) { return create_feature(store, call); });
    catalog.model("GET /v1/entitlements/features/{id}", {},
                  [&store](const Call &call) { return store.get(kFeature, call.id()); });
    catalog.model("POST /v1/entitlements/features/{id}", {"active", "metadata", "name"},
                  [&store](const Call &call) {
                      json &feature = store.get(kFeature, call.id());
                      for (const char *name : {"active", "name"})
                          if (call.has(name))
                              feature[name] = call.params[name];
                      merge_metadata(feature, call.params);
                      return feature;
                  });
    catalog.model(
        "GET /v1/entitlements/features",
        {"archived", "lookup_key", "limit", "starting_after", "ending_before"}, [&store](const Call &call) {
            return store.list(kFeature, "/v1/entitlements/features", call.params, [&](const json &feature) {
                return (!call.has("lookup_key") || feature["lookup_key"] == call.params["lookup_key"]) &&
                       (!call.has("archived") || feature["active"] != call.params["archived"]);
            });
        });
    catalog.model("POST /v1/products/{id}/features", {"entitlement_feature"},
                  [&store](const Call &call) { return attach_feature(store, call); });
    catalog.model("GET /v1/products/{id}/features", {"limit", "starting_after", "ending_before"},
                  [&store](const Call &call) { return list_attached(store, call); });
    catalog.model("DELETE /v1/products/{productId}/features/{id}", {}, [&store](const Call &call) -> json {
        const std::string id = call.args.back();
        if (store.get(kProductFeature, id)["_product"] != call.id())
            throw no_such("product_feature", id);
        store.remove(kProductFeature, id);
        return {{"id", id}, {"object", kProductFeature}, {"deleted", true}};
    });
    catalog.model("GET /v1/entitlements/active_entitlements",
                  {"customer", "limit", "starting_after", "ending_before"},
                  [&store](const Call &call) { return list_active(store, call); });
}

}  // namespace pg_billing::sandbox
