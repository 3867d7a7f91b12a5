#include "shim/recorder.hpp"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "shim/decision.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace asio = boost::asio;
using asio::awaitable;

namespace {

// Who waits for a row or a key that somebody else holds must not hold up a group for long.
constexpr char kGroupLimits[] = "SELECT set_config('lock_timeout', '500ms', true)";

const std::string kRecord =
    std::string("SELECT d.request, d.ordinal, d.idempotency_key, ") + kDecisionColumns + R"(
    FROM billing.record_usage_requests($1::bytea[], $2::text[], $3::int[], $4::text[], $5::text[], $6::numeric[],
                                       $7::text[], $8::timestamptz[], $9::jsonb[]) d)";
constexpr std::size_t kRequest = 0, kOrdinal = 1, kKey = 2, kFirstOfDecision = 3;

// An array as PostgreSQL reads it.
class Array {
  public:
    void add(const std::optional<std::string> &element) {
        text_ += text_.empty() ? '{' : ',';
        if (!element) {
            text_ += "NULL";
            return;
        }
        text_ += '"';
        for (const char c : *element) {
            if (c == '"' || c == '\\')
                text_ += '\\';
            text_ += c;
        }
        text_ += '"';
    }
    std::string take() { return text_.empty() ? "{}" : std::move(text_) + "}"; }

  private:
    std::string text_;
};

// Whether a failure would meet every other transaction now as well (SQLSTATE classes of appendix A): connection, read-only
// server, lack of resources, shutdown.
bool is_everybodys(const PgFailure &failure) {
    for (const char *prefix : {"08", "25006", "53", "57P"})
        if (failure.sqlstate.starts_with(prefix))
            return true;
    return false;
}

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

struct Recorder::Waiting {
    Waiting(asio::io_context &context, Credential who, std::vector<Event> what)
        : caller(std::move(who)), events(std::move(what)), done(context) {
        done.expires_at(asio::steady_timer::time_point::max());
    }

    void finish(std::exception_ptr why = nullptr) {
        error = why;
        finished = true;
        done.cancel();
    }

    Credential caller;
    std::vector<Event> events;
    std::vector<Recorded> recorded;
    std::exception_ptr error;
    bool finished = false;
    asio::steady_timer done;  // never expires; cancelled, that is signalled, when finished
};

Recorder::Recorder(asio::io_context &context, Database &database, Options options)
    : context_(context), database_(database), options_(options) {}

awaitable<std::vector<Recorded>> Recorder::record(Credential caller, std::vector<Event> events) {
    const std::size_t count = events.size(), bytes = bytes_of(events);
    // What is alone may be as large as it is: the server bounds a request.
    if (events_ > 0 && (events_ + count > options_.waiting_events || bytes_ + bytes > options_.waiting_bytes))
        throw unavailable("Too many events are waiting to be recorded.");
    events_ += count;
    bytes_ += bytes;
    const auto waiting = std::make_shared<Waiting>(context_, std::move(caller), std::move(events));
    queue_.push_back(waiting);
    if (lanes_ < options_.lanes) {
        ++lanes_;
        asio::co_spawn(context_, run_lane(), asio::detached);
    }
    boost::system::error_code signalled;
    if (!waiting->finished)
        co_await waiting->done.async_wait(asio::redirect_error(asio::use_awaitable, signalled));
    events_ -= count;
    bytes_ -= bytes;
    if (waiting->error)
        std::rethrow_exception(waiting->error);
    co_return std::move(waiting->recorded);
}

Recorder::Group Recorder::next_group() {
    Group group;
    std::size_t events = 0;
    while (!queue_.empty() &&
           (group.empty() || events + queue_.front()->events.size() <= options_.group_events)) {
        events += queue_.front()->events.size();
        group.push_back(std::move(queue_.front()));
        queue_.pop_front();
    }
    return group;
}

awaitable<void> Recorder::run_lane() {
    while (!queue_.empty())
        co_await send(next_group());
    --lanes_;
}

awaitable<void> Recorder::send(Group group) {
    std::vector<Credential> callers;  // few, and mostly one: searched one by one, the latest first
    std::vector<std::size_t> caller_of;
    std::vector<Recorded *> owners;
    Array keys, tenants, requests, own_tenants, metrics, quantities, idempotency_keys, times, properties;
    for (const auto &post : group) {
        const auto known = std::find(callers.rbegin(), callers.rend(), post->caller);
        const auto index = static_cast<std::size_t>(callers.rend() - known);
        if (index == 0) {
            callers.push_back(post->caller);
            keys.add(post->caller.key_sha256);
            tenants.add(post->caller.tenant);
        }
        caller_of.push_back(index == 0 ? callers.size() : index);
        post->recorded.assign(post->events.size(), {});
        for (std::size_t i = 0; i < post->events.size(); ++i) {
            const Event &event = post->events[i];
            owners.push_back(&post->recorded[i]);
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
    statements.push_back({kRecord.c_str(),
                          {keys.take(), tenants.take(), requests.take(), own_tenants.take(), metrics.take(),
                           quantities.take(), idempotency_keys.take(), times.take(), properties.take()}});
    std::exception_ptr error;
    bool separately = false;
    try {
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
        for (std::size_t i = 0; i < group.size(); ++i) {
            const auto &refusal = refused[caller_of[i] - 1];
            group[i]->finish(refusal ? std::make_exception_ptr(*refusal) : nullptr);
        }
        co_return;
    } catch (const PgFailure &failure) {
        error = std::current_exception();
        separately = group.size() > 1 && !is_everybodys(failure);
    } catch (const std::exception &) {
        error = std::current_exception();
    }
    for (const auto &post : group)
        if (separately)
            asio::co_spawn(context_, send({post}), asio::detached);
        else
            post->finish(error);
}

}  // namespace pg_billing::shim
