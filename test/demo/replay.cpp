// Replays a trace against pg_billing as an application would, and tries to be billed twice for it.
//
// Every request wants one api_calls and its llm_tokens. It is asked for first; if either is denied the
// transaction is rolled back and nothing may remain. Every event of an allowed request is sent through SQL
// and through HTTP: even requests through SQL first, odd ones through HTTP first, so that each path must
// recognise the other's. Any answer but "recorded" for the first copy and "duplicate" for the second ends the
// replay.
//
// What was asked for, and the outcome, is left in demo.requests for the report.

#include <curl/curl.h>
#include <libpq-fe.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "test/demo/trace.hpp"

namespace pg_billing::demo {
namespace {

using nlohmann::json;

struct Options {
    std::string trace, database, url, key_file;
    unsigned connections = 8;
};

void expect(bool condition, const Request &request, const std::string &what) {
    if (!condition)
        throw std::runtime_error("request " + std::to_string(request.number) + " of " +
                                 tenant_name(request.tenant) + ": " + what);
}

// One connection to the database.
class Database {
  public:
    explicit Database(const std::string &conninfo) : connection_(PQconnectdb(conninfo.c_str()), PQfinish) {
        if (PQstatus(connection_.get()) != CONNECTION_OK)
            throw std::runtime_error(PQerrorMessage(connection_.get()));
    }

    void prepare(const char *name, const char *statement) {
        check(PQprepare(connection_.get(), name, statement, 0, nullptr));
    }

    // Runs a prepared statement and returns the first column of its first row.
    std::string call(const char *name, const std::vector<std::string> &parameters) {
        std::vector<const char *> values;
        for (const auto &parameter : parameters)
            values.push_back(parameter.c_str());
        const auto result = check(PQexecPrepared(connection_.get(), name, static_cast<int>(values.size()),
                                                 values.data(), nullptr, nullptr, 0));
        return PQntuples(result.get()) > 0 ? PQgetvalue(result.get(), 0, 0) : "";
    }

    void run(const char *statement) { check(PQexec(connection_.get(), statement)); }

    // COPY … FROM STDIN.
    void copy(const char *statement, const std::string &rows) {
        check(PQexec(connection_.get(), statement));
        if (PQputCopyData(connection_.get(), rows.data(), static_cast<int>(rows.size())) != 1 ||
            PQputCopyEnd(connection_.get(), nullptr) != 1)
            throw std::runtime_error(PQerrorMessage(connection_.get()));
        while (PGresult *result = PQgetResult(connection_.get()))
            check(result);
    }

  private:
    using Result = std::unique_ptr<PGresult, decltype(&PQclear)>;

    Result check(PGresult *raw) {
        Result result(raw, PQclear);
        const auto status = PQresultStatus(raw);
        if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && status != PGRES_COPY_IN)
            throw std::runtime_error(PQerrorMessage(connection_.get()));
        return result;
    }

    std::unique_ptr<PGconn, decltype(&PQfinish)> connection_;
};

// One kept-alive connection to the shim, with a service key.
class Shim {
  public:
    Shim(std::string url, std::string key)
        : url_(std::move(url)), key_(std::move(key)), curl_(curl_easy_init(), curl_easy_cleanup) {}

