#include "shim/router.hpp"

#include <chrono>
#include <optional>
#include <set>

#include "shim/log.hpp"
#include "shim/problem.hpp"
#include "shim/throttle.hpp"
#include "shim/trace.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

std::vector<std::string> split(std::string_view path) {
    std::vector<std::string> segments;
    for (std::size_t start = 0; start < path.size();) {
        const std::size_t end = std::min(path.find('/', start + 1), path.size());
        segments.emplace_back(path.substr(start + 1, end - start - 1));
        start = end;
    }
    return segments;
}

// Returns what the pattern's names stand for, or nothing if the path does not match.
std::optional<std::vector<std::string>> match(const std::vector<std::string> &pattern,
                                              const std::vector<std::string> &path) {
    std::vector<std::string> captures;
    const bool open = !pattern.empty() && pattern.back() == "*";
    const std::size_t fixed = pattern.size() - open;
    if (open ? path.size() < fixed : path.size() != fixed)
        return std::nullopt;
    for (std::size_t i = 0; i < fixed; ++i) {
        if (pattern[i].starts_with(':') && !path[i].empty())
            captures.push_back(path[i]);
        else if (pattern[i] != path[i])
            return std::nullopt;
    }
    return captures;
}

// Takes the client's id if it is one that can be logged and sent back safely, else makes one.
std::string request_id(const http::Request &request) {
    constexpr std::string_view safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-";
    const std::string_view given = request.field("x-request-id").value_or("");
    if (!given.empty() && given.size() <= 128 && given.find_first_not_of(safe) == given.npos)
        return std::string(given);
    return random_hex(16);
}

}  // namespace

LogDetails ids_of(const Call &call) {
    LogDetails ids{
        {"request_id", call.request_id}, {"trace_id", call.trace.trace_id}, {"span_id", call.trace.span_id}};
    if (!call.trace.parent_id.empty())
        ids.emplace_back("parent_id", call.trace.parent_id);
    return ids;
}

void Router::add(std::string method, std::string_view pattern, Endpoint endpoint) {
    routes_.push_back({std::move(method), std::string(pattern), split(pattern), std::move(endpoint)});
}

std::vector<std::pair<std::string, std::string>> Router::routes() const {
    std::vector<std::pair<std::string, std::string>> routes;
    for (const Route &route : routes_)
        routes.emplace_back(route.method, route.pattern);
    return routes;
}

awaitable<http::Response> Router::handle(http::Request request) const {
    const auto began = std::chrono::steady_clock::now();
    Call call;
    call.tokens = tokens_;
    call.request_id = request_id(request);
    call.trace = trace_of(request);
    call.request = std::move(request);
    std::string_view route;
    LogDetails cause;
    http::Response response;
    try {
        response = co_await dispatch(call, route);
    } catch (const Problem &problem) {
        response = to_response(problem);
    } catch (const PgFailure &failure) {
        const Problem problem = to_problem(failure);
        if (problem.status >= 500)
            cause = {{"sqlstate", failure.sqlstate}, {"error", failure.message}};
        response = to_response(problem);
    } catch (const std::exception &error) {
        cause = {{"error", error.what()}};
        response = to_response(server_problem(500));
    }
    if (log_requests_ || !cause.empty()) {
        using std::chrono::microseconds;
        const auto took = std::chrono::duration_cast<microseconds>(std::chrono::steady_clock::now() - began);
        const bool refused =
            response.status == 401 || response.status == 403;  // then a tenant is but a claim
        LogDetails details{{"method", call.request.method},
                           {"route", route},
                           {"status", response.status},
                           {"duration_us", took.count()},
                           {"tenant", refused ? "" : call.request.field("x-tenant-id").value_or("")}};
        std::erase_if(details, [](const auto &detail) { return detail.second.json == "\"\""; });
        details.insert(details.end(), cause.begin(), cause.end());
        log("request", details, ids_of(call));
    }
    response.fields.emplace_back("X-Request-Id", call.request_id);
    response.fields.emplace_back("traceresponse", traceresponse(call.trace));
    add_security_fields(response, browsers_);
    const bool preflight =
        call.request.method == "OPTIONS" && call.request.field("access-control-request-method");
    add_cors_fields(response, browsers_, call.request.field("origin").value_or(""), preflight);
    co_return response;
}

awaitable<http::Response> Router::dispatch(Call &call, std::string_view &matched) const {
    std::vector<std::string> path;
    for (const std::string &segment : split(call.request.path)) {
        auto decoded = http::percent_decode(segment);
        if (!decoded || decoded->find('\0') != decoded->npos)
            throw Problem(400, "malformed_request", "The path has a percent-encoding that is not valid.");
        path.push_back(std::move(*decoded));
    }
    const std::string method = call.request.method == "HEAD" ? "GET" : call.request.method;
    std::set<std::string> allowed;
    for (const Route &route : routes_) {
        auto captures = match(route.segments, path);
        if (!captures)
            continue;
        if (route.method != "*" && route.method != method) {
            allowed.insert(route.method);
            if (route.method == "GET")
                allowed.insert("HEAD");
            continue;
        }
        matched = route.pattern;
        call.captures = std::move(*captures);
        if (throttle_)
            throttle_->charge(call, route.pattern);
        co_return co_await route.endpoint(call);
    }
    if (allowed.empty())
        throw Problem(404, "not_found", "There is nothing at this address.");
    std::string list = "OPTIONS";
    for (const std::string &one : allowed)
        list += ", " + one;
    if (method == "OPTIONS")
        co_return http::Response{204, {{"Allow", list}}, {}};
    Problem problem(405, "method_not_allowed",
                    "This address does not know the method " + call.request.method + ".");
    problem.headers.emplace_back("Allow", list);
    throw problem;
}

}  // namespace pg_billing::shim
