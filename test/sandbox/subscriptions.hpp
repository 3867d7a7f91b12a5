// Subscriptions: creation, renewal, trial end, cancellation, and the preview of what they will bill next; changes of
// items and of the trial are in changes.cpp, pauses in pauses.cpp.
//
// Billing is Stripe's flexible mode: a licensed item bills each period in advance, the first invoice included; a
// metered one bills in arrears at a period's end and is absent from the first invoice. A backdated subscription bills
// one line for each period that began since (docs.stripe.com/billing/subscriptions/backdating). A first period cut
// short by the anchor is prorated against the whole interval that begins at its start; one that is whole is billed in
// full. Items may have different intervals in months, multiples of the shortest: each has periods of its own, which begin
// with one of the shortest's; those of a year in the month of the billing cycle's anchor, as docs.stripe.com has it of
// anchors (billing/subscriptions/billing-cycle). What begins or ends at one time is one invoice.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "test/sandbox/calendar.hpp"
#include "test/sandbox/catalog.hpp"
#include "test/sandbox/invoices.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

class Subscriptions {
  public:
    Subscriptions(Store &store, Invoices &invoices) : store_(store), invoices_(invoices) {}

    void model(Catalog &catalog);

    // When the subscription next changes by itself: a period or trial ends, or an incomplete one expires.
    static std::optional<std::int64_t> next_change(const json &subscription);
    // Carries out that change.
    void change(json &subscription);
    json create(const Call &call);
    // Ends all of a customer's, without a bill.
    void end_all(const std::string &customer);

  private:
    json first_spans(json &subscription, std::int64_t now, bool prorates);
    json update(const Call &call);
    json pause(const Call &call);
    json resume(const Call &call);
    json cancel(const Call &call);
    json preview(const Call &call);
    // When the first of its items' periods ends.
    static std::int64_t first_end(const json &subscription);
    // What the items whose periods end at that time bill: usage in arrears and, if they renew, fees in advance.
    json renewal_spans(const json &subscription, std::int64_t time, bool renews);
    json usage_spans(const json &subscription, std::int64_t until);
    // What a metered item has counted of its period at its price.
    static json usage_span(const json &item, std::int64_t until);
    // What is left of a licensed item's period.
    json rest_of(const json &subscription, const json &item, std::int64_t now, bool credit);
    // What is left of the period, of all licensed items, as credits; none in a trial.
    json unused_spans(const json &subscription, std::int64_t now);
    void move_trial_end(json &subscription, const json &trial_end, std::int64_t now);
    void set_paused(json &subscription, std::int64_t time, const char *why);
    bool has_payment_method(const json &subscription);
    // Replaces the items and returns the prorations.
    json change_items(json &subscription, const json &changes, std::int64_t now);
    // Drafts an invoice of what is pending and these spans.
    json &bill(json &subscription, const std::string &reason, const json &spans, std::int64_t time);
    void bill_arrears(json &subscription, std::int64_t time);
    // The cycle of the items with the shortest interval, and that of any.
    static Cycle cycle_of(const json &subscription);
    Cycle cycle_of(const json &subscription, const json &item);
    void end(json &subscription, std::int64_t time);
    void renew(json &subscription, std::int64_t time);

    Store &store_;
    Invoices &invoices_;
};

}  // namespace pg_billing::sandbox
