// The SQL of a proof: what it sets up, and what it compares. A query that looks for faults returns a row for each.
#pragma once

namespace pg_billing::proof {

inline constexpr const char *kSchema = R"(
    CREATE SCHEMA proof;
    CREATE TABLE proof.fates (key text, tenant_id text, metric text, quantity numeric, counts boolean,
                              retracted boolean, PRIMARY KEY (tenant_id, key));
    CREATE TABLE proof.known_items (id text PRIMARY KEY, tenant text);
    CREATE TABLE proof.items (id text PRIMARY KEY, tenant text);
    CREATE TRIGGER items AFTER INSERT OR UPDATE OF tenant OR DELETE ON proof.items
        FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('items', 'tenant');
    INSERT INTO billing.metrics (name, display_name, kind, aggregation, unit, scale, stripe_event_name)
    VALUES ('items', 'Items', 'gauge', 'max', 'items', 0, 'items');
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

inline constexpr const char *kTenant = R"(
    SELECT billing.create_customer($1, $1, $1 || '@example.com', stripe => false),
           billing.set_quota($1, 'api_calls', $2::numeric, 'hard'), billing.set_quota($1, 'llm_tokens', NULL),
           billing.set_quota($1, 'storage_gb', $3::numeric, 'hard'),
           billing.set_quota($1, 'user_seats', $4::numeric, 'hard'),
           billing.set_quota($1, 'items', $5::numeric, 'hard'))";

// As if of two days ago: the first limit of its kind ever is in force from the next hour or day on.
inline constexpr const char *kTwoDaysAgo = "SET LOCAL pg_billing.time_shift = '-2 d'";
inline constexpr const char *kWindow = "SELECT billing.set_quota($1, 'api_calls', $2::numeric, per => $3)";

// What was held and abandoned, and is not marked as expired yet.
inline constexpr const char *kAbandoned = R"(
    SELECT FROM billing.reservations WHERE state = 'held' AND expires_at < reserved_at + interval '1 second')";

inline constexpr const char *kHeld = R"(
    SELECT tenant_id, metric, id FROM billing.reservations WHERE state = 'held')";

inline constexpr const char *kPinned = "SELECT pinned FROM billing.stat_counters WHERE pinned > 0";

// A counter is what is committed and what is held.
inline constexpr const char *kCounters = R"(
    SELECT c.tenant_id, m, q.used, u.used, h.held
      FROM billing.billing_customers c, unnest('{api_calls,llm_tokens,storage_gb,user_seats,items}'::text[]) m,
           LATERAL billing.check_quota(c.tenant_id, m, 0) q,
           LATERAL (SELECT billing.get_current_usage(c.tenant_id, m) AS used) u,
           LATERAL (SELECT coalesce(sum(r.quantity), 0) AS held FROM billing.reservations r
                     WHERE r.tenant_id = c.tenant_id AND r.metric = m AND r.state = 'held'
                       AND r.period_start = lower(billing._period(c.tenant_id, m, 'current'))) h
     WHERE q.used <> u.used + h.held)";

// What the period would allow is denied by the hour or the day, with the number of that counter.
inline constexpr const char *kWindowCounters = R"(
    SELECT w.tenant_id, w.per, d.used, u.used, h.held
      FROM billing.window_limits w, LATERAL billing.check_quota(w.tenant_id, w.metric, 0) q,
           LATERAL billing.check_quota(w.tenant_id, w.metric, q.remaining) d,
           LATERAL date_trunc(w.per, billing.now(), 'UTC') began,
           LATERAL (SELECT coalesce(sum(e.quantity), 0) AS used FROM billing.usage_events e
                     WHERE e.tenant_id = w.tenant_id AND e.metric = w.metric AND e.occurred_at >= began) u,
           LATERAL (SELECT coalesce(sum(r.quantity), 0) AS held FROM billing.reservations r
                     WHERE r.tenant_id = w.tenant_id AND r.metric = w.metric AND r.state = 'held'
                       AND r.reserved_at >= began) h
     WHERE d.status = 'denied' AND d.used <> u.used + h.held)";

