#include "test/sandbox/prices.hpp"

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

// Completes {unit_amount | unit_amount_decimal} (or flat_amount…) into both, as Stripe answers; null where neither is.
void set_amounts(json &out, const json &given, const std::string &name, const std::string &where) {
    const std::string exact = name + "_decimal";
    out[name] = out[exact] = nullptr;
    if (given.contains(name) && given.contains(exact))
        throw invalid("You may only specify one of these parameters: " + name + ", " + exact + ".",
                      where + name);
    if (!given.contains(name) && !given.contains(exact))
        return;
    const Decimal amount = given.contains(name) ? Decimal(given[name].get<std::int64_t>())
                                                : Decimal::parse(given[exact].get<std::string>());
    if (amount < Decimal())
        throw invalid("This value must be greater than or equal to 0.", where + name,
                      "parameter_invalid_integer");
    out[exact] = amount.str();
    if (Decimal(amount.truncated()) == amount)
        out[name] = amount.truncated();
}

json read_tiers(const json &given) {
    json tiers = json::array();
    std::int64_t below = 0;
    for (std::size_t i = 0; i < given.size(); ++i) {
        const std::string where = "tiers[" + std::to_string(i) + "]";
        const bool last = i + 1 == given.size();
        json tier;
        set_amounts(tier, given[i], "unit_amount", where);
        set_amounts(tier, given[i], "flat_amount", where);
        if (tier["unit_amount_decimal"].is_null() && tier["flat_amount_decimal"].is_null())
            throw invalid(
                "A tier needs a unit_amount, unit_amount_decimal, flat_amount or flat_amount_decimal.",
                where);
        const json &up_to = given[i]["up_to"];
        if (last != up_to.is_string())
            throw invalid("The last tier, and only it, must have up_to=inf.", where + "[up_to]");
        if (!last && up_to.get<std::int64_t>() <= below)
            throw invalid("Tiers must be given in ascending order of up_to.", where + "[up_to]");
        if (!last)
            below = up_to;
        tier["up_to"] = last ? json() : up_to;
        tiers.push_back(std::move(tier));
    }
    return tiers;
}

json read_recurring(Store &store, const json &given) {
    const std::string usage = given.value("usage_type", "licensed");
    const json meter = given.value("meter", json());
    if (usage == "metered") {
        if (meter.is_null())
            throw invalid("Metered prices must be backed by a meter: give recurring[meter].",
                          "recurring[meter]");
        if (store.get("billing.meter", meter, "recurring[meter]")["status"] != "active")
            throw invalid("The meter is not active.", "recurring[meter]");
    } else if (!meter.is_null()) {
        throw invalid("recurring[meter] needs recurring[usage_type]=metered.", "recurring[meter]");
    }
    return {{"interval", given["interval"]},
            {"interval_count", given.value("interval_count", 1)},
            {"meter", meter},
            {"trial_period_days", nullptr},
            {"usage_type", usage}};
}

// Gives the price the lookup key, taking it from another only where asked to.
void set_lookup_key(Store &store, json &price, const Call &call) {
    if (!call.has("lookup_key"))
        return;
    for (json &other : store.all("price"))
        if (other["lookup_key"] == call.params["lookup_key"] && other["id"] != price["id"]) {
            if (!call.params.value("transfer_lookup_key", false))
                throw invalid(
                    "A price (`" + other["id"].get<std::string>() + "`) already uses that lookup key.",
                    "lookup_key");
            other["lookup_key"] = nullptr;
        }
    price["lookup_key"] = call.params["lookup_key"];
}

json &add_product(Store &store, const json &given) {
    const std::string id = given.value("id", "");
    if (!id.empty() && store.find("product", id))
        throw invalid("Product already exists.", "id", "resource_already_exists");
    json product = {{"id", id.empty() ? store.new_id("prod") : id},
                    {"object", "product"},
                    {"active", given.value("active", true)},
                    {"created", machine_time()},
                    {"default_price", nullptr},
                    {"description", given.value("description", json())},
                    {"images", json::array()},
                    {"livemode", false},
                    {"marketing_features", json::array()},
                    {"metadata", json::object()},
                    {"name", given["name"]},
                    {"package_dimensions", nullptr},
                    {"shippable", nullptr},
                    {"statement_descriptor", nullptr},
                    {"tax_code", nullptr},
                    {"type", "service"},
                    {"unit_label", given.value("unit_label", json())},
                    {"updated", machine_time()},
                    {"url", nullptr}};
    merge_metadata(product, given);
    json &stored = store.add(std::move(product));
    store.emit("product.created", stored);
    return stored;
}

