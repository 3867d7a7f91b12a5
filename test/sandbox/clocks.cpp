#include "test/sandbox/clocks.hpp"

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {

void Clocks::advance(json *clock, std::int64_t target) {
    const json id = clock ? (*clock)["id"] : json();
    for (;;) {
        std::int64_t due = target;
        json *invoice = nullptr, *subscription = nullptr;
        // Invoices first: of two things due at once, the older period's comes before the newer's.
        for (json &row : store_.all("invoice"))
            if (row["status"] == "draft" && row["test_clock"] == id &&
                row["automatically_finalizes_at"].is_number() &&
                (row["automatically_finalizes_at"] < due ||
                 (!invoice && row["automatically_finalizes_at"] == due))) {
                due = row["automatically_finalizes_at"];
                invoice = &row;
            }
        for (json &row : store_.all("subscription")) {
            const auto change = Subscriptions::next_change(row);
            if (change && row["test_clock"] == id &&
                (*change < due || (!invoice && !subscription && *change == due))) {
                due = *change;
                invoice = nullptr;
                subscription = &row;
            }
        }
        credits_.expire_due(id, due);
        if (!invoice && !subscription)
            break;
        if (clock)
            (*clock)["frozen_time"] = due;
        if (invoice)
            invoices_.finalize(*invoice, due);
        else
            subscriptions_.change(*subscription);
    }
    if (clock)
        (*clock)["frozen_time"] = target;
}

void Clocks::model(Catalog &catalog) {
    catalog.model("POST /v1/test_helpers/test_clocks", {"frozen_time", "name"}, [this](const Call &call) {
        json &clock = store_.add({{"id", store_.new_id("clock", 24)},
                                  {"object", "test_helpers.test_clock"},
                                  {"created", machine_time()},
                                  {"deletes_after", machine_time() + 30 * 86'400},
                                  {"frozen_time", call.params["frozen_time"]},
                                  {"livemode", false},
                                  {"name", call.params.value("name", json())},
                                  {"status", "ready"},
                                  {"status_details", json::object()}});
        store_.emit("test_helpers.test_clock.created", clock);
        return clock;
    });
    catalog.model("GET /v1/test_helpers/test_clocks/{id}", {},
                  [this](const Call &call) { return store_.get("test_helpers.test_clock", call.id()); });
    catalog.model("GET /v1/test_helpers/test_clocks", {"limit", "starting_after", "ending_before"},
                  [this](const Call &call) {
                      return store_.list("test_helpers.test_clock", "/v1/test_helpers/test_clocks",
                                         call.params, [](const json &) { return true; });
                  });
    // Stripe answers `advancing` and clients poll until `ready`; here all is done by the time they do.
    catalog.model(
        "POST /v1/test_helpers/test_clocks/{id}/advance", {"frozen_time"}, [this](const Call &call) {
            json &clock = store_.get("test_helpers.test_clock", call.id());
            const std::int64_t target = call.params["frozen_time"];
            if (target <= clock["frozen_time"])
                throw invalid("The frozen_time must be later than the clock's current time.", "frozen_time");
            clock["status"] = "advancing";
            store_.emit("test_helpers.test_clock.advancing", clock);
            advance(&clock, target);
            json answer = clock;
            clock["status"] = "ready";
            store_.emit("test_helpers.test_clock.ready", clock);
            return answer;
        });
}

}  // namespace pg_billing::sandbox