    // Posts events of one tenant and returns the results, in the order of the events.
    json post_events(const std::string &tenant, const json &events) {
        curl_slist *list = nullptr;
        for (const std::string &field : {"Authorization: Bearer " + key_, "X-Tenant-Id: " + tenant,
                                         std::string("Content-Type: application/json")})
            list = curl_slist_append(list, field.c_str());
        const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> fields(list, curl_slist_free_all);
        const std::string body = events.dump();
        std::string answer;
        curl_easy_setopt(curl_.get(), CURLOPT_URL, (url_ + "/api/billing/events").c_str());
        curl_easy_setopt(curl_.get(), CURLOPT_HTTPHEADER, fields.get());
        curl_easy_setopt(curl_.get(), CURLOPT_POSTFIELDSIZE, static_cast<long>(body.size()));
        curl_easy_setopt(curl_.get(), CURLOPT_POSTFIELDS, body.c_str());
        curl_easy_setopt(curl_.get(), CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(curl_.get(), CURLOPT_TIMEOUT, 60L);
        curl_easy_setopt(curl_.get(), CURLOPT_WRITEDATA, &answer);
        curl_easy_setopt(
            curl_.get(), CURLOPT_WRITEFUNCTION,
            +[](char *data, std::size_t size, std::size_t count, void *to) {
                static_cast<std::string *>(to)->append(data, size * count);
                return size * count;
            });
        long status = 0;
        if (const CURLcode code = curl_easy_perform(curl_.get()); code != CURLE_OK)
            throw std::runtime_error(std::string("the shim does not answer: ") + curl_easy_strerror(code));
        curl_easy_getinfo(curl_.get(), CURLINFO_RESPONSE_CODE, &status);
        if (status != 200)
            throw std::runtime_error("the shim answers " + std::to_string(status) + ": " + answer);
        json results = json::parse(answer).at("results");
        if (results.size() != events.size())
            throw std::runtime_error("the shim answers " + std::to_string(results.size()) + " results for " +
                                     std::to_string(events.size()) + " events");
        return results;
    }

  private:
    std::string url_, key_;
    std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl_;
};

// One of the application's concurrent clients.
class Client {
  public:
    Client(const Options &options, const std::string &key)
        : database_(options.database), shim_(options.url, key) {
        database_.prepare(
            "consume",
            "SELECT status FROM billing.try_consume($1, 'api_calls', 1, $2, ($3 || '+00')::timestamptz)");
        database_.prepare("record",
                          "SELECT status FROM billing.record_usage($1, 'llm_tokens', $2::numeric, $3, "
                          "($4 || '+00')::timestamptz)");
        database_.prepare("check", "SELECT status FROM billing.check_quota($1, $2, $3::numeric)");
    }

    // Replays some requests; allowed[number] tells the outcome of each.
    void replay(const Request *begin, const Request *end, std::vector<char> &allowed) {
        std::map<int, std::vector<const Request *>> by_tenant;
        for (const Request *request = begin; request != end; request++) {
            allowed[request->number] = sql_first(*request) ? consume(*request) : ask(*request);
            if (allowed[request->number])
                by_tenant[request->tenant].push_back(request);
        }
        for (const auto &[tenant, requests] : by_tenant)
            post(tenant, requests);
        for (const Request *request = begin; request != end; request++)
            if (allowed[request->number] && !sql_first(*request))
                repeat(*request);
    }

  private:
    static bool sql_first(const Request &request) { return request.number % 2 == 0; }
    static std::string key(const Request &request, const char *metric) {
        return "request-" + std::to_string(request.number) + "/" + metric;
    }

    std::string consume_call(const Request &request) {
        return database_.call("consume",
                              {tenant_name(request.tenant), key(request, "api_calls"), request.time});
    }

    std::string record_tokens(const Request &request) {
        return database_.call("record", {tenant_name(request.tenant), std::to_string(request.tokens),
                                         key(request, "llm_tokens"), request.time});
    }

    std::string check(const Request &request, const char *metric, std::int64_t quantity) {
        const std::string status =
            database_.call("check", {tenant_name(request.tenant), metric, std::to_string(quantity)});
        expect(status == "allowed" || status == "denied", request, "check_quota answers " + status);
        return status;
    }

    // The request in one transaction: asked for, done, recorded; or rolled back.
    bool consume(const Request &request) {
        database_.run("BEGIN");
        const std::string status = consume_call(request);
        expect(status == "recorded" || status == "denied", request, "try_consume answers " + status);
        if (status == "denied" || check(request, "llm_tokens", request.tokens) == "denied") {
            database_.run("ROLLBACK");
            return false;
        }
        expect(record_tokens(request) == "recorded", request, "record_usage does not record");
        database_.run("COMMIT");
        return true;
    }

    bool ask(const Request &request) {
        return check(request, "api_calls", 1) == "allowed" &&
               check(request, "llm_tokens", request.tokens) == "allowed";
    }

    void post(int tenant, const std::vector<const Request *> &requests) {
        json events = json::array();
        for (const Request *request : requests)
            for (const char *metric : {"api_calls", "llm_tokens"})
                events.push_back({{"metric", metric},
                                  {"quantity", metric == std::string_view("api_calls") ? 1 : request->tokens},
                                  {"idempotencyKey", key(*request, metric)},
                                  {"occurredAt", rfc3339(request->time)}});
        const json results = shim_.post_events(tenant_name(tenant), events);
        for (std::size_t i = 0; i < results.size(); i++) {
            const Request &request = *requests[i / 2];
            expect(results[i].at("status") == (sql_first(request) ? "duplicate" : "recorded"), request,
                   "HTTP answers " + results[i].dump());
        }
    }

