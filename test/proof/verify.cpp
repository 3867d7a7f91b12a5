#include "test/proof/verify.hpp"

#include <map>

namespace pg_billing::proof {

namespace {

const std::string kSchema = R"(
    CREATE SCHEMA proof;
    CREATE TABLE proof.fates (key text, tenant_id text, metric text, quantity numeric, counts boolean,
                              PRIMARY KEY (tenant_id, key));
    CREATE FUNCTION proof.guarded(tenant text, metric text, quantity numeric, key text, undo boolean) RETURNS text
    LANGUAGE plpgsql AS $$
    DECLARE
        d billing.decision;
    BEGIN
        BEGIN
            IF metric = 'llm_tokens' THEN
                d := billing.record_usage(tenant, metric, quantity, key);
            ELSE
                d := billing.try_consume(tenant, metric, quantity, key);
            END IF;
            IF undo THEN
                RAISE EXCEPTION USING ERRCODE = 'PROOF';
            END IF;
        EXCEPTION WHEN SQLSTATE 'PROOF' THEN
            RETURN 'undone';
        END;
        RETURN d.status;
    END $$;
)";

// What the period would allow is denied by the hour or the day, with the number of that counter.
constexpr const char *kWindowCounters =
    "SELECT w.tenant_id, w.per, d.used, u.used"
    "  FROM billing.window_limits w, LATERAL billing.check_quota(w.tenant_id, w.metric, 0) q,"
    "       LATERAL billing.check_quota(w.tenant_id, w.metric, q.remaining) d,"
    "       LATERAL (SELECT coalesce(sum(e.quantity), 0) AS used FROM billing.usage_events e"
    "                 WHERE e.tenant_id = w.tenant_id AND e.metric = w.metric"
    "                   AND e.occurred_at >= date_trunc(w.per, billing.now(), 'UTC')) u"
    " WHERE d.status = 'denied' AND d.used <> u.used";

constexpr const char *kPinned = "SELECT pinned FROM billing.stat_counters WHERE pinned > 0";

constexpr const char *kTenant =
    "SELECT billing.create_customer($1, $1, $1 || '@example.com', stripe => false),"
    "       billing.set_quota($1, 'api_calls', $2::numeric, 'hard'), billing.set_quota($1, 'llm_tokens', "
    "NULL),"
    "       billing.set_quota($1, 'storage_gb', $3::numeric, 'hard')";

// As if of two days ago: the first limit of its kind ever is in force from the next hour or day on.
constexpr const char *kWindow = "SELECT billing.set_quota($1, 'api_calls', $2::numeric, per => $3)";
constexpr const char *kTwoDaysAgo = "SET LOCAL pg_billing.time_shift = '-2 d'";

constexpr const char *kCounters =
    "SELECT c.tenant_id, m, q.used, u.used"
    "  FROM billing.billing_customers c, unnest('{api_calls,llm_tokens,storage_gb}'::text[]) m,"
    "       LATERAL billing.check_quota(c.tenant_id, m, 0) q,"
    "       LATERAL (SELECT billing.get_current_usage(c.tenant_id, m) AS used) u"
    " WHERE c.tenant_id LIKE 'tenant-%' AND q.used IS DISTINCT FROM u.used";

// What happened to each key, seen by the clients (f) and in the tables (e). A number per kind of fault.
constexpr const char *kFates =
    "SELECT count(*) FILTER (WHERE f.counts AND (e.rows IS NULL OR (e.rows = 1 AND NOT same))),"
    "       count(*) FILTER (WHERE e.rows > 1), count(*) FILTER (WHERE e.rows > 0 AND f.counts IS NOT TRUE),"
    "       min(f.key) FILTER (WHERE f.counts AND e.rows IS NULL), min(e.key) FILTER (WHERE e.rows > 1),"
    "       min(e.key) FILTER (WHERE e.rows > 0 AND f.counts IS NOT TRUE)"
    "  FROM proof.fates f"
    "  FULL JOIN (SELECT tenant_id, idempotency_key AS key, min(metric) AS metric, min(quantity) AS quantity,"
    "                    count(*) AS rows"
    "               FROM billing.usage_events GROUP BY 1, 2) e"
    "    ON f.tenant_id = e.tenant_id AND f.key = e.key,"
    "       LATERAL (SELECT f.metric = e.metric AND f.quantity = e.quantity AS same) s";

constexpr const char *kOvershoot =
    "SELECT e.tenant_id, e.metric, e.used, q.quota"
    "  FROM (SELECT tenant_id, metric, sum(quantity) AS used"
    "          FROM billing.usage_events GROUP BY tenant_id, metric, period_start) e,"
    "       LATERAL billing.check_quota(e.tenant_id, e.metric, 0) q"
    " WHERE q.cap = 'hard' AND e.used > q.quota";

constexpr const char *kWindowOvershoot =
    "SELECT w.tenant_id, w.per, sum(e.quantity), w.quota"
    "  FROM billing.window_limits w JOIN billing.usage_events e USING (tenant_id, metric)"
    " GROUP BY w.tenant_id, w.per, w.quota, date_trunc(w.per, e.occurred_at, 'UTC') HAVING sum(e.quantity) > "
    "w.quota";

// Per hour, after the rollup: events against aggregates.
constexpr const char *kAggregates =
    "SELECT tenant_id, metric, e.events, a.events, e.quantity, a.quantity"
    "  FROM (SELECT tenant_id, metric, period_start, date_trunc('hour', occurred_at, 'UTC') AS hour,"
    "               count(*) AS events, sum(quantity) AS quantity"
    "          FROM billing.usage_events GROUP BY 1, 2, 3, 4) e"
    "  FULL JOIN billing.usage_aggregates a USING (tenant_id, metric, period_start, hour)"
    " WHERE (e.events, e.quantity) IS DISTINCT FROM (a.events, a.quantity)";

// Per period: events against the copy of their sum beside the quota.
constexpr const char *kQuotas =
    "SELECT tenant_id, metric, e.quantity, u.used"
    "  FROM (SELECT tenant_id, metric, period_start, sum(quantity) AS quantity"
    "          FROM billing.usage_events GROUP BY 1, 2, 3) e"
    "  LEFT JOIN billing.usage_quotas u USING (tenant_id, metric, period_start)"
    " WHERE u.used IS DISTINCT FROM e.quantity";

// Tells of each row a query returns, for there should be none.
void expect_none(Run &run, Connection &db, std::atomic<long> &kind, const char *what, const char *query) {
    try {
        for (const auto &row : db.query(query)) {
            std::string text = what;
            for (const auto &value : row)
                text += " " + value;
            run.wrong(kind, text);
        }
    } catch (const SqlError &e) {
        run.wrong(kind, what + (" " + std::string(e.what())));
    }
}

// One row per key: clients that shared one must agree.
std::string merged(Run &run, const std::vector<Event> &ledger) {
    std::map<std::string, std::pair<Event, int>> fates;
    for (const Event &event : ledger) {
        auto &[fate, answered] = fates.try_emplace(event.key, event, 0).first->second;
        fate.counts |= event.counts;
        answered += event.answered;
        if (answered > 1)
            run.wrong(run.totals.twice, "key " + event.key + " was answered \"recorded\" twice");
    }
    std::string rows;
    for (const auto &[key, known] : fates)
        rows += key + '\t' + known.first.tenant + '\t' + known.first.metric + '\t' +
                quantity(known.first.quarters) + '\t' + (known.first.counts ? "t" : "f") + '\n';
    return rows;
}

}  // namespace

