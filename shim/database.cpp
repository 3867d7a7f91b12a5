#include "shim/database.hpp"

#include <libpq-fe.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <deque>
#include <string_view>
#include <unordered_map>

#include "shim/log.hpp"
#include "shim/problem.hpp"

namespace pg_billing::shim {

namespace asio = boost::asio;
using asio::awaitable;
using asio::use_awaitable;
using boost::system::error_code;
using std::chrono::milliseconds;
using Socket = asio::posix::stream_descriptor;

namespace {

constexpr milliseconds kFirstPause{100};
constexpr milliseconds kLongestPause{5'000};

auto with_error(error_code &error) {
    return asio::redirect_error(use_awaitable, error);
}

using ResultPointer = std::unique_ptr<PGresult, decltype(&PQclear)>;

std::string field_of(const PGresult *result, int code) {
    const char *value = PQresultErrorField(result, code);
    return value ? value : "";
}

Rows rows_of(const PGresult *result) {
    Rows rows(static_cast<std::size_t>(PQntuples(result)));
    for (std::size_t i = 0; i < rows.size(); ++i)
        for (int column = 0; column < PQnfields(result); ++column) {
            const int row = static_cast<int>(i);
            if (PQgetisnull(result, row, column))
                rows[i].emplace_back();
            else
                rows[i].emplace_back(std::in_place, PQgetvalue(result, row, column),
                                     static_cast<std::size_t>(PQgetlength(result, row, column)));
        }
    return rows;
}

// libpq's messages end in a line break and may have several lines; a log has one.
std::string message_of(const PGconn *pg) {
    std::string message = PQerrorMessage(pg);
    while (!message.empty() && message.back() == '\n')
        message.pop_back();
    return message;
}

}  // namespace

// One pipeline segment: everything up to a sync.
struct Database::Job {
    explicit Job(const asio::any_io_executor &executor) : done(executor) {}

    Rows rows;
    std::optional<PgFailure> failure;
    bool finished = false, lost = false;
    asio::steady_timer done;         // cancelled when finished
    const char *prepares = nullptr;  // the statement this segment only prepares
};

struct Database::Connection : std::enable_shared_from_this<Connection> {
    enum class Preparation { none, under_way, ready };
    struct Prepared {
        std::string name;
        Preparation state = Preparation::none;
    };

    Connection(asio::io_context &context, const Options &options)
        : options(options), executor(context.get_executor()), pause(context) {}
    ~Connection() { PQfinish(pg); }

    const Options options;
    asio::any_io_executor executor;
    asio::steady_timer pause;
    PGconn *pg = nullptr;
    std::optional<Socket> socket;
    std::deque<std::shared_ptr<Job>> in_flight;
    std::unordered_map<std::string_view, Prepared> prepared;
    std::string given_up;  // why, if it was not libpq that found the connection lost
    bool up = false, writing = false, closing = false;

    // Connects, serves, and connects again until closed.
    static awaitable<void> live(std::shared_ptr<Connection> self) {
        milliseconds wait = kFirstPause;
        bool complained = false;
        while (!self->closing) {
            if (co_await self->connect()) {
                log("database_connected");
                wait = kFirstPause;
                complained = false;
                co_await self->serve();
                if (!self->closing)
                    log("database_lost",
                        {{"error", self->given_up.empty() ? message_of(self->pg) : self->given_up}});
            } else if (!self->closing && !std::exchange(complained, true)) {
                log("database_unreachable", {{"error", message_of(self->pg)}});
            }
            self->disconnect();
            if (self->closing)
                break;
            self->pause.expires_after(wait);
            error_code ignored;
            co_await self->pause.async_wait(with_error(ignored));
            wait = std::min(wait * 2, kLongestPause);
        }
    }

