#include "shim/decision.hpp"

#include "shim/caller.hpp"
#include "shim/problem.hpp"
#include "shim/rate_limit.hpp"

namespace pg_billing::shim {

namespace {

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

// The decision as JSON. Numbers stay the text that the database wrote, so they keep every digit.
std::string json_of(const Row &row) {
    std::string json = "{";
    const auto add = [&json](std::string_view name, const std::optional<std::string> &value, bool text) {
        if (json.size() > 1)
            json += ',';
        write_json(json, name);
        json += ':';
        if (value && text)
            write_json(json, std::string_view(*value));
        else
            json += value.value_or("null");
    };
    if (row.size() > kReservationId && row[kReservationId])
        add("reservationId", row[kReservationId], true);
    add("status", row[kStatus], true);
    add("allowed", row[kStatus] == "denied" ? "false" : "true", false);
    add("reason", row[kReason], true);
    add("used", row[kUsed], false);
    add("quota", row[kQuota], false);
    add("remaining", row[kRemaining], false);
    add("cap", row[kCap], true);
    add("resetsAt", row[kResetsAt], false);
    add("warning", row[kWarning], true);
    return json + "}";
}

// A figure, which is not negative, rounded down.
std::optional<std::string> whole(const std::optional<std::string> &figure) {
    return figure ? std::optional(figure->substr(0, figure->find('.'))) : std::nullopt;
}

}  // namespace

std::string decision_query(const std::string &call, bool reservation) {
    return std::string("SELECT ") + kDecisionColumns + (reservation ? ", d.reservation_id" : "") +
           " FROM billing." + call + " d";
}

http::Response decision_response(const std::optional<std::string> &metric, const Row &row,
                                 std::string_view made) {
    const QuotaState state{whole(row.at(kQuota)), whole(row.at(kRemaining)), row.at(kResetsIn)};
    const std::string status = row.at(kStatus).value();
    http::Response response;
    if (status != "denied") {
        response = json_response(status == made ? 201 : 200, json_of(row));
    } else {
        Problem problem = denial(metric.value(), row.at(kReason).value());
        problem.decision = json_of(row);
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
