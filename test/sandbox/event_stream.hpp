// The event stream of the API v2: sessions, whose token is the only key to it, and requests of many meter events, which
// are answered before they are looked at (docs.stripe.com/api/v2/billing-meter-stream).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/meter_errors.hpp"
#include "test/sandbox/meters.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

class EventStream {
  public:
    static constexpr const char *kPath = "/v2/billing/meter_event_stream";

    EventStream(Store &store, Meters &meters, MeterErrors &errors)
        : store_(store), meters_(meters), errors_(errors) {}

    void model(Catalog &catalog);
    // Throws unless the token is that of a session that lasts.
    void authenticate(const std::string &token) const;
    // Ends all sessions, and the {"next"} ones before they begin.
    json expire(const json &wish);

  private:
    json open();
    void take(json event);

    Store &store_;
    Meters &meters_;
    MeterErrors &errors_;
    std::map<std::string, std::int64_t> sessions_;  // by token, until when (machine time)
    std::int64_t stillborn_ = 0;                    // so many more sessions
};

}  // namespace pg_billing::sandbox
