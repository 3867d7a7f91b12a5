#include "test/sandbox/credits.hpp"

#include <algorithm>
#include <limits>
#include <tuple>

#include "test/sandbox/errors.hpp"
#include "test/sandbox/prices.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr const char *kGrant = "billing.credit_grant", *kTransaction = "billing.credit_balance_transaction";
constexpr std::size_t kMaxUnused = 100;

json monetary(const json &currency, std::int64_t value) {
    return {{"type", "monetary"}, {"monetary", {{"currency", currency}, {"value", value}}}};
}

const json &currency_of(const json &grant) {
    return grant["amount"]["monetary"]["currency"];
}

bool ended(const json &grant, std::int64_t time) {
    return !grant["voided_at"].is_null() || (grant["expires_at"].is_number() && grant["expires_at"] <= time);
}

}  // namespace

json &Credits::record(const json &grant, const char *type, const char *subtype, std::int64_t amount,
                      std::int64_t time, const json &line) {
    json move = {{"amount", monetary(currency_of(grant), amount)}, {"type", subtype}};
    const bool credit = std::string(type) == "credit";
    move[credit ? "credits_application_invoice_voided" : "credits_applied"] = line;
    json &transaction = store_.add({{"id", store_.new_id("cbtxn_test", 24)},
                                    {"object", kTransaction},
                                    {"created", time},
                                    {"credit", credit ? move : json()},
                                    {"credit_grant", grant["id"]},
                                    {"debit", credit ? json() : move},
                                    {"effective_at", time},
                                    {"livemode", false},
                                    {"test_clock", grant["test_clock"]},
                                    {"type", type}});
    store_.emit("billing.credit_balance_transaction.created", transaction);
    return transaction;
}

std::int64_t Credits::balance_of(const json &grant) {
    std::int64_t balance = 0;
    for (const json &transaction : store_.all(kTransaction))
        if (transaction["credit_grant"] == grant["id"]) {
            const bool credit = transaction["type"] == "credit";
            const std::int64_t value =
                transaction[credit ? "credit" : "debit"]["amount"]["monetary"]["value"];
            balance += credit ? value : -value;
        }
    return balance;
}

std::vector<json *> Credits::spendable(const std::string &customer, const std::string &currency,
                                       std::int64_t time) {
    std::vector<json *> grants;
    for (json &grant : store_.all(kGrant))
        if (grant["customer"] == customer && currency_of(grant) == currency &&
            grant["effective_at"] <= time && !ended(grant, time))
            grants.push_back(&grant);
    const auto rank = [](const json &grant) {
        return std::tuple(grant["priority"].get<int>(),
                          grant["expires_at"].is_null() ? std::numeric_limits<std::int64_t>::max()
                                                        : grant["expires_at"].get<std::int64_t>(),
                          grant["effective_at"].get<std::int64_t>());
    };
    std::stable_sort(grants.begin(), grants.end(),
                     [&](const json *a, const json *b) { return rank(*a) < rank(*b); });
    return grants;
}

bool Credits::covers(const json &grant, const json &price) {
    if (!metered(price))
        return false;
    const json &scope = grant["applicability_config"]["scope"];
    if (scope.contains("price_type"))
        return true;
    return std::any_of(scope["prices"].begin(), scope["prices"].end(),
                       [&](const json &covered) { return covered["id"] == price["id"]; });
}

void Credits::apply(json &invoice, std::int64_t time, bool preview) {
    std::int64_t spent = 0;
    json totals = json::array();
    for (json *grant : spendable(invoice["customer"], invoice["currency"], time)) {
        std::int64_t balance = balance_of(*grant);
        for (json &line : invoice["_lines"]) {
            if (line["pricing"].is_null())
                continue;  // an invoice item
            std::int64_t due = line["amount"];
            for (const json &paid : line["pretax_credit_amounts"])
                due -= paid["amount"].get<std::int64_t>();
            const std::int64_t amount = std::min(due, balance);
            if (amount <= 0 ||
                !covers(*grant, store_.get("price", line["pricing"]["price_details"]["price"])))
                continue;
            json part = {{"amount", amount},
                         {"credit_balance_transaction", nullptr},
                         {"type", "credit_balance_transaction"}};
            if (!preview)
                part["credit_balance_transaction"] =
                    record(*grant, "debit", "credits_applied", amount, time,
                           {{"invoice", invoice["id"]}, {"invoice_line_item", line["id"]}})["id"];
            line["pretax_credit_amounts"].push_back(part);
            totals.push_back(part);
            balance -= amount;
            spent += amount;
        }
    }
    invoice["total_pretax_credit_amounts"] = std::move(totals);
    const std::int64_t total = invoice["total"].get<std::int64_t>() - spent;
    invoice["total"] = total;
    for (const char *sum : {"amount_due", "amount_remaining"})
        invoice[sum] = std::max<std::int64_t>(total, 0);
}

