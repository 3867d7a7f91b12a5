#include "test/sandbox/event_stream.hpp"

#include <algorithm>
#include <ctime>

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::int64_t kSessionLasts = 15 * 60;
constexpr std::size_t kMostEvents = 100;

std::string rfc3339(std::int64_t time) {
    const std::time_t seconds = time;
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S.000Z", std::gmtime(&seconds));
    return text;
}

// Reads a time in UTC, to the second.
std::int64_t seconds_of(const std::string &text) {
    std::tm time{};
    const char *rest = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &time);
    if (rest && *rest == '.')
        for (++rest; *rest >= '0' && *rest <= '9';)
            ++rest;
    if (!rest || std::string_view(rest) != "Z")
        throw invalid("Invalid timestamp: " + text + "; it must be RFC 3339.", "events[timestamp]",
                      "invalid_fields");
    return timegm(&time);
}

}  // namespace

void EventStream::model(Catalog &catalog) {
    catalog.model("POST /v2/billing/meter_event_session", {}, [this](const Call &) { return open(); });
    catalog.model(std::string("POST ") + kPath, {"events"}, [this](const Call &call) {
        json events = call.params["events"];
        if (events.size() > kMostEvents)
            throw invalid("Up to 100 events may be in a request.", "events", "invalid_fields");
        // The form is checked before the answer, what the events say is not.
        for (json &event : events)
            if (event.contains("timestamp"))
                event["timestamp"] = seconds_of(event["timestamp"]);
        for (json &event : events)
            take(std::move(event));
        return json::object();
    });
}

json EventStream::open() {
    const std::int64_t now = machine_time();
    const std::string token = store_.new_id("mes_token", 40);
    sessions_[token] = stillborn_-- > 0 ? now : now + kSessionLasts;
    stillborn_ = std::max<std::int64_t>(stillborn_, 0);
    return {{"id", store_.new_id("bmes_test", 16)},
            {"object", "v2.billing.meter_event_session"},
            {"authentication_token", token},
            {"created", rfc3339(now)},
            {"expires_at", rfc3339(now + kSessionLasts)},
            {"livemode", false}};
}

void EventStream::authenticate(const std::string &token) const {
    const auto session = sessions_.find(token);
    if (session == sessions_.end())
        throw ApiError(401, "invalid_request_error", "This is not the token of a meter event session.");
    if (session->second <= machine_time())
        throw ApiError(401, "temporary_session_expired", "The temporary session token has expired.",
                       "billing_meter_event_session_expired");
}

json EventStream::expire(const json &wish) {
    for (auto &[token, until] : sessions_)
        until = 0;
    stillborn_ = wish.value("next", 0);
    return wish;
}

// What Stripe has seen counts once, silently; what is wrong is reported.
void EventStream::take(json event) {
    if (!event.contains("identifier"))
        event["identifier"] = store_.new_id("mtrevt", 32);
    const std::string identifier = event["identifier"];
    if (meters_.known(identifier))
        return;
    try {
        meters_.take(event);
    } catch (const ApiError &error) {
        json meter;
        for (const json &other : store_.all("billing.meter"))
            if (other["event_name"] == event["event_name"])
                meter = other;
        errors_.refused(meter,
                        error.code == "resource_missing" ? "meter_event_customer_not_found" : error.code,
                        error.what(), identifier);
    }
}

}  // namespace pg_billing::sandbox
