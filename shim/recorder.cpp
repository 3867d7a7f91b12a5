#include "shim/recorder.hpp"

#include "shim/arrays.hpp"
#include "shim/decision.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

// Who waits for a row or a key that somebody else holds must not hold up a group for long.
constexpr char kGroupLimits[] = "SELECT set_config('lock_timeout', '500ms', true)";

const std::string kRecord =
    std::string("SELECT d.request, d.ordinal, d.idempotency_key, ") + kDecisionColumns + R"(
    FROM billing.record_usage_requests($1::bytea[], $2::text[], $3::int[], $4::text[], $5::text[], $6::numeric[],
                                       $7::text[], $8::timestamptz[], $9::jsonb[]) d)";
constexpr std::size_t kRequest = 0, kOrdinal = 1, kKey = 2, kFirstOfDecision = 3;

std::size_t bytes_of(const std::vector<Event> &events) {
    std::size_t bytes = 0;
    const auto add = [&bytes](const std::optional<std::string> &text) { bytes += text ? text->size() : 0; };
    for (const Event &event : events) {
        bytes += sizeof event + event.metric.size();
        add(event.tenant);
        add(event.quantity);
        add(event.idempotency_key);
        add(event.occurred_at);
        add(event.properties);
    }
    return bytes;
}

}  // namespace

Recorder::Recorder(boost::asio::io_context &context, Database &database, Options options)
    : database_(database),
      options_(options),
      together_(context, options.lanes, options.group_events,
                [this](const Together<Posted>::Group &group) { return send(group); }) {}

awaitable<std::vector<Recorded>> Recorder::record(Credential caller, std::vector<Event> events) {
    const std::size_t count = events.size(), bytes = bytes_of(events);
    // What is alone may be as large as it is: the server bounds a request.
    if (events_ > 0 && (events_ + count > options_.waiting_events || bytes_ + bytes > options_.waiting_bytes))
        throw unavailable("Too many events are waiting to be recorded.");
    events_ += count;
    bytes_ += bytes;
    Posted post{std::move(caller), std::move(events), {}};
    std::exception_ptr refusal;
    try {
        post = co_await together_.run(std::move(post));
    } catch (const std::exception &) {
        refusal = std::current_exception();
    }
    events_ -= count;
    bytes_ -= bytes;
    if (refusal)
        std::rethrow_exception(refusal);
    co_return std::move(post.recorded);
}

awaitable<void> Recorder::send(const Together<Posted>::Group &group) {
    Callers callers;
    std::vector<std::size_t> caller_of;
    std::vector<Recorded *> owners;
    Array requests, own_tenants, metrics, quantities, idempotency_keys, times, properties;
    for (const auto &waiting : group) {
        Posted &post = waiting->request;
        caller_of.push_back(callers.number_of(post.caller));
        post.recorded.assign(post.events.size(), {});
        for (std::size_t i = 0; i < post.events.size(); ++i) {
            const Event &event = post.events[i];
            owners.push_back(&post.recorded[i]);
            requests.add(std::to_string(caller_of.back()));
            own_tenants.add(event.tenant);
            metrics.add(event.metric);
            quantities.add(event.quantity ? event.quantity : "1");
            idempotency_keys.add(event.idempotency_key);
            times.add(event.occurred_at);
            properties.add(event.properties);
        }
    }
    std::vector<Statement> statements;
    if (group.size() > 1)
        statements.push_back({kGroupLimits, {}});
    statements.push_back(
        {kRecord.c_str(),
         {callers.keys.take(), callers.tenants.take(), requests.take(), own_tenants.take(), metrics.take(),
          quantities.take(), idempotency_keys.take(), times.take(), properties.take()}});
    const Rows rows = co_await database_.run(std::move(statements));
    std::vector<std::optional<PgFailure>> refused(callers.size());
    for (const Row &row : rows) {
        const std::size_t request = std::stoul(row.at(kRequest).value()) - 1;
        if (!row.at(kOrdinal)) {
            refused.at(request) = failure_of(row.at(kFirstOfDecision + kReason).value());
            continue;
        }
        Recorded &recorded = *owners.at(std::stoul(row[kOrdinal].value()) - 1);
        recorded.idempotency_key = row.at(kKey);
        recorded.decision.assign(row.begin() + kFirstOfDecision, row.end());
    }
    for (std::size_t i = 0; i < group.size(); ++i)
        if (const auto &refusal = refused[caller_of[i] - 1])
            group[i]->refusal = std::make_exception_ptr(*refusal);
}

}  // namespace pg_billing::shim
