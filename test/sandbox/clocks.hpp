// Time: test clocks, and everything that happens because time passes.
//
// advance() carries out what falls due in the order in which it does, one thing at a time, setting the clock to each
// moment first; so an invoice drafted at a period's end is finalized an hour of clock time later, before the next
// period ends. Customers without a clock live in the machine's time.
#pragma once

#include <cstdint>
#include <string>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/invoices.hpp"
#include "test/sandbox/store.hpp"
#include "test/sandbox/subscriptions.hpp"

namespace pg_billing::sandbox {

class Clocks {
  public:
    Clocks(Store &store, Subscriptions &subscriptions, Invoices &invoices, Credits &credits)
        : store_(store), subscriptions_(subscriptions), invoices_(invoices), credits_(credits) {}

    void model(Catalog &catalog);
    // Carries out what fell due for customers without a test clock.
    void tick() { advance(nullptr, machine_time()); }

  private:
    void advance(json *clock, std::int64_t target);

    Store &store_;
    Subscriptions &subscriptions_;
    Invoices &invoices_;
    Credits &credits_;
};

}  // namespace pg_billing::sandbox
