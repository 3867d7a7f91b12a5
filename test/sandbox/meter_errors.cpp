#include "test/sandbox/meter_errors.hpp"

#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

json MeterErrors::demand(const json &description) {
    const std::size_t times = description.value("times", 1);
    batches_.push_back({description.value("code", "meter_event_customer_not_found"),
                        description.value("name", "identifier"), times, description.value("samples", times)});
    return description;
}

bool MeterErrors::uncounted(const json &meter, const std::string &identifier) {
    if (batches_.empty())
        return false;
    Batch &batch = batches_.front();
    if (batch.named.size() < batch.samples)
        batch.named.push_back(
            {{"error_message", "Not counted (on demand)."}, {"request", {{batch.name, identifier}}}});
    if (++batch.errors == batch.times) {
        report(batch, meter);
        batches_.pop_front();
    }
    return true;
}

void MeterErrors::refused(const json &meter, const std::string &code, const std::string &message,
                          const std::string &identifier) {
    const json sample = {{"error_message", message}, {"request", {{"identifier", identifier}}}};
    report({code, "identifier", 1, 1, json::array({sample}), 1}, meter);
}

void MeterErrors::report(const Batch &batch, const json &meter) {
    const json types = {
        {{"code", batch.code}, {"error_count", batch.errors}, {"sample_errors", batch.named}}};
    const json data = {{"developer_message_summary", "There were errors processing meter events."},
                       {"validation_start", "2026-01-01T00:00:00.000Z"},
                       {"validation_end", "2026-01-01T00:00:10.000Z"},
                       {"reason", {{"error_count", batch.errors}, {"error_types", types}}}};
    if (meter.is_null() || batch.code == "no_meter")
        webhooks_.notify("v1.billing.meter.no_meter_found", json(), machine_time(), data);
    else
        webhooks_.notify("v1.billing.meter.error_report_triggered", meter, machine_time(), data);
}

}  // namespace pg_billing::sandbox