json create_price(Store &store, const Call &call) {
    const json &given = call.params;
    if (given.contains("product") == given.contains("product_data"))
        throw invalid("Exactly one of product and product_data must be given.", "product",
                      "parameter_missing");
    if (given.contains("product"))
        store.get("product", given["product"], "product");
    const bool tiered = given.value("billing_scheme", "per_unit") == "tiered";
    json price = {
        {"id", store.new_id("price", 24)},
        {"object", "price"},
        {"active", given.value("active", true)},
        {"billing_scheme", tiered ? "tiered" : "per_unit"},
        {"created", machine_time()},
        {"currency", given["currency"]},
        {"custom_unit_amount", nullptr},
        {"livemode", false},
        {"lookup_key", nullptr},
        {"metadata", json::object()},
        {"nickname", given.value("nickname", json())},
        {"recurring", given.contains("recurring") ? read_recurring(store, given["recurring"]) : json()},
        {"tax_behavior", "unspecified"},
        {"tiers_mode", given.value("tiers_mode", json())},
        {"transform_quantity", given.value("transform_quantity", json())},
        {"type", given.contains("recurring") ? "recurring" : "one_time"}};
    if (given["currency"].get_ref<const std::string &>().size() != 3)
        throw invalid("Invalid currency: " + call.text("currency"), "currency");
    set_amounts(price, given, "unit_amount", "");
    if (tiered != given.contains("tiers") || tiered != given.contains("tiers_mode"))
        throw invalid("tiers and tiers_mode are for billing_scheme=tiered, which needs both.", "tiers");
    if (tiered == price["unit_amount_decimal"].is_string())
        throw invalid(tiered ? "A tiered price takes its amounts from its tiers."
                             : "unit_amount or unit_amount_decimal is required.",
                      "unit_amount", tiered ? "" : "parameter_missing");
    if (tiered && given.contains("transform_quantity"))
        throw invalid("transform_quantity cannot be combined with tiers.", "transform_quantity");
    if (tiered)
        price["tiers"] = read_tiers(given["tiers"]);
    merge_metadata(price, given);
    set_lookup_key(store, price, call);
    price["product"] =
        given.contains("product") ? given["product"] : add_product(store, given["product_data"])["id"];
    json &stored = store.add(std::move(price));
    store.emit("price.created", stored);
    return stored;
}

bool price_matches(const json &price, const json &params) {
    for (const char *name : {"active", "currency", "product", "type"})
        if (params.contains(name) && price[name] != params[name])
            return false;
    const json recurring = params.value("recurring", json::object());
    for (const auto &[name, value] : recurring.items())
        if (price["recurring"].is_null() || price["recurring"][name] != value)
            return false;
    if (params.contains("lookup_keys")) {
        const json &keys = params["lookup_keys"];
        if (std::find(keys.begin(), keys.end(), price["lookup_key"]) == keys.end())
            return false;
    }
    return in_range(params.value("created", json()), price["created"]);
}

Charge charge_of(const Decimal &quantity, const json &unit, std::string tier) {
    Charge charge{quantity, unit.is_string() ? unit.get<std::string>() : "0", 0, std::move(tier)};
    charge.amount = (quantity * Decimal::parse(charge.unit_amount_decimal)).rounded();
    return charge;
}

// A tier's flat amount is a charge of its own, of no quantity.
void add_flat(std::vector<Charge> &charges, const json &tier, const std::string &name) {
    if (!tier["flat_amount_decimal"].is_string())
        return;
    const std::string flat = tier["flat_amount_decimal"];
    charges.push_back({Decimal(), flat, Decimal::parse(flat).rounded(), name + " flat fee"});
}

}  // namespace

