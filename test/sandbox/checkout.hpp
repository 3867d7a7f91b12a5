// Sessions in the customer's browser: Checkout in subscription mode, and the customer portal's URL.
//
// Nobody visits a page here: POST /_sandbox/checkout says that the customer paid, and with what. Then the subscription
// comes about as Checkout makes it: in flexible mode, at that second, paid with the method that was entered.
#pragma once

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"
#include "test/sandbox/subscriptions.hpp"

namespace pg_billing::sandbox {

class Checkout {
  public:
    Checkout(Store &store, Subscriptions &subscriptions) : store_(store), subscriptions_(subscriptions) {}

    void model(Catalog &catalog);
    // The customer pays: {"session": "cs_…", "payment_method": "pm_card_visa"}; returns the session.
    json complete(const json &given);

  private:
    json open(const Call &call);
    json &session_in(const std::string &id, const char *status);

    Store &store_;
    Subscriptions &subscriptions_;
};

}  // namespace pg_billing::sandbox
