// What the answer to a notification means. Pure functions.
//
//   no answer      retry: it may have arrived, and is known again by its id
//   webhook        2xx is delivered; 410 is gone: the receiver wants no more; anything else, redirects included, retry
//   text message   2xx is delivered; 4xx is dead (the gateway refuses the number or the text), but for 401, 403, 408 and 429,
//                  which are about us; anything else retry
//   e-mail         2xx is delivered; 5xx is dead, but for 530 to 538, which are about us; anything else retry
#pragma once

#include <string>
#include <string_view>

namespace pg_billing::notify {

enum class Outcome { delivered, retry, dead, gone };

struct Verdict {
    Outcome outcome = Outcome::retry;
    std::string reason;  // empty if delivered
};

// Judges an answer by its status, 0 if none came; `trouble` is what went wrong, where there is no answer or more to say.
Verdict judge(std::string_view kind, int status, const std::string &trouble);

// Returns the outcome's name as billing._notify_settle() takes it.
const char *outcome_name(Outcome outcome);

}  // namespace pg_billing::notify
