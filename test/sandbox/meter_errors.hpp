// Meter events that Stripe accepts and then cannot count: it reports them by thin events, which name a few of them and
// count the others (docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).
#pragma once

#include <deque>
#include <string>

#include "test/sandbox/webhooks.hpp"

namespace pg_billing::sandbox {

class MeterErrors {
  public:
    explicit MeterErrors(Webhooks &webhooks) : webhooks_(webhooks) {}

    // Lets the next `times` meter events pass uncounted; the report of them goes out with the last.
    json demand(const json &description);
    // Whether this event is one of those.
    bool uncounted(const json &meter, const std::string &identifier);

    // Reports an event of the event stream that is wrong; `meter` is null where there is none.
    void refused(const json &meter, const std::string &code, const std::string &message,
                 const std::string &identifier);

  private:
    struct Batch {
        std::string code, name;  // name: identifier or idempotency_key, as which the samples are named
        std::size_t times, samples;
        json named = json::array();
        std::size_t errors = 0;
    };
    void report(const Batch &batch, const json &meter);

    Webhooks &webhooks_;
    std::deque<Batch> batches_;
};

}  // namespace pg_billing::sandbox
