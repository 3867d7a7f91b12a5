#include "shim/decision.hpp"

#include "shim/caller.hpp"
#include "shim/problem.hpp"
#include "shim/rate_limit.hpp"

namespace pg_billing::shim {

namespace {

enum Column { kJson, kStatus, kReason, kQuota, kRemaining, kResetsIn };

// 429 if time heals it, 402 if money does.
Problem denial(const std::string &metric, const std::string &reason) {
    if (reason == "upgrade_required")
        return Problem(402, reason, "The plan allows no more of " + metric + ": a larger plan does.");
    if (reason == "no_subscription")
        return Problem(402, reason, "The tenant has no subscription.");
    if (reason == "subscription_inactive")
        return Problem(402, reason, "The tenant's subscription is not in good standing.");
    Problem problem(429, reason, "The quota of " + metric + " is used up, and its cap is hard.");
    if (reason == "hour_limit" || reason == "day_limit")
        problem.detail =
            "The limit of " + metric + " per " + reason.substr(0, reason.find('_')) + " is reached.";
    problem.policy = metric;
    return problem;
}

}  // namespace

// JSON is made in SQL: numbers keep every digit, and times come out as RFC 3339 has them.
std::string decision_query(const std::string &call, bool reservation) {
    const std::string members =
        R"('status', d.status, 'allowed', d.allowed, 'reason', d.reason, 'used', d.used,
                                   'quota', d.quota, 'remaining', d.remaining, 'cap', d.cap,
                                   'resetsAt', CASE WHEN isfinite(d.resets_at) THEN d.resets_at END,
                                   'warning', d.warning)";
    std::string json = "json_build_object(" + members + ")";
    if (reservation)
        json = "CASE WHEN d.reservation_id IS NULL THEN " + json +
               " ELSE json_build_object('reservationId', d.reservation_id, " + members + ") END";
    return "SELECT (" + json + R"()::text, d.status, d.reason, floor(d.quota)::text, floor(d.remaining)::text,
               CASE WHEN isfinite(d.resets_at)
                    THEN greatest(ceil(extract(epoch FROM d.resets_at - billing.now())), 0)::text END
          FROM billing.)" +
           call + " d";
}

http::Response decision_response(const std::optional<std::string> &metric, const Row &row,
                                 std::string_view made) {
    const QuotaState state{row.at(kQuota), row.at(kRemaining), row.at(kResetsIn)};
    const std::string status = row.at(kStatus).value();
    http::Response response;
    if (status != "denied") {
        response = json_response(status == made ? 201 : 200, row.at(kJson).value());
    } else {
        Problem problem = denial(metric.value(), row.at(kReason).value());
        problem.decision = row.at(kJson).value();
        if (state.resets_in)
            problem.headers.emplace_back("Retry-After", *state.resets_in);
        response = to_response(problem);
    }
    if (metric)
        for (auto &field : rate_limit_fields(*metric, state))
            response.fields.push_back(std::move(field));
    return response;
}

}  // namespace pg_billing::shim
