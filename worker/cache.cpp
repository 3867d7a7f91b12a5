// The cache job: keeps the quota cache in Redis up to date (sql/quota_cache.sql, worker/cache_scripts.hpp), and records as
// usage what gateways have let through there.
//
// A run takes the steps drain, begin, write, done. What is drained gets an id in Redis first and is recorded under it, so a run
// that dies anywhere is repeated without loss or double counting; and the write that shows the usage as PostgreSQL's drops
// it from the edge's own in the same step, so it is never missing from an entry, nor in it twice.
//
// Invariants:
//   - No transaction is open while Redis is waited for.
//   - Redis that is down, or lost everything, costs the cache alone: the run says so, and the next one tries again.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "worker/cache_scripts.hpp"
#include "worker/key_file.hpp"
#include "worker/redis.hpp"

#include "worker/session.hpp"
#include "worker/settings.hpp"

extern "C" {
#include "common/pg_prng.h"
}

namespace pg_billing {
namespace {

using namespace std::chrono_literals;

constexpr auto kRedisLimit = 5s;
constexpr std::size_t kBatch = 500;  // commands in one pipeline
constexpr const char *kEntriesAtOnce = "2000";
constexpr const char *kKeptSeconds =
    "86400";  // an entry beyond its period; one without a period beyond its last write

class Cache {
  public:
    Cache(Session &session, const RedisAddress &address, const char *password)
        : session_(session),
          prefix_(text_setting("pg_billing.redis_prefix")),
          redis_(address, password, kRedisLimit, [&session] { session.serve_interrupts(); }) {}

    void run();

  private:
    Session &session_;
    const std::string prefix_;
    Redis redis_;
    std::string take_, put_, drop_, beat_;      // the scripts' digests
    std::map<std::string, std::string> taken_;  // entry → id of what has been recorded of it
    nlohmann::json drained_ = nlohmann::json::array();
    std::size_t written_ = 0;
    std::string rejected_;  // why the latest of what the edge let through cannot be recorded

