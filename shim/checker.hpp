// Checks of quotas, those of many requests in one statement. The database authenticates each caller and checks for its tenant.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <optional>
#include <string>

#include "shim/caller.hpp"
#include "shim/database.hpp"
#include "shim/together.hpp"

namespace pg_billing::shim {

class Checker {
  public:
    Checker(boost::asio::io_context &context, Database &database);

    // Returns the decision, as decision_response() reads it. Throws PgFailure if the caller or the check is refused or the database
    // fails, Problem 503 if that cannot be reached.
    boost::asio::awaitable<Row> check(Credential caller, std::string metric,
                                      std::optional<std::string> quantity);

  private:
    struct Check {
        Credential caller;
        std::string metric;
        std::optional<std::string> quantity;
        Row decision;

        std::size_t weight() const { return 1; }
    };

    boost::asio::awaitable<void> send(const Together<Check>::Group &group);

    Database &database_;
    Together<Check> together_;
};

}  // namespace pg_billing::shim
