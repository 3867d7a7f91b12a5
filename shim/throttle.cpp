#include "shim/throttle.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/ip/address.hpp>

#include "shim/caller.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace ip = boost::asio::ip;

namespace {

constexpr std::array<std::string_view, 3> kLimited{"/api/billing/subscription", "/api/billing/invoices",
                                                   "/api/billing/sessions"};

std::optional<ip::address> parse_address(const std::string &text) {
    boost::system::error_code error;
    ip::address address = ip::make_address(text, error);
    if (error)
        return std::nullopt;
    if (address.is_v6() && address.to_v6().is_v4_mapped())
        address = ip::make_address_v4(ip::v4_mapped, address.to_v6());
    return address;
}

// Who has one address of version 6 has a network of 2^64 of them.
std::string share_of(const std::string &text) {
    const auto address = parse_address(text);
    if (!address || address->is_v4())
        return address ? address->to_string() : text;
    return ip::network_v6(address->to_v6(), 64).canonical().to_string();
}

void refuse(std::string whose, Shares::Clock::duration wait) {
    Problem problem(429, "too_many_requests", "There are too many requests " + whose + ".");
    problem.headers.emplace_back("Retry-After",
                                 std::to_string(std::chrono::ceil<std::chrono::seconds>(wait).count()));
    throw problem;
}

}  // namespace

Networks::Networks(const std::vector<std::string> &networks) {
    for (const std::string &text : networks) {
        const bool one = text.find('/') == text.npos;
        if (text.find(':') == text.npos)
            networks_.emplace_back(ip::make_network_v4(one ? text + "/32" : text).canonical());
        else
            networks_.emplace_back(ip::make_network_v6(one ? text + "/128" : text).canonical());
    }
}

bool Networks::contain(const std::string &text) const {
    const auto address = parse_address(text);
    return address && std::ranges::any_of(networks_, [&](const auto &either) {
               if (const auto *v4 = std::get_if<ip::network_v4>(&either))
                   return address->is_v4() &&
                          ip::network_v4(address->to_v4(), v4->prefix_length()).network() == v4->network();
               const auto &v6 = std::get<ip::network_v6>(either);
               return address->is_v6() &&
                      ip::network_v6(address->to_v6(), v6.prefix_length()).network() == v6.network();
           });
}

std::optional<std::string> client_address(const http::Request &request, const Networks &trusted) {
    if (!trusted.contain(request.peer))
        return request.peer;
    for (auto field = request.fields.rbegin(); field != request.fields.rend(); ++field) {
        if (field->first != "x-forwarded-for")
            continue;
        for (std::string_view rest = field->second;;) {
            const auto comma = rest.rfind(',');
            const std::string address(trim(comma == rest.npos ? rest : rest.substr(comma + 1)));
            if (!parse_address(address))
                return request.peer;  // not what a proxy writes
            if (!trusted.contain(address))
                return address;
            if (comma == rest.npos)
                break;
            rest = rest.substr(0, comma);
        }
    }
    return std::nullopt;
}

Shares::Shares(double rate, std::size_t limit) : limit_(limit) {
    if (rate <= 0)
        return;
    interval_ = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 / rate));
    burst_ = std::max<Clock::duration>(interval_, std::chrono::seconds(5));
}

std::optional<Shares::Clock::duration> Shares::take(const std::string &whose, Clock::time_point now) {
    if (interval_ == Clock::duration::zero())
        return std::nullopt;
    if (free_at_.size() >= limit_ && !free_at_.contains(whose)) {
        std::erase_if(free_at_, [now](const auto &share) { return share.second <= now; });
        if (free_at_.size() >= limit_)
            free_at_.clear();
    }
    auto &free_at = free_at_.try_emplace(whose, now).first->second;
    const auto next = std::max(free_at, now) + interval_;
    if (next - now > burst_)
        return next - now - burst_;
    free_at = next;
    return std::nullopt;
}

void Throttle::charge(const Call &call, std::string_view pattern) {
    const bool limited = std::ranges::any_of(
        kLimited, [&](const std::string_view prefix) { return pattern.starts_with(prefix); });
    if (!limited && !presents_token(call))
        return;
    const auto now = Shares::Clock::now();
    if (const auto address = client_address(call.request, trusted_))
        if (const auto wait = addresses_.take(share_of(*address), now))
            refuse("from this address", *wait);
    if (const auto caller = caller_of(call))
        if (const auto wait = callers_.take(*caller, now))
            refuse("for this tenant", *wait);
}

}  // namespace pg_billing::shim
