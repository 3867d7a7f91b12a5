#include "test/sandbox/faults.hpp"

#include <set>

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {

void Faults::add(const json &description) {
    static const std::set<std::string> kinds = {"409",         "429",        "500", "timeout",
                                                "drop_before", "drop_after", "slow"};
    Fault fault;
    bool counted = false, chanced = false;
    for (const auto &[name, value] : description.items()) {
        try {
            if (name == "method")
                fault.method = value.get<std::string>();
            else if (name == "path_prefix")
                fault.path_prefix = value.get<std::string>();
            else if (name == "fault")
                fault.kind = value.get<std::string>();
            else if (name == "times")
                counted = true, fault.times = value.get<std::int64_t>();
            else if (name == "probability")
                chanced = true, fault.probability = value.get<double>();
            else if (name == "retry_after")
                fault.retry_after = value.get<std::int64_t>();
            else if (name == "should_retry")
                fault.should_retry = value.get<bool>();
            else if (name == "delay_ms")
                fault.delay = std::chrono::milliseconds(value.get<std::int64_t>());
            else if (name == "effect")
                fault.effect = value.get<bool>();
            else if (name == "stored")
                fault.stored = value.get<bool>();
            else
                throw invalid("unknown member " + name, name);
        } catch (const json::exception &) {
            throw invalid("wrong type for " + name, name);
        }
    }
    if (!kinds.contains(fault.kind))
        throw invalid("fault must be one of 409, 429, 500, timeout, drop_before, drop_after, slow", "fault");
    if (fault.probability < 0 || fault.probability > 1)
        throw invalid("probability must lie between 0 and 1", "probability");
    if (chanced && !counted)
        fault.times = -1;
    if (fault.kind == "drop_after")
        fault.effect = true;
    faults_.push_back(std::move(fault));
}

std::optional<Fault> Faults::next(const std::string &method, const std::string &path) {
    for (auto fault = faults_.begin(); fault != faults_.end(); ++fault) {
        if ((!fault->method.empty() && fault->method != method) || !path.starts_with(fault->path_prefix) ||
            std::uniform_real_distribution<double>(0, 1)(random_) >= fault->probability)
            continue;
        const Fault struck = *fault;
        if (fault->times > 0 && --fault->times == 0)
            faults_.erase(fault);
        return struck;
    }
    return std::nullopt;
}

}  // namespace pg_billing::sandbox
