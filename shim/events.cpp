#include "shim/events.hpp"

#include <nlohmann/json.hpp>

#include "shim/caller.hpp"
#include "shim/cloud_events.hpp"
#include "shim/decision.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace {

constexpr std::size_t kMaxEvents = 1000;

Event read_event(const Json &json) {
    const Members members(json, {"metric", "quantity", "idempotencyKey", "occurredAt", "properties"});
    return Event{members.required_text("metric"), std::nullopt,
                 members.decimal("quantity"),     members.text("idempotencyKey"),
                 members.timestamp("occurredAt"), members.object("properties")};
}

bool is_rejected(const Recorded &recorded) {
    return recorded.decision.at(kStatus) == "rejected";
}

}  // namespace

Post::Post(const http::Request &request) {
    switch (cloud_events_mode(request)) {
        case CloudEventsMode::none: {
            const Json body = json_body(request);
            if (body.kind == Json::Kind::array) {
                read_many(body);
            } else {
                events_.push_back(read_event(body));
                if (!events_[0].idempotency_key)
                    events_[0].idempotency_key = idempotency_key(request);
            }
            break;
        }
        case CloudEventsMode::batched: {
            cloud_events_ = true;
            const Json body = parse_json(request.body);
            if (body.kind != Json::Kind::array)
                throw Problem(400, "invalid_type", "A batch of CloudEvents is a JSON array.");
            read_many(body);
            break;
        }
        case CloudEventsMode::structured:
            cloud_events_ = true;
            events_.push_back(read_cloud_event(parse_json(request.body)));
            break;
        case CloudEventsMode::binary:
            cloud_events_ = true;
            events_.push_back(read_binary_cloud_event(request));
            break;
    }
    if (!many_)
        metric_ = events_[0].metric;
}

void Post::read_many(const Json &array) {
    many_ = true;
    if (array.items.size() > kMaxEvents)
        throw Problem(422, "too_many_events",
                      "A request may carry " + std::to_string(kMaxEvents) + " events, this one has " +
                          std::to_string(array.items.size()) + ".");
    results_.resize(array.items.size());
    for (std::size_t i = 0; i < array.items.size(); ++i) {
        const Json &item = array.items[i];
        // also of one that cannot be read, so that the client can tell which it was
        results_[i].idempotency_key =
            cloud_events_ ? cloud_event_key(item) : string_member(item, "idempotencyKey");
        try {
            events_.push_back(cloud_events_ ? read_cloud_event(item) : read_event(item));
            sent_.push_back(i);
        } catch (const Problem &problem) {
            results_[i] = {results_[i].idempotency_key, "rejected", problem.detail, problem.code,
                           problem.field};
        }
    }
}

Problem Post::problem_of(const Recorded &recorded) const {
    Problem problem = to_problem(failure_of(recorded.decision.at(kReason).value()));
    if (cloud_events_)
        problem.field = cloud_event_attribute(problem.field);
    return problem;
}

http::Response Post::answer(const std::vector<Recorded> &recorded, Rejections &rejections) const {
    if (!many_) {
        if (is_rejected(recorded.at(0)))
            throw problem_of(recorded[0]);
        return decision_response(metric_, recorded[0].decision, "recorded");
    }
    std::vector<Result> results = results_;
    for (std::size_t i = 0; i < recorded.size(); ++i) {
        Result &result = results.at(sent_.at(i));
        result.idempotency_key = recorded[i].idempotency_key;
        result.status = recorded[i].decision.at(kStatus).value();
        if (!is_rejected(recorded[i]))
            continue;
        const Problem problem = problem_of(recorded[i]);
        if (problem.code == "tenant_required" && !cloud_events_)
            throw problem;  // it is the request that lacks one
        result.reason = problem.detail;
        result.code = problem.code;
        result.field = problem.field;
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
            if (rejections.count++ == 0)
                rejections.code = results[i].code;
            item["reason"] = results[i].reason;
            item["code"] = results[i].code;
        }
        if (!results[i].field.empty())
            item["field"] = results[i].field;
        body["results"].push_back(std::move(item));
    }
    return json_response(200, body.dump());
}

}  // namespace pg_billing::shim