    awaitable<bool> connect() {
        // What follows dbname wins over what the connection string in it says.
        const char *const names[] = {"fallback_application_name", "dbname", "client_encoding", nullptr};
        const char *const values[] = {"pg_billing shim", options.conninfo.c_str(), "UTF8", nullptr};
        pg = PQconnectStartParams(names, values, 1);
        if (!pg || PQstatus(pg) == CONNECTION_BAD)
            co_return false;
        PQsetNoticeProcessor(
            pg, [](void *, const char *) {}, nullptr);
        const auto deadline = std::chrono::steady_clock::now() + options.request_limit;
        for (PostgresPollingStatusType next = PGRES_POLLING_WRITING; next != PGRES_POLLING_OK;
             next = PQconnectPoll(pg)) {
            if (next == PGRES_POLLING_FAILED || closing || std::chrono::steady_clock::now() > deadline)
                co_return false;
            if (!socket || socket->native_handle() != PQsocket(pg)) {  // trying the next host changes it
                release_socket();
                socket.emplace(executor, PQsocket(pg));
            }
            const auto what = next == PGRES_POLLING_READING ? Socket::wait_read : Socket::wait_write;
            pause.expires_at(deadline);
            pause.async_wait([self = shared_from_this()](error_code cancelled) {
                if (!cancelled && self->socket)
                    self->socket->cancel();
            });
            error_code ignored;
            co_await socket->async_wait(what, with_error(ignored));
            pause.cancel();
        }
        if (!PQenterPipelineMode(pg) || PQsetnonblocking(pg, 1) != 0)
            co_return false;
        up = true;
        std::vector<Statement> settings(1);
        settings[0].sql =
            "SELECT set_config('timezone', 'UTC', false), set_config('statement_timeout', $1, false), "
            "set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), "
            "'on'), false)";  // an answer tells of what is durable
        settings[0].parameters.emplace_back(std::to_string(options.statement_limit.count()));
        send(settings, std::make_shared<Job>(executor));
        co_return up;
    }

    awaitable<void> serve() {
        while (up) {
            error_code error;
            co_await socket->async_wait(Socket::wait_read, with_error(error));
            const bool alive = !error && PQconsumeInput(pg) == 1;
            take_results();
            if (!alive || PQstatus(pg) == CONNECTION_BAD)
                up = false;
        }
    }

    // Sends a job's statements and its sync. Statements new to this connection go unprepared, and a segment of its
    // own prepares them for the next time: were it part of the request, the request's failure would undo it.
    void send(const std::vector<Statement> &statements, std::shared_ptr<Job> job) {
        std::vector<const char *> unknown;
        bool sent = true;
        for (const Statement &statement : statements) {
            std::vector<const char *> values;
            for (const auto &parameter : statement.parameters)
                values.push_back(parameter ? parameter->c_str() : nullptr);
            const int count = static_cast<int>(values.size());
            Prepared &known = prepared[statement.sql];
            if (known.state == Preparation::ready) {
                sent = sent &&
                       PQsendQueryPrepared(pg, known.name.c_str(), count, values.data(), nullptr, nullptr, 0);
                continue;
            }
            sent = sent &&
                   PQsendQueryParams(pg, statement.sql, count, nullptr, values.data(), nullptr, nullptr, 0);
            if (known.state == Preparation::none) {
                if (known.name.empty())
                    known.name = "s" + std::to_string(prepared.size());
                known.state = Preparation::under_way;
                unknown.push_back(statement.sql);
            }
        }
        sent = sent && PQpipelineSync(pg);
        in_flight.push_back(std::move(job));
        for (const char *sql : unknown) {
            sent =
                sent && PQsendPrepare(pg, prepared[sql].name.c_str(), sql, 0, nullptr) && PQpipelineSync(pg);
            in_flight.push_back(std::make_shared<Job>(executor));
            in_flight.back()->prepares = sql;
        }
        if (!sent || !flush())
            drop();
    }

    bool flush() {
        const int pending = PQflush(pg);
        if (pending == 1 && !std::exchange(writing, true))
            asio::co_spawn(executor, write(shared_from_this()), asio::detached);
        return pending >= 0;
    }