    std::string entry(const std::string &tenant, const std::string &metric) const {
        return prefix_ + "{" + tenant + "}:" + metric;
    }
    std::string redis_run();
    void drain();
    void record(const nlohmann::json &taken, const std::vector<std::string> &entries);
    void write_all(const Value &version);
    void write(const std::vector<Row> &rows, const Value &version);
};

// Names the start of Redis: what it held before is gone, or old. Empty if our heartbeat is not there.
std::string Cache::redis_run() {
    if (redis_.ask({"EXISTS", prefix_ + "alive"}).text == "0")
        return "";
    const std::string info = redis_.ask({"INFO", "server"}).text.value_or("");
    constexpr std::string_view kField = "run_id:";
    const auto at = info.find(kField);
    return at == info.npos ? "unknown"
                           : info.substr(at + kField.size(), info.find('\r', at) - at - kField.size());
}

void Cache::run() {
    for (const auto &[digest, script] : {std::pair(&take_, cache_scripts::kTake),
                                         {&put_, cache_scripts::kPut},
                                         {&drop_, cache_scripts::kDrop},
                                         {&beat_, cache_scripts::kBeat}})
        *digest = redis_.ask({"SCRIPT", "LOAD", script}).text.value();
    session_.begin_round();
    drain();
    const std::string run = redis_run();
    const Row begun = session_.transaction("looking at the quota cache", [&] {
        return session_.query("SELECT version, everything FROM billing._cache_begin($1)", {run}).at(0);
    });
    const bool everything = begun[1] == "t";
    if (everything)
        write_all(begun[0]);
    write(session_.transaction("reading quotas for the cache",
                               [&] {
                                   return session_.query(
                                       "SELECT * FROM billing._cache_changed($1::boolean, $2::jsonb)",
                                       {begun[1], drained_.dump()});
                               }),
          begun[0]);
    const RedisReply beat = redis_.ask({"EVALSHA", beat_, "2", prefix_ + "alive", prefix_ + "stats"});
    const std::string now = redis_run();
    session_.transaction("noting the quota cache's state", [&] {
        session_.query(
            "SELECT billing._cache_done($1, $2::boolean, $3::bigint, $4::bigint, $5::bigint, $6::bigint, "
            "$7::bigint)",
            {now, begun[1], std::to_string(written_), std::to_string(drained_.size()), beat.items.at(0).text,
             beat.items.at(1).text, beat.items.at(2).text});
    });
    session_.notice(rejected_.empty() ? ""
                                      : "usage let through at the edge cannot be recorded: " + rejected_);
}

void Cache::drain() {
    const RedisReply dirty = redis_.ask({"SMEMBERS", prefix_ + "dirty"});
    const std::string id = std::to_string(pg_prng_uint64(&pg_global_prng_state)) + "-" +
                           std::to_string(GetCurrentTimestamp()) + "-";
    for (std::size_t from = 0; from < dirty.items.size(); from += kBatch) {
        const std::size_t to = std::min(from + kBatch, dirty.items.size());
        for (std::size_t i = from; i < to; i++)
            redis_.add(
                {"EVALSHA", take_, "2", *dirty.items[i].text, prefix_ + "dirty", id + std::to_string(i)});
        nlohmann::json taken = nlohmann::json::array();
        std::vector<std::string> entries;
        std::size_t i = from;
        for (const RedisReply &reply : redis_.replies()) {
            const std::string &name = *dirty.items[i++].text;
            const auto known = [](const RedisReply &field) { return field.text.has_value(); };
            if (reply.items.size() != 6 || !std::ranges::all_of(reply.items, known))
                continue;
            taken.push_back({{"tenant_id", *reply.items[0].text},
                             {"metric", *reply.items[1].text},
                             {"units", *reply.items[2].text},
                             {"scale", *reply.items[3].text},
                             {"id", *reply.items[4].text},
                             {"resets", *reply.items[5].text}});
            entries.push_back(name);
        }
        if (!taken.empty())
            record(taken, entries);
    }
}

void Cache::record(const nlohmann::json &taken, const std::vector<std::string> &entries) {
    const std::vector<Row> rows = session_.transaction("recording usage of the edge", [&] {
        return session_.query("SELECT ordinal, status, reason FROM billing._cache_drain($1::jsonb)",
                              {taken.dump()});
    });
    for (const Row &row : rows) {
        const std::size_t i = std::stoul(row[0].value()) - 1;
        const nlohmann::json &one = taken.at(i);
        if (row[1] == "rejected") {  // it stays where it is, counted at the edge
            rejected_ = entries.at(i) + ": " + row[2].value_or("");
            continue;
        }
        taken_[entries.at(i)] = one["id"];
        drained_.push_back({{"tenant_id", one["tenant_id"]}, {"metric", one["metric"]}});
    }
}

// Writes what there may be, in the order of tenants and metrics.
void Cache::write_all(const Value &version) {
    Value tenant = "", metric = "";
    for (;;) {
        const std::vector<Row> rows = session_.transaction("reading quotas for the cache", [&] {
            return session_.query("SELECT * FROM billing._cache_all($1, $2, $3::int)",
                                  {tenant, metric, kEntriesAtOnce});
        });
        if (rows.empty())
            return;
        tenant = rows.back()[0];
        metric = rows.back()[1];
        write(rows, version);
    }
}

void Cache::write(const std::vector<Row> &rows, const Value &version) {
    for (std::size_t from = 0; from < rows.size(); from += kBatch) {
        const std::size_t to = std::min(from + kBatch, rows.size());
        for (std::size_t i = from; i < to; i++) {
            const Row &row = rows[i];
            const std::string name = entry(row[0].value(), row[1].value());
            const auto taken = taken_.find(name);
            const std::string id = taken == taken_.end() ? "" : taken->second;
            if (row[2] != "t") {
                redis_.add({"EVALSHA", drop_, "1", name, id});
                continue;
            }
            // tenant_id metric cached in_use used quota bound cap refusal period ends resets scale
            redis_.add({"EVALSHA", put_, "1", name, version.value(), row[3] == "t" ? "1" : "0", id,
                        kKeptSeconds, row[0].value(), row[1].value(), row[12].value(), row[4].value(),
                        row[5].value(), row[6].value(), row[7].value(), row[8].value(), row[9].value(),
                        row[10].value(), row[11].value()});
        }
        const std::vector<RedisReply> replies = redis_.replies();
        written_ += std::ranges::count_if(replies, [](const RedisReply &reply) { return reply.text == "1"; });
    }
}

TimestampTz refresh_cache(Session &session) {
    const std::string url = text_setting("pg_billing.redis_url");
    if (url.empty())
        return next_tick(kCacheJob, GetCurrentTimestamp());
    std::string trouble;
    try {
        const RedisAddress address = parse_redis_url(url);
        const std::string path = text_setting("pg_billing.redis_password_file");
        std::optional<ApiKey> password;
        if (!path.empty())
            password.emplace(path, "Redis password");
        Cache(session, address, password ? password->text() : nullptr).run();
    } catch (const std::runtime_error &e) {  // Redis's, or the password file's
        trouble = e.what();
    }
    if (!trouble.empty()) {
        session.notice("the quota cache is not up to date: " + trouble);
        session.transaction("noting the quota cache's state",
                            [&] { session.query("SELECT billing._cache_failed($1)", {trouble}); });
    }
    return next_tick(kCacheJob, GetCurrentTimestamp());
}

}  // namespace
}  // namespace pg_billing

extern "C" PGDLLEXPORT void cache_main(Datum database) {
    pg_billing::run_job(pg_billing::kCacheJob, DatumGetObjectId(database), pg_billing::refresh_cache);
}