    // The SQL copy of what came over HTTP first.
    void repeat(const Request &request) {
        database_.run("BEGIN");
        expect(consume_call(request) == "duplicate", request, "try_consume counts a second copy");
        expect(record_tokens(request) == "duplicate", request, "record_usage counts a second copy");
        database_.run("COMMIT");
    }

    static std::string rfc3339(std::string time) {
        std::replace(time.begin(), time.end(), ' ', 'T');
        return time + "Z";
    }

    Database database_;
    Shim shim_;
};

// Lets all clients work through the trace, a block at a time, and shows how far they are.
std::vector<char> replay(const Options &options, const std::vector<Request> &requests) {
    constexpr std::size_t kBlock = 256;
    std::string key;
    if (std::ifstream in(options.key_file); !(in >> key))
        throw std::runtime_error("cannot read the API key from " + options.key_file);

    std::vector<char> allowed(requests.size() + 1, false);
    std::atomic<std::size_t> next = 0, done = 0;
    std::mutex mutex;
    std::condition_variable ended;
    std::exception_ptr failure;
    unsigned running = options.connections;
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < options.connections; i++)
        threads.emplace_back([&] {
            std::exception_ptr problem;
            try {
                Client client(options, key);
                for (std::size_t from; (from = next.fetch_add(kBlock)) < requests.size();) {
                    const std::size_t to = std::min(from + kBlock, requests.size());
                    client.replay(&requests[from], requests.data() + to, allowed);
                    done += to - from;
                }
            } catch (...) {
                problem = std::current_exception();
                next = requests.size();
            }
            const std::lock_guard lock(mutex);
            if (problem && !failure)
                failure = problem;
            if (--running == 0)
                ended.notify_one();
        });
    std::unique_lock lock(mutex);
    while (!ended.wait_for(lock, std::chrono::seconds(2), [&] { return running == 0; }))
        printf("  %zu of %zu requests\n", done.load(), requests.size()), fflush(stdout);
    if (failure)
        std::rethrow_exception(failure);
    return allowed;
}

void store(const Options &options, const std::vector<Request> &requests, const std::vector<char> &allowed) {
    std::string rows;
    for (const Request &request : requests)
        rows += std::to_string(request.number) + '\t' + tenant_name(request.tenant) + '\t' +
                std::to_string(request.tokens) + '\t' + (allowed[request.number] ? "t" : "f") + '\n';
    Database(options.database).copy("COPY demo.requests FROM STDIN", rows);
}

}  // namespace
}  // namespace pg_billing::demo

int main(int argc, char **argv) {
    using namespace pg_billing::demo;
    Options options;
    CLI::App app{"Replays a trace of requests against pg_billing."};
    app.add_option("--trace", options.trace, "the trace (TIMESTAMP,ContextTokens,GeneratedTokens)")
        ->required();
    bool generating = false;
    auto *generate = app.add_flag("--generate", generating, "write a trace there instead, always the same");
    bool summarizing = false;
    app.add_flag("--summary", summarizing, "print first and last time, requests and tokens, a line each")
        ->excludes(generate);
    app.add_option("--database", options.database, "libpq connection string")->excludes(generate);
    app.add_option("--url", options.url, "the shim")->excludes(generate);
    app.add_option("--key-file", options.key_file, "file with a service key")->excludes(generate);
    app.add_option("--connections", options.connections, "concurrent clients")->check(CLI::Range(1, 64));
    CLI11_PARSE(app, argc, argv);
    try {
        if (generating) {
            generate_trace(options.trace);
            return 0;
        }
        const auto requests = read_trace(options.trace);
        if (summarizing) {
            std::int64_t tokens = 0;
            for (const Request &request : requests)
                tokens += request.tokens;
            printf("%s\n%s\n%zu\n%" PRId64 "\n", requests.front().time.c_str(), requests.back().time.c_str(),
                   requests.size(), tokens);
            return 0;
        }
        curl_global_init(CURL_GLOBAL_DEFAULT);
        store(options, requests, replay(options, requests));
        return 0;
    } catch (const std::exception &e) {
        fprintf(stderr, "demo_replay: %s\n", e.what());
        return 1;
    }
}
