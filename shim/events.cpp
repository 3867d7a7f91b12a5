#include "shim/events.hpp"

#include <nlohmann/json.hpp>

#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace {

constexpr std::size_t kMaxEvents = 1000;

void write_member(std::string &to, std::string_view name, const std::optional<std::string> &json) {
    if (!json)
        return;
    if (to.back() != '{')
        to += ',';
    write_json(to, name);
    to += ':';
    to += *json;
}

std::optional<std::string> as_json(const std::optional<std::string> &text) {
    if (!text)
        return std::nullopt;
    std::string json;
    write_json(json, std::string_view(*text));
    return json;
}

// The idempotency key of an event that may be wrong in other ways, so that the client can tell which it was.
std::optional<std::string> key_of(const Json &event) {
    for (std::size_t i = 0; i < event.names.size(); ++i)
        if (event.names[i] == "idempotencyKey" && event.items[i].kind == Json::Kind::string)
            return event.items[i].text;
    return std::nullopt;
}

}  // namespace

Event read_event(const Json &json) {
    const Members members(json, {"metric", "quantity", "idempotencyKey", "occurredAt", "properties"});
    return Event{members.required_text("metric"), members.decimal("quantity"), members.text("idempotencyKey"),
                 members.timestamp("occurredAt"), members.object("properties")};
}

Batch::Batch(const Json &array) : results_(array.items.size()), payload_("[") {
    if (array.items.size() > kMaxEvents)
        throw Problem(422, "too_many_events",
                      "A request may carry " + std::to_string(kMaxEvents) + " events, this one has " +
                          std::to_string(array.items.size()) + ".");
    for (std::size_t i = 0; i < array.items.size(); ++i) {
        results_[i].idempotency_key = key_of(array.items[i]);
        try {
            const Event event = read_event(array.items[i]);
            std::string json = "{";
            write_member(json, "metric", as_json(event.metric));
            write_member(json, "quantity", event.quantity);  // checked to be a JSON number
            write_member(json, "idempotency_key", as_json(event.idempotency_key));
            write_member(json, "occurred_at", as_json(event.occurred_at));
            write_member(json, "properties", event.properties);
            payload_ += (sent_.empty() ? "" : ",") + json + "}";
            sent_.push_back(i);
        } catch (const Problem &problem) {
            results_[i].status = "rejected";
            results_[i].reason = problem.detail;
            results_[i].code = problem.code;
            results_[i].field = problem.field;
        }
    }
    payload_ += ']';
}

std::string Batch::results(const Rows &rows) const {
    std::vector<Result> results = results_;
    for (const Row &row : rows) {
        Result &result = results.at(sent_.at(std::stoul(row.at(0).value()) - 1));
        result.idempotency_key = row.at(1);
        result.status = row.at(2).value();
        if (result.status == "rejected") {
            const Problem problem = to_problem(PgFailure(row.at(3).value(), row.at(4).value_or("")));
            result.reason = problem.detail;
            result.code = problem.code;
            result.field = problem.field;
        }
    }
    nlohmann::ordered_json body;
    body["results"] = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < results.size(); ++i) {
        nlohmann::ordered_json item;
        item["ordinal"] = i + 1;
        item["idempotencyKey"] = nullptr;
        if (results[i].idempotency_key)
            item["idempotencyKey"] = *results[i].idempotency_key;
        item["status"] = results[i].status;
        if (!results[i].reason.empty()) {
            item["reason"] = results[i].reason;
            item["code"] = results[i].code;
        }
        if (!results[i].field.empty())
            item["field"] = results[i].field;
        body["results"].push_back(std::move(item));
    }
    return body.dump();
}

}  // namespace pg_billing::shim
