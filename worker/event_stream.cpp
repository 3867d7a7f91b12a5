#include "worker/event_stream.hpp"

#include <string.h>

#include <algorithm>
#include <utility>

namespace pg_billing {
namespace {

// A little less than Stripe's, by our own clock; should Stripe see it otherwise, it says so.
constexpr std::chrono::minutes kSessionLasts{14};

}  // namespace

void EventStream::add(Claim claim, std::string event) {
    auto &queue = alone_.contains(claim.id) ? waiting_alone_ : waiting_;
    queue.push_back({std::move(claim), std::move(event)});
}

bool EventStream::wants_session(Time now) {
    if (!token_.empty() && now >= renew_at_)
        forget_token();
    const bool wanted = token_.empty() && !opening_ && !(waiting_.empty() && waiting_alone_.empty());
    opening_ = opening_ || wanted;
    return wanted;
}

bool EventStream::opened(const nlohmann::json &answer, Time asked_at) {
    const auto token = answer.find("authentication_token");
    if (token == answer.end() || !token->is_string())
        return false;
    const auto &text = token->get_ref<const std::string &>();
    // It goes into a header as it is.
    if (text.empty() || !std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < '\x7f'; }))
        return false;
    opening_ = false;
    forget_token();
    token_ = text;
    session_++;
    renew_at_ = asked_at + kSessionLasts;
    return true;
}

std::vector<Claim> EventStream::not_opened() {
    opening_ = false;
    std::vector<Claim> claims;
    for (auto *queue : {&waiting_alone_, &waiting_})
        for (Event &event : std::exchange(*queue, {}))
            claims.push_back(std::move(event.claim));
    return claims;
}

std::optional<EventStream::Batch> EventStream::next() {
    const bool alone = !waiting_alone_.empty();
    auto &queue = alone ? waiting_alone_ : waiting_;
    if (token_.empty() || queue.empty())
        return std::nullopt;
    Batch batch{{}, R"({"events":[)"};
    const std::size_t size = std::min(queue.size(), alone ? 1 : kPerRequest);
    for (std::size_t i = 0; i < size; ++i) {
        batch.body += (i ? "," : "") + queue.front().json;
        batch.claims.push_back(std::move(queue.front().claim));
        queue.pop_front();
    }
    batch.body += "]}";
    return batch;
}

void EventStream::expired(int session) {
    if (session == session_)
        forget_token();
}

void EventStream::refused(const std::vector<Claim> &claims) {
    for (const Claim &claim : claims)
        alone_.insert(claim.id);
}

void EventStream::forget_token() {
    explicit_bzero(token_.data(), token_.size());
    token_.clear();
}

}  // namespace pg_billing