std::vector<Charge> rate(const json &price, const Decimal &quantity) {
    if (const json packages = price.value("transform_quantity", json()); packages.is_object()) {
        // The line shows the quantity as it was used; whole packages are charged.
        Charge charge =
            charge_of(quantity.divided(packages["divide_by"].get<std::int64_t>(), packages["round"] == "up"),
                      price["unit_amount_decimal"], "");
        charge.quantity = quantity;
        return {charge};
    }
    if (price["billing_scheme"] != "tiered")
        return {charge_of(quantity, price["unit_amount_decimal"], "")};
    const bool graduated = price["tiers_mode"] == "graduated";
    std::vector<Charge> charges;
    Decimal below;  // where the tier begins
    for (std::size_t i = 0; i < price["tiers"].size(); ++i) {
        const json &tier = price["tiers"][i];
        const bool last = tier["up_to"].is_null();
        const Decimal top = last ? quantity : Decimal(tier["up_to"].get<std::int64_t>());
        const bool ends_here = last || !(top < quantity);
        const std::string name = "Tier " + std::to_string(i + 1);
        if (graduated || ends_here) {
            const Decimal within = !graduated ? quantity : (ends_here ? quantity : top) - below;
            charges.push_back(charge_of(within, tier["unit_amount_decimal"], name));
            add_flat(charges, tier, name);
        }
        if (ends_here)
            break;
        below = top;
    }
    return charges;
}

void model_prices(Catalog &catalog, Store &store) {
    catalog.model("POST /v1/products", {"name", "active", "description", "id", "metadata", "unit_label"},
                  [&store](const Call &call) { return add_product(store, call.params); });
    catalog.model("GET /v1/products/{id}", {},
                  [&store](const Call &call) { return store.get("product", call.id()); });
    catalog.model("POST /v1/products/{id}", {"name", "active", "description", "metadata", "unit_label"},
                  [&store](const Call &call) {
                      json &product = store.get("product", call.id());
                      const json before = product;
                      for (const char *name : {"name", "active", "description", "unit_label"})
                          if (call.has(name))
                              product[name] = call.params[name] == "" ? json() : call.params[name];
                      merge_metadata(product, call.params);
                      product["updated"] = machine_time();
                      store.emit("product.updated", product, before);
                      return product;
                  });
    catalog.model(
        "GET /v1/products", {"active", "created", "ids", "limit", "starting_after", "ending_before"},
        [&store](const Call &call) {
            const json ids = call.params.value("ids", json());
            return store.list("product", "/v1/products", call.params, [&](const json &product) {
                return (!call.has("active") || product["active"] == call.params["active"]) &&
                       (ids.is_null() || std::find(ids.begin(), ids.end(), product["id"]) != ids.end()) &&
                       in_range(call.params.value("created", json()), product["created"]);
            });
        });
    catalog.model("DELETE /v1/products/{id}", {}, [&store](const Call &call) -> json {
        const json product = store.get("product", call.id());
        for (const json &price : store.all("price"))
            if (price["product"] == product["id"])
                throw invalid(
                    "This product cannot be deleted because it has one or more user-created prices.");
        store.emit("product.deleted", product);
        store.remove("product", call.id());
        return {{"id", call.id()}, {"object", "product"}, {"deleted", true}};
    });
    catalog.model("POST /v1/prices",
                  {"currency",
                   "active",
                   "billing_scheme",
                   "lookup_key",
                   "metadata",
                   "nickname",
                   "product",
                   "product_data[active]",
                   "product_data[id]",
                   "product_data[metadata]",
                   "product_data[name]",
                   "product_data[unit_label]",
                   "recurring[interval]",
                   "recurring[interval_count]",
                   "recurring[meter]",
                   "recurring[usage_type]",
                   "tiers",
                   "tiers_mode",
                   "transfer_lookup_key",
                   "transform_quantity[divide_by]",
                   "transform_quantity[round]",
                   "unit_amount",
                   "unit_amount_decimal"},
                  [&store](const Call &call) { return create_price(store, call); });
    catalog.model("GET /v1/prices/{id}", {},
                  [&store](const Call &call) { return store.get("price", call.id()); });
    catalog.model("POST /v1/prices/{id}",
                  {"active", "lookup_key", "metadata", "nickname", "transfer_lookup_key"},
                  [&store](const Call &call) {
                      json &price = store.get("price", call.id());
                      const json before = price;
                      for (const char *name : {"active", "nickname"})
                          if (call.has(name))
                              price[name] = call.params[name];
                      set_lookup_key(store, price, call);
                      merge_metadata(price, call.params);
                      store.emit("price.updated", price, before);
                      return price;
                  });
    catalog.model("GET /v1/prices",
                  {"active", "created", "currency", "lookup_keys", "product", "recurring", "type", "limit",
                   "starting_after", "ending_before"},
                  [&store](const Call &call) {
                      return store.list("price", "/v1/prices", call.params,
                                        [&](const json &price) { return price_matches(price, call.params); });
                  });
}

}  // namespace pg_billing::sandbox
