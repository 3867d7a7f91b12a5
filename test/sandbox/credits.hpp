// Billing credits: grants, what they pay of invoices, and the transactions that tell it
// (docs.stripe.com/billing/subscriptions/usage-based/billing-credits).
//
// Credit is spent when an invoice is finalized, on lines whose price has a meter, in the order of priority, expiry and
// age; the invoice's total falls by it. What a grant has left is the sum of its transactions. A voided invoice gives
// its credit back. A grant is void only while nothing of it was spent; it can expire at any time.
#pragma once

#include <cstdint>
#include <string>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

class Credits {
  public:
    explicit Credits(Store &store) : store_(store) {}

    void model(Catalog &catalog);

    // Lets credit pay for an invoice's lines at that time; a preview shows it and spends nothing.
    void apply(json &invoice, std::int64_t time, bool preview = false);
    // Gives back what paid for an invoice.
    void reinstate(const json &invoice, std::int64_t time);
    // Expires what has to by then, of the customers that live in a test clock's time, or in the machine's (null).
    void expire_due(const json &clock, std::int64_t time);

  private:
    json &create(const Call &call);
    json &update(const Call &call);
    json &void_grant(const Call &call);
    json &expire(const Call &call);
    json summary(const Call &call);
    // The customer's grants that may pay at that time, those first that are spent first.
    std::vector<json *> spendable(const std::string &customer, const std::string &currency,
                                  std::int64_t time);
    // Whether a grant's scope covers the price.
    bool covers(const json &grant, const json &price);
    std::int64_t balance_of(const json &grant);
    void expire_grant(json &grant, std::int64_t time);
    // Records a transaction of a grant: a credit or a debit, of Stripe's type of it.
    json &record(const json &grant, const char *type, const char *subtype, std::int64_t amount,
                 std::int64_t time, const json &line = nullptr);

    Store &store_;
};

}  // namespace pg_billing::sandbox
