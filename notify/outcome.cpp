#include "notify/outcome.hpp"

namespace pg_billing::notify {
namespace {

Outcome outcome_of(std::string_view kind, int status, bool whole) {
    if (status >= 200 && status < 300)
        return whole || kind != "email" ? Outcome::delivered : Outcome::retry;
    if (kind == "webhook")
        return status == 410 ? Outcome::gone : Outcome::retry;
    if (kind == "email")
        return status >= 500 && !(status >= 530 && status <= 538) ? Outcome::dead : Outcome::retry;
    const bool ours = status == 401 || status == 403 || status == 408 || status == 429;
    return status >= 400 && status < 500 && !ours ? Outcome::dead : Outcome::retry;
}

}  // namespace

Verdict judge(std::string_view kind, int status, const std::string &trouble) {
    Verdict verdict{outcome_of(kind, status, trouble.empty()), ""};
    if (verdict.outcome == Outcome::delivered)
        return verdict;
    if (status == 0)
        verdict.reason = "no answer: " + (trouble.empty() ? "connection lost" : trouble);
    else
        verdict.reason = (kind == "email" ? "SMTP " : "HTTP ") + std::to_string(status) +
                         (trouble.empty() ? "" : ": " + trouble);
    return verdict;
}

const char *outcome_name(Outcome outcome) {
    switch (outcome) {
        case Outcome::delivered:
            return "delivered";
        case Outcome::retry:
            return "retry";
        case Outcome::dead:
            return "dead";
        case Outcome::gone:
            return "gone";
    }
    return "retry";
}

}  // namespace pg_billing::notify
