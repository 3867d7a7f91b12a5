#include "test/proof/connection.hpp"

#include <poll.h>

namespace pg_billing::proof {

void Connection::reconnect() {
    const char *const keywords[] = {"dbname", "application_name", "options", nullptr};
    const char *const values[] = {run_.settings.database.c_str(), name_.c_str(),
                                  "-c client_min_messages=error", nullptr};
    const auto deadline = std::chrono::steady_clock::now() + Run::kPatience;
    connection_.reset();
    for (;; poll(nullptr, 0, 20)) {
        if (!connection_ || PQstatus(connection_.get()) != CONNECTION_OK) {
            connection_.reset(PQconnectdbParams(keywords, values, 1));
            PQsetNoticeProcessor(
                connection_.get(), [](void *, const char *) {}, nullptr);
        }
        if (PQstatus(connection_.get()) == CONNECTION_OK)
            try {
                if (query("SELECT FROM pg_stat_activity WHERE application_name = $1 AND pid <> "
                          "pg_backend_pid()",
                          {name_})
                        .empty())
                    return;
            } catch (const Broken &) {
            }
        if (std::chrono::steady_clock::now() > deadline)
            throw Stuck(name_ + " cannot connect: " + PQerrorMessage(connection_.get()));
    }
}

Rows Connection::query(const char *statement, const std::vector<std::string> &parameters) {
    std::vector<const char *> values;
    for (const auto &parameter : parameters)
        values.push_back(parameter.c_str());
    const auto result = check(PQexecParams(connection_.get(), statement, static_cast<int>(values.size()),
                                           nullptr, values.data(), nullptr, nullptr, 0));
    Rows rows(PQntuples(result.get()), std::vector<std::string>(PQnfields(result.get())));
    for (std::size_t row = 0; row < rows.size(); row++)
        for (std::size_t column = 0; column < rows[row].size(); column++)
            rows[row][column] = PQgetvalue(result.get(), static_cast<int>(row), static_cast<int>(column));
    return rows;
}

std::string Connection::command(const std::string &statement) {
    return PQcmdStatus(check(PQexec(connection_.get(), statement.c_str())).get());
}

void Connection::copy(const char *statement, const std::string &rows) {
    check(PQexec(connection_.get(), statement));
    if (PQputCopyData(connection_.get(), rows.data(), static_cast<int>(rows.size())) != 1 ||
        PQputCopyEnd(connection_.get(), nullptr) != 1)
        throw Broken(PQerrorMessage(connection_.get()));
    while (PGresult *result = PQgetResult(connection_.get()))
        check(result);
}

Connection::Result Connection::check(PGresult *raw) {
    Result result(raw, PQclear);
    const auto status = PQresultStatus(raw);
    if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_COPY_IN)
        return result;
    const char *severity = PQresultErrorField(raw, PG_DIAG_SEVERITY_NONLOCALIZED);
    if (!severity || std::string(severity) != "ERROR" || PQstatus(connection_.get()) != CONNECTION_OK)
        throw Broken(PQerrorMessage(connection_.get()));
    throw SqlError(PQresultErrorMessage(raw), PQresultErrorField(raw, PG_DIAG_SQLSTATE));
}

}  // namespace pg_billing::proof