inline constexpr const char *kOvershoot = R"(
    SELECT e.tenant_id, e.metric, e.used, q.quota
      FROM (SELECT tenant_id, metric, sum(quantity) AS used
              FROM billing.usage_events GROUP BY tenant_id, metric, period_start) e,
           LATERAL billing.check_quota(e.tenant_id, e.metric, 0) q
     WHERE (q.cap = 'hard' AND e.used > q.quota) OR e.used < 0)";

inline constexpr const char *kWindowOvershoot = R"(
    SELECT w.tenant_id, w.per, sum(e.quantity), w.quota
      FROM billing.window_limits w JOIN billing.usage_events e USING (tenant_id, metric)
     GROUP BY w.tenant_id, w.per, w.quota, date_trunc(w.per, e.occurred_at, 'UTC') HAVING sum(e.quantity) > w.quota)";

// Per hour, after the rollup: events against aggregates.
inline constexpr const char *kAggregates = R"(
    SELECT tenant_id, metric, e.events, a.events, e.quantity, a.quantity
      FROM (SELECT tenant_id, metric, period_start, date_trunc('hour', occurred_at, 'UTC') AS hour,
                   count(*) AS events, sum(quantity) AS quantity
              FROM billing.usage_events GROUP BY 1, 2, 3, 4) e
      FULL JOIN billing.usage_aggregates a USING (tenant_id, metric, period_start, hour)
     WHERE (e.events, e.quantity) IS DISTINCT FROM (a.events, a.quantity))";

// Per period: events against the copy of their sum beside the quota.
inline constexpr const char *kQuotas = R"(
    SELECT tenant_id, metric, e.quantity, u.used
      FROM (SELECT tenant_id, metric, period_start, sum(quantity) AS quantity
              FROM billing.usage_events GROUP BY 1, 2, 3) e
      LEFT JOIN billing.usage_quotas u USING (tenant_id, metric, period_start)
     WHERE u.used IS DISTINCT FROM e.quantity)";

// What became of each key, as the clients know it (f) and as the tables have it (e). A retracted one has two rows.
inline constexpr const char *kFates = R"(
    SELECT CASE WHEN e.rows > 1 THEN 'twice' WHEN f.counts THEN 'lost' ELSE 'ghost' END, coalesce(f.key, e.key)
      FROM proof.fates f
      FULL JOIN (SELECT tenant_id, idempotency_key AS key, min(metric) AS metric, sum(quantity) AS quantity,
                        count(*) FILTER (WHERE void_reason IS NULL) AS rows, count(void_reason) AS voids
                   FROM billing.usage_events WHERE idempotency_key IS NOT NULL GROUP BY 1, 2) e
        ON f.tenant_id = e.tenant_id AND f.key = e.key
     WHERE CASE WHEN f.counts
                THEN (e.rows = 1 AND f.metric = e.metric AND e.voids = f.retracted::int AND
                      e.quantity = CASE WHEN f.retracted THEN 0 ELSE coalesce(f.quantity, e.quantity) END)
                     IS NOT TRUE
                ELSE e.rows IS NOT NULL END)";

// The rows the trigger counts: what the clients know of, and as many as it says.
inline constexpr const char *kItemFates = R"(
    SELECT CASE WHEN i.id IS NULL THEN 'lost' ELSE 'ghost' END, coalesce(k.id, i.id)
      FROM proof.known_items k FULL JOIN proof.items i ON i.id = k.id WHERE i.tenant IS DISTINCT FROM k.tenant)";

inline constexpr const char *kItemCounts = R"(
    SELECT c.tenant_id, i.rows, billing.get_current_usage(c.tenant_id, 'items')
      FROM billing.billing_customers c,
           LATERAL (SELECT count(*) AS rows FROM proof.items WHERE tenant = c.tenant_id) i
     WHERE billing.get_current_usage(c.tenant_id, 'items') <> i.rows)";

}  // namespace pg_billing::proof