void Credits::reinstate(const json &invoice, std::int64_t time) {
    std::vector<json> spent;
    for (const json &transaction : store_.all(kTransaction))
        if (transaction["type"] == "debit" && transaction["debit"]["type"] == "credits_applied" &&
            transaction["debit"]["credits_applied"]["invoice"] == invoice["id"])
            spent.push_back(transaction);
    for (const json &transaction : spent) {
        json &grant = store_.get(kGrant, transaction["credit_grant"]);
        record(grant, "credit", "credits_application_invoice_voided",
               transaction["debit"]["amount"]["monetary"]["value"], time,
               transaction["debit"]["credits_applied"]);
        if (ended(grant, time))
            expire_grant(grant, time);
    }
}

void Credits::expire_grant(json &grant, std::int64_t time) {
    if (const std::int64_t balance = balance_of(grant); balance > 0)
        record(grant, "debit", "credits_expired", balance, time);
}

void Credits::expire_due(const json &clock, std::int64_t time) {
    for (json &grant : store_.all(kGrant))
        if (grant["test_clock"] == clock && grant["expires_at"].is_number() && grant["expires_at"] <= time)
            expire_grant(grant, grant["expires_at"]);
}

json &Credits::create(const Call &call) {
    const json &customer = store_.get("customer", call.text("customer"), "customer");
    const json &amount = call.params["amount"];
    const json scope = call.params["applicability_config"].value("scope", json::object());
    if (!amount.contains("monetary") || amount["monetary"]["value"] <= 0)
        throw invalid("A monetary amount must be greater than 0.", "amount[monetary][value]");
    if (scope.contains("price_type") == scope.contains("prices"))
        throw invalid("You must specify either price_type or prices.", "applicability_config[scope]");
    for (const json &covered : scope.value("prices", json::array()))
        if (!metered(store_.get("price", covered["id"], "applicability_config[scope][prices]")))
            throw invalid("Credit grants only apply to prices with a meter.",
                          "applicability_config[scope][prices]");
    const std::int64_t now = store_.time_of(customer);
    const std::int64_t priority = call.params.value("priority", std::int64_t{50});
    if (priority < 0 || priority > 100)
        throw invalid("The priority must be between 0 and 100.", "priority");
    if (call.has("expires_at") && call.params["expires_at"] <= now)
        throw invalid("expires_at must be in the future.", "expires_at");
    const auto unused =
        std::count_if(store_.all(kGrant).begin(), store_.all(kGrant).end(), [&](const json &grant) {
            return grant["customer"] == customer["id"] && !ended(grant, now) && balance_of(grant) > 0;
        });
    if (static_cast<std::size_t>(unused) >= kMaxUnused)
        throw invalid("A customer can have at most 100 unused credit grants.", "customer");
    json &grant =
        store_.add({{"id", store_.new_id("credgr_test", 24)},
                    {"object", kGrant},
                    {"amount", monetary(amount["monetary"]["currency"], amount["monetary"]["value"])},
                    {"applicability_config", {{"scope", scope}}},
                    {"category", call.params.value("category", "paid")},
                    {"created", now},
                    {"customer", customer["id"]},
                    {"customer_account", nullptr},
                    {"effective_at", call.params.value("effective_at", now)},
                    {"expires_at", call.params.value("expires_at", json())},
                    {"livemode", false},
                    {"metadata", json::object()},
                    {"name", call.params.value("name", json())},
                    {"priority", priority},
                    {"test_clock", customer["test_clock"]},
                    {"updated", now},
                    {"voided_at", nullptr}});
    merge_metadata(grant, call.params);
    record(grant, "credit", "credits_granted", grant["amount"]["monetary"]["value"], grant["effective_at"]);
    store_.emit("billing.credit_grant.created", grant);
    return grant;
}

json &Credits::update(const Call &call) {
    json &grant = store_.get(kGrant, call.id());
    const json before = grant;
    const std::int64_t now = store_.time_of(grant);
    if (ended(grant, now))
        throw invalid("The credit grant has expired or was voided.");
    if (call.has("expires_at")) {
        if (call.params["expires_at"].is_number() && call.params["expires_at"] <= now)
            throw invalid("expires_at must be in the future.", "expires_at");
        grant["expires_at"] = call.params["expires_at"].is_number() ? call.params["expires_at"] : json();
    }
    merge_metadata(grant, call.params);
    grant["updated"] = now;
    store_.emit("billing.credit_grant.updated", grant, before);
    return grant;
}

