#include "shim/problem.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <nlohmann/json.hpp>
#include <string_view>

namespace pg_billing::shim {

namespace {

struct Rule {
    std::string_view sqlstate;  // five characters, or two for a whole class
    unsigned status;
    std::string_view code;
    std::string_view field;
    std::string_view detail;  // empty: the database's own message, which is one of ours and made for clients
};

// The first rule that fits wins. UB is this extension's class; the others are PostgreSQL's (appendix A).
constexpr Rule kRules[] = {
    {"UB001", 429, "quota_exceeded", "", ""},
    {"UB010", 404, "unknown_tenant", "", ""},
    {"UB011", 422, "unknown_metric", "metric", ""},
    {"UB012", 422, "unknown_plan", "planTier", ""},
    {"UB013", 422, "invalid_price", "", ""},
    {"UB014", 422, "metric_without_price", "metric", ""},
    {"UB020", 422, "invalid_quantity", "quantity", ""},
    {"UB021", 422, "quantity_out_of_range", "quantity", ""},
    {"UB022", 422, "occurred_at_out_of_window", "occurredAt", ""},
    {"UB023", 422, "invalid_idempotency_key", "idempotencyKey", ""},
    {"UB024", 400, "invalid_tenant_id", "X-Tenant-Id", ""},
    {"UB025", 422, "invalid_properties", "properties", ""},
    {"UB026", 422, "malformed_event", "", ""},
    {"UB027", 422, "not_consumable", "", ""},
    {"UB028", 404, "unknown_reservation", "", ""},
    {"UB029", 409, "reservation_ended", "", ""},
    {"UB030", 409, "customer_exists", "", ""},
    {"UB031", 409, "subscription_exists", "", ""},
    {"UB032", 422, "invalid_argument", "", ""},
    {"UB033", 404, "unknown_idempotency_key", "", ""},
    {"UB034", 410, "usage_not_kept", "", ""},
    {"UB035", 422, "gauge_below_zero", "quantity", ""},
    {"UB036", 404, "no_subscription", "", ""},
    {"UB037", 500, "invalid_plan_price", "", ""},
    {"UB038", 409, "subscription_status_conflict", "", ""},
    {"UB039", 422, "invalid_trial", "", ""},
    {"UB040", 403, "tenant_not_permitted", "", ""},
    {"UB041", 401, "invalid_api_key", "", ""},
    {"UB042", 403, "insufficient_scope", "", ""},
    {"UB043", 400, "tenant_required", "X-Tenant-Id", ""},
    {"UB044", 404, "unknown_session", "", ""},
    {"UB045", 409, "stripe_billing_conflict", "", ""},
    {"UB050", 503, "not_installed", "", ""},
    {"UB051", 503, "capacity_exhausted", "", ""},
    {"UB052", 409, "prepare_refused", "", ""},
    {"UB053", 403, "direct_write_refused", "", ""},
    {"UB054", 409, "usage_pending", "", ""},
    {"UB055", 403, "append_only", "", ""},
    {"UB060", 503, "stripe_sync_timed_out", "", ""},
    {"UB061", 503, "stripe_paused", "", ""},
    {"UB062", 422, "nothing_to_replay", "", ""},
    {"UB063", 404, "unknown_webhook", "", ""},
    {"UB064", 404, "unknown_invoice", "", ""},
    {"UB070", 409, "export_mode_in_use", "", ""},
    {"UB080", 409, "alert_exists", "", ""},
    {"UB081", 404, "unknown_alert", "", ""},
    {"UB082", 409, "alert_required", "", ""},
    {"UB083", 404, "unknown_channel", "", ""},
    {"UB084", 409, "channel_disabled", "", ""},
    {"UB090", 404, "unknown_credit_grant", "", ""},
    {"UB091", 409, "credit_grant_used_up", "", ""},
    {"UB092", 409, "idempotency_key_reused", "idempotencyKey", ""},
    {"UB093", 409, "too_many_credit_grants", "", ""},
    {"3F000", 503, "not_installed", "", "The database has no pg_billing."},
    {"42883", 503, "not_installed", "", "The database's pg_billing lacks a function this server calls."},
    {"42P01", 503, "not_installed", "", "billing.install() was not run in the database."},
    {"57014", 503, "unavailable", "", "The database took too long."},
    {"25006", 503, "unavailable", "", "The database accepts no changes at the moment."},
    {"22", 400, "invalid_value", "", "A value is not valid for its type."},
    {"08", 503, "unavailable", "", "The database cannot be reached."},
    {"40", 503, "unavailable", "", "The database was busy with a conflicting change."},
    {"53", 503, "unavailable", "", "The database is short of resources."},
    {"55P03", 503, "unavailable", "", "The database was busy with a conflicting change."},
    {"57P", 503, "unavailable", "", "The database is restarting."},
};

// Makes "Unknown metric" of "unknown_metric".
std::string title_of(std::string_view code) {
    std::string title(code);
    std::replace(title.begin(), title.end(), '_', ' ');
    if (!title.empty())
        title[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(title[0])));
    return title;
}

void complete_headers(Problem &problem) {
    if (problem.status == 401)  // RFC 9110 §15.5.2
        problem.headers.emplace_back("WWW-Authenticate", "Bearer realm=\"pg_billing\"");
    if (problem.status == 503)
        problem.headers.emplace_back("Retry-After", "1");
}

}  // namespace