void set_up(Run &run, Connection &db) {
    db.command("BEGIN");
    db.command(kSchema);
    for (unsigned i = 1; i <= run.settings.tenants; i++) {
        db.query(kTenant, {tenant_name(i), std::to_string(kFirstCap), std::to_string(kGaugeCap)});
        run.quotas[i].lowest = run.quotas[i].highest = kFirstCap;
    }
    db.command(kTwoDaysAgo);
    for (unsigned i = kHotTenants + 1; i <= run.settings.tenants; i++)
        if (i % 4 < 2)
            db.query(kWindow,
                     {tenant_name(i), std::to_string(i % 4 ? kDayCap : kHourCap), i % 4 ? "day" : "hour"});
    db.command("COMMIT");
}

void compare_counters(Run &run, Connection &db) {
    expect_none(run, db, run.totals.drift, "counter, committed:", kCounters);
    expect_none(run, db, run.totals.drift, "counter, committed, within", kWindowCounters);
    expect_none(run, db, run.totals.drift, "counters pinned by nobody:", kPinned);
}

void verify(Run &run, Connection &db, const std::vector<Event> &ledger) {
    Totals &totals = run.totals;
    compare_counters(run, db);
    db.query("SELECT billing.run_rollup()");
    compare_counters(run, db);
    expect_none(run, db, totals.overshoot, "used, quota:", kOvershoot);
    expect_none(run, db, totals.overshoot, "used, quota, within", kWindowOvershoot);
    expect_none(run, db, totals.drift, "events, aggregated:", kAggregates);
    expect_none(run, db, totals.drift, "events, beside the quota:", kQuotas);

    db.copy("COPY proof.fates FROM STDIN", merged(run, ledger));
    const auto row = db.query(kFates)[0];
    std::atomic<long> *const kinds[] = {&totals.lost, &totals.twice, &totals.ghosts};
    const char *const names[] = {"lost, such as key ", "twice, such as key ",
                                 "denied or rolled back, yet counted: key "};
    for (int i = 0; i < 3; i++)
        if (row[i] != "0")
            run.wrong(*kinds[i], names[i] + row[i + 3], std::stol(row[i]));
}

}  // namespace pg_billing::proof