json &Credits::void_grant(const Call &call) {
    json &grant = store_.get(kGrant, call.id());
    const json before = grant;
    const std::int64_t now = store_.time_of(grant), amount = grant["amount"]["monetary"]["value"];
    if (ended(grant, now))
        throw invalid("The credit grant has expired or was voided.");
    if (balance_of(grant) != amount)
        throw invalid("A credit grant that was applied to an invoice cannot be voided.");
    grant["voided_at"] = grant["updated"] = now;
    record(grant, "debit", "credits_voided", amount, now);
    store_.emit("billing.credit_grant.updated", grant, before);
    return grant;
}

json &Credits::expire(const Call &call) {
    json &grant = store_.get(kGrant, call.id());
    const json before = grant;
    const std::int64_t now = store_.time_of(grant);
    if (ended(grant, now))
        throw invalid("The credit grant has expired or was voided.");
    grant["expires_at"] = grant["updated"] = now;
    expire_grant(grant, now);
    store_.emit("billing.credit_grant.updated", grant, before);
    return grant;
}

json Credits::summary(const Call &call) {
    const json &filter = call.params["filter"];
    const json &customer = store_.get("customer", call.text("customer"), "customer");
    const std::int64_t now = store_.time_of(customer);
    const json scope = filter.value("applicability_scope", json::object());
    std::map<std::string, std::int64_t> balances;
    for (const json &grant : store_.all(kGrant)) {
        const json &covered = grant["applicability_config"]["scope"];
        const bool asked = filter["type"] == "credit_grant" ? grant["id"] == filter.value("credit_grant", "")
                           : scope.contains("prices")
                               ? std::any_of(scope["prices"].begin(), scope["prices"].end(),
                                             [&](const json &price) {
                                                 return covers(grant, store_.get("price", price["id"]));
                                             })
                               : covered.contains("price_type");
        if (asked && grant["customer"] == customer["id"] && !ended(grant, now))
            balances[currency_of(grant)] += balance_of(grant);
    }
    json list = json::array();
    for (const auto &[currency, balance] : balances)
        list.push_back({{"available_balance", monetary(currency, balance)},
                        {"ledger_balance", monetary(currency, balance)}});
    return {{"object", "billing.credit_balance_summary"},
            {"balances", std::move(list)},
            {"customer", customer["id"]},
            {"customer_account", nullptr},
            {"livemode", false}};
}

void Credits::model(Catalog &catalog) {
    catalog.model("POST /v1/billing/credit_grants",
                  {"amount", "applicability_config", "category", "customer", "effective_at", "expires_at",
                   "metadata", "name", "priority"},
                  [this](const Call &call) { return create(call); });
    catalog.model("GET /v1/billing/credit_grants/{id}", {},
                  [this](const Call &call) { return store_.get(kGrant, call.id()); });
    catalog.model("POST /v1/billing/credit_grants/{id}", {"expires_at", "metadata"},
                  [this](const Call &call) { return update(call); });
    catalog.model("POST /v1/billing/credit_grants/{id}/void", {},
                  [this](const Call &call) { return void_grant(call); });
    catalog.model("POST /v1/billing/credit_grants/{id}/expire", {},
                  [this](const Call &call) { return expire(call); });
    catalog.model("GET /v1/billing/credit_grants", {"customer", "limit", "starting_after", "ending_before"},
                  [this](const Call &call) {
                      return store_.list(
                          kGrant, "/v1/billing/credit_grants", call.params, [&](const json &grant) {
                              return !call.has("customer") || grant["customer"] == call.params["customer"];
                          });
                  });
    catalog.model("GET /v1/billing/credit_balance_summary", {"customer", "filter"},
                  [this](const Call &call) { return summary(call); });
    catalog.model("GET /v1/billing/credit_balance_transactions/{id}", {},
                  [this](const Call &call) { return store_.get(kTransaction, call.id()); });
    catalog.model(
        "GET /v1/billing/credit_balance_transactions",
        {"credit_grant", "customer", "limit", "starting_after", "ending_before"}, [this](const Call &call) {
            return store_.list(
                kTransaction, "/v1/billing/credit_balance_transactions", call.params, [&](const json &row) {
                    return (!call.has("credit_grant") ||
                            row["credit_grant"] == call.params["credit_grant"]) &&
                           (!call.has("customer") ||
                            store_.get(kGrant, row["credit_grant"])["customer"] == call.params["customer"]);
                });
        });
}

}  // namespace pg_billing::sandbox