PgFailure failure_of(const std::string &reason) {
    return PgFailure(reason.substr(0, 5), reason.substr(std::min<std::size_t>(7, reason.size())));
}

Problem to_problem(const PgFailure &failure) {
    for (const Rule &rule : kRules) {
        if (!failure.sqlstate.starts_with(rule.sqlstate))
            continue;
        return Problem(rule.status, std::string(rule.code),
                       rule.detail.empty() ? failure.message : std::string(rule.detail),
                       std::string(rule.field));
    }
    return server_problem(500);
}

Problem unavailable(std::string detail) {
    return Problem(503, "unavailable", std::move(detail));
}

Problem server_problem(unsigned status) {
    switch (status) {
        case 400:
            return Problem(400, "malformed_request", "This is not a well-formed HTTP/1.1 request.");
        case 413:
            return Problem(413, "body_too_large", "The request's body is too large.");
        case 431:
            return Problem(431, "headers_too_large", "The request's header fields are too large.");
        case 503:
            return unavailable("The server is reading too many requests already.");
        default:
            return Problem(status, "internal_error",
                           "The request failed for a reason that is not its fault.");
    }
}

http::Response to_response(const Problem &given) {
    Problem problem = given;
    complete_headers(problem);
    nlohmann::ordered_json body;
    // The registered type for an exceeded quota is in draft-ietf-httpapi-ratelimit-headers.
    body["type"] = problem.policy.empty() ? "urn:problem-type:pg_billing:" + problem.code
                                          : "https://iana.org/assignments/http-problem-types#quota-exceeded";
    body["title"] = title_of(problem.code);
    body["status"] = problem.status;
    body["detail"] = problem.detail;
    body["code"] = problem.code;
    if (!problem.field.empty())
        body["field"] = problem.field;
    if (!problem.policy.empty())
        body["violated-policies"] = nlohmann::ordered_json::array({problem.policy});

    http::Response response;
    response.status = problem.status;
    response.fields = std::move(problem.headers);
    response.fields.emplace_back("Content-Type", "application/problem+json");
    response.body = body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    if (!problem.decision.empty()) {
        // Spliced in as text: its numbers are decimals of any size and must not pass through a double.
        response.body.pop_back();
        response.body += ",\"decision\":" + problem.decision + "}";
    }
    return response;
}

}  // namespace pg_billing::shim
