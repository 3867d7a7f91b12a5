// Invoices: what they bill, and their way from draft to paid or void.
//
// An invoice is made of spans, each one subscription item over one stretch of time: a licensed item in advance, a
// metered one in arrears. Lines are rated from the spans; while the invoice is a draft they follow the usage that still
// arrives (docs.stripe.com/billing/subscriptions/usage-based: usage counts until finalization), afterwards they stand.
// Billing credits pay for metered lines when it is finalized, and come back when it is voided.
// A total below zero is credited to the customer's balance, which later invoices use up.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/credits.hpp"
#include "test/sandbox/meters.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

// One item over [start, end); a licensed one may bill only numerator/denominator of its price.
json span_of(const json &item, std::int64_t start, std::int64_t end, std::int64_t numerator = 1,
             std::int64_t denominator = 1);

// How long a draft is one: docs.stripe.com/invoicing/integration/automatic-advancement-collection
constexpr std::int64_t kDraftTime = 3'600;

class Invoices {
  public:
    Invoices(Store &store, Meters &meters, Credits &credits)
        : store_(store), meters_(meters), credits_(credits) {}

    void model(Catalog &catalog);

    // Builds an invoice without storing it.
    json build(const json &subscription, const std::string &reason, json spans, std::int64_t time);
    // Shows what credit would pay of a built one.
    void preview_credit(json &invoice, std::int64_t time) { credits_.apply(invoice, time, true); }
    // Stores a built invoice as a draft that finalizes by itself at that time; null: it does not.
    json &add_draft(json invoice, json finalizes_at);
    // Adds an invoice item to a draft.
    void add_item(const std::string &invoice, json &item);
    // Keeps a built invoice for whoever asks for its lines; returns it as it is. It is on no list.
    json preview(json invoice);
    // Freezes a draft and, for charge_automatically, tries to collect unless payment waits for the customer.
    void finalize(json &invoice, std::int64_t time, bool collect = true);
    // The span with its usage as it is now, which later usage does not change.
    json settled(json span, const std::string &customer);
    void void_invoice(json &invoice, std::int64_t time);
    // Rates a customer's drafts again.
    void usage_changed(const std::string &customer);
    // Whether a payment of this invoice would succeed.
    bool payable(const json &invoice);

  private:
    Decimal quantity_of(const json &span, const std::string &customer);
    void rate_lines(json &invoice);
    void collect(json &invoice, std::int64_t time);
    void mark_paid(json &invoice, std::int64_t time);
    json create(const Call &call);
    json pay(const Call &call);
    json &invoice_in(const Call &call, const char *status);

    Store &store_;
    Meters &meters_;
    Credits &credits_;
    std::map<std::string, json> previews_;
};

}  // namespace pg_billing::sandbox
