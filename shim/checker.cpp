#include "shim/checker.hpp"

#include "shim/arrays.hpp"
#include "shim/decision.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

// While a group is checked the next one gathers. Two at once made smaller groups, and a sixth fewer checks (bench, 2 cores).
constexpr std::size_t kLanes = 1;
constexpr std::size_t kGroup = 200;

const std::string kCheck =
    std::string("SELECT d.request, ") + kDecisionColumns +
    " FROM billing.check_quota_requests($1::bytea[], $2::text[], $3::int[], $4::text[], $5::numeric[]) d";
constexpr std::size_t kRequest = 0, kFirstOfDecision = 1;

}  // namespace

Checker::Checker(boost::asio::io_context &context, Database &database)
    : database_(database), together_(context, kLanes, kGroup, [this](const Together<Check>::Group &group) {
          return send(group);
      }) {}

awaitable<Row> Checker::check(Credential caller, std::string metric, std::optional<std::string> quantity) {
    Check check{std::move(caller), std::move(metric), std::move(quantity), {}};
    check = co_await together_.run(std::move(check));
    co_return std::move(check.decision);
}

awaitable<void> Checker::send(const Together<Check>::Group &group) {
    Callers callers;
    Array numbers, metrics, quantities;
    for (const auto &waiting : group) {
        const Check &check = waiting->request;
        numbers.add(std::to_string(callers.number_of(check.caller)));
        metrics.add(check.metric);
        quantities.add(check.quantity);
    }
    std::vector<Statement> statements;
    statements.push_back(
        {kCheck.c_str(),
         {callers.keys.take(), callers.tenants.take(), numbers.take(), metrics.take(), quantities.take()}});
    const Rows rows = co_await database_.run(std::move(statements));
    for (const Row &row : rows) {
        const auto &waiting = group.at(std::stoul(row.at(kRequest).value()) - 1);
        if (row.at(kFirstOfDecision + kStatus) == "rejected")
            waiting->refusal =
                std::make_exception_ptr(failure_of(row.at(kFirstOfDecision + kReason).value()));
        waiting->request.decision.assign(row.begin() + kFirstOfDecision, row.end());
    }
}

}  // namespace pg_billing::shim
