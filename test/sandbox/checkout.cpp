#include "test/sandbox/checkout.hpp"

#include "test/sandbox/errors.hpp"
#include "test/sandbox/prices.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::int64_t kDay = 86'400;

}  // namespace

json &Checkout::session_in(const std::string &id, const char *status) {
    json &session = store_.get("checkout.session", id, "session");
    if (session["status"] != status)
        throw invalid("This Session is not in status " + std::string(status) + ".", "session");
    return session;
}

json Checkout::open(const Call &call) {
    if (call.text("mode") != "subscription")
        throw not_modelled("a Checkout session of another mode than subscription");
    const json &customer = store_.get("customer", call.text("customer"), "customer");
    const json lines = call.params.value("line_items", json::array());
    json items = json::array();
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const std::string at = "line_items[" + std::to_string(i) + "]";
        const json &price = store_.get("price", lines[i].value("price", ""), at + "[price]");
        if (metered(price) == lines[i].contains("quantity"))
            throw invalid(metered(price) ? "`quantity` should not be specified where usage_type is `metered`."
                                         : "Quantity is required. Add `quantity` to `" + at + "`",
                          at + "[quantity]");
        items.push_back(lines[i]);
    }
    if (items.empty())
        throw invalid("You must provide one recurring price in `subscription` mode.", "line_items");
    if (!call.has("success_url"))
        throw invalid("You must provide a `success_url`.", "success_url");
    const std::string id = store_.new_id("cs_test", 58);
    const std::int64_t now = store_.time_of(customer);
    json &session =
        store_.add({{"id", id},
                    {"object", "checkout.session"},
                    {"cancel_url", call.params.value("cancel_url", json())},
                    {"client_reference_id", call.params.value("client_reference_id", json())},
                    {"created", now},
                    {"currency", store_.get("price", items[0]["price"])["currency"]},
                    {"customer", customer["id"]},
                    {"expires_at", now + kDay},
                    {"livemode", false},
                    {"metadata", json::object()},
                    {"mode", "subscription"},
                    {"payment_status", "unpaid"},
                    {"status", "open"},
                    {"subscription", nullptr},
                    {"success_url", call.params["success_url"]},
                    {"test_clock", customer["test_clock"]},
                    {"url", "https://checkout.stripe.com/c/pay/" + id + "#fidkdWxOYHwnPyd1blpxYHZxWjA0"},
                    {"_items", std::move(items)},
                    {"_subscription_data", call.params.value("subscription_data", json::object())}});
    return session;
}

json Checkout::complete(const json &given) {
    json &session = session_in(given.value("session", ""), "open");
    json params = session["_subscription_data"];
    params["customer"] = session["customer"];
    params["items"] = session["_items"];
    params["default_payment_method"] = given.value("payment_method", "pm_card_visa");
    const json subscription = subscriptions_.create({std::move(params), {}});
    session["subscription"] = subscription["id"];
    session["status"] = "complete";
    session["url"] = nullptr;
    session["payment_status"] = subscription["status"] == "trialing" ? "no_payment_required"
                                : subscription["status"] == "active" ? "paid"
                                                                     : "unpaid";
    store_.emit("checkout.session.completed", session);
    return session;
}

void Checkout::model(Catalog &catalog) {
    catalog.model("POST /v1/checkout/sessions",
                  {"mode", "customer", "client_reference_id", "line_items[][price]", "line_items[][quantity]",
                   "success_url", "cancel_url", "subscription_data[billing_mode]",
                   "subscription_data[metadata]", "subscription_data[trial_period_days]"},
                  [this](const Call &call) { return open(call); });
    catalog.model("GET /v1/checkout/sessions/{id}", {},
                  [this](const Call &call) { return store_.get("checkout.session", call.id()); });
    catalog.model("POST /v1/checkout/sessions/{id}/expire", {}, [this](const Call &call) {
        json &session = session_in(call.id(), "open");
        session["status"] = "expired";
        session["url"] = nullptr;
        store_.emit("checkout.session.expired", session);
        return session;
    });
    catalog.model("POST /v1/billing_portal/sessions", {"customer", "return_url"}, [this](const Call &call) {
        const json &customer = store_.get("customer", call.text("customer"), "customer");
        const std::string id = store_.new_id("bps", 24);
        return store_.add({{"id", id},
                           {"object", "billing_portal.session"},
                           {"created", store_.time_of(customer)},
                           {"customer", customer["id"]},
                           {"livemode", false},
                           {"return_url", call.params.value("return_url", json())},
                           {"url", "https://billing.stripe.com/p/session/test_" + store_.new_id("", 40)}});
    });
}

}  // namespace pg_billing::sandbox