    // Pushes out what the socket did not take at once.
    static awaitable<void> write(std::shared_ptr<Connection> self) {
        error_code error;
        int pending = 1;
        while (pending == 1 && !error && self->up) {
            co_await self->socket->async_wait(Socket::wait_write, with_error(error));
            if (!error && self->up)
                pending = PQflush(self->pg);
        }
        self->writing = false;
        if (pending < 0)
            self->drop();
    }

    void take_results() {
        while (!in_flight.empty() && !PQisBusy(pg)) {
            const ResultPointer result(PQgetResult(pg), PQclear);
            if (!result) {  // the end of one statement's results
                if (PQstatus(pg) == CONNECTION_BAD)
                    return;
                continue;
            }
            const std::shared_ptr<Job> job = in_flight.front();
            switch (PQresultStatus(result.get())) {
                case PGRES_PIPELINE_SYNC:
                    in_flight.pop_front();
                    finish(*job);
                    break;
                case PGRES_TUPLES_OK:
                    job->rows = rows_of(result.get());
                    break;
                case PGRES_FATAL_ERROR:
                    if (!job->failure)
                        job->failure.emplace(field_of(result.get(), PG_DIAG_SQLSTATE),
                                             field_of(result.get(), PG_DIAG_MESSAGE_PRIMARY));
                    break;
                default:
                    break;  // PGRES_COMMAND_OK of a prepare, PGRES_PIPELINE_ABORTED after an error
            }
        }
    }

    void finish(Job &job) {
        if (job.prepares)
            prepared[job.prepares].state = job.failure ? Preparation::none : Preparation::ready;
        job.finished = true;
        job.done.cancel();
    }

    // Gives the connection up; live() notices and connects anew.
    void drop() {
        up = false;
        if (socket) {
            error_code ignored;
            socket->cancel(ignored);
        }
    }

    void release_socket() {
        if (socket)
            socket->release();  // libpq owns the descriptor
        socket.reset();
    }

    void disconnect() {
        up = false;
        given_up.clear();
        release_socket();
        PQfinish(std::exchange(pg, nullptr));
        prepared.clear();
        for (const auto &job : std::exchange(in_flight, {})) {
            job->finished = job->lost = true;
            job->done.cancel();
        }
    }
};

Database::Database(asio::io_context &context, Options options)
    : context_(context), options_(std::move(options)) {
    for (std::size_t i = 0; i < options_.connections; ++i) {
        connections_.push_back(std::make_shared<Connection>(context_, options_));
        asio::co_spawn(context_, Connection::live(connections_.back()), asio::detached);
    }
}

Database::~Database() = default;

awaitable<Rows> Database::run(std::vector<Statement> statements) {
    for (const Statement &statement : statements)
        for (const auto &parameter : statement.parameters)
            if (parameter && parameter->find('\0') != std::string::npos)
                throw PgFailure("22021", "text with a null byte");  // libpq would cut it off there
    const auto best =
        std::min_element(connections_.begin(), connections_.end(), [](const auto &a, const auto &b) {
            return std::pair(!a->up, a->in_flight.size()) < std::pair(!b->up, b->in_flight.size());
        });
    const std::shared_ptr<Connection> connection = *best;
    if (!connection->up)
        throw unavailable("The database cannot be reached.");
    if (connection->in_flight.size() >= options_.pipeline_limit)
        throw unavailable("Too many requests are waiting for the database.");

    const auto job = std::make_shared<Job>(context_.get_executor());
    job->done.expires_after(options_.request_limit);
    connection->send(statements, job);
    error_code ignored;
    if (!job->finished)
        co_await job->done.async_wait(with_error(ignored));
    if (!job->finished) {
        connection->given_up = "no answer in time";
        connection->drop();
    }
    if (!job->finished || job->lost)
        throw unavailable(
            "The database connection was lost: the outcome is unknown. Repeat the request with the same "
            "idempotency key.");
    if (job->failure)
        throw PgFailure(std::move(*job->failure));
    co_return std::move(job->rows);
}

void Database::close() {
    for (const auto &connection : connections_) {
        connection->closing = true;
        connection->pause.cancel();
        connection->drop();
    }
}

}  // namespace pg_billing::shim
