-- What monitoring reads, in Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats): the numbers of the stat_
-- views, and what is stored and waits. No label names a tenant, and none has a character to escape. Counters begin at zero with the server, as Prometheus expects.

CREATE FUNCTION billing._metric_families() RETURNS TABLE (n int, name text, type text, help text)
LANGUAGE sql IMMUTABLE AS $$
    VALUES (1, 'info', 'gauge', 'Version of the extension.'),
           (2, 'health_problems', 'gauge', 'Rows of billing.health().'),
           (3, 'decisions_total', 'counter', 'Quota decisions; status denied are the refusals (HTTP 429).'),
           (4, 'counters_capacity', 'gauge', 'Room for quota counters in shared memory.'),
           (5, 'counters_in_use', 'gauge', 'Quota counters in shared memory.'),
           (6, 'counters_loaded_total', 'counter', 'Quota counters loaded from tables.'),
           (7, 'counters_evicted_total', 'counter', 'Quota counters given up for others.'),
           (8, 'counters_refused_total', 'counter', 'Calls refused as there was no room for a quota counter.'),
           (9, 'rollup_runs_total', 'counter', 'Rollups of usage events.'),
           (10, 'rollup_events_total', 'counter', 'Usage events rolled up.'),
           (11, 'rollup_seconds_total', 'counter', 'Time spent in rollups.'),
           (12, 'rollup_last_seconds', 'gauge', 'Time that the latest rollup took.'),
           (13, 'rollup_lag_seconds', 'gauge', 'Age of the oldest usage that may not be rolled up.'),
           (14, 'job_failed_runs', 'gauge', 'Runs of a worker''s job that have failed in a row.'),
           (15, 'stripe_paused', 'gauge', 'Whether nothing is submitted to Stripe.'),
           (16, 'stripe_queue', 'gauge', 'Requests to Stripe that are open.'),
           (17, 'stripe_queue_age_seconds', 'gauge', 'Age of the oldest of them.'),
           (18, 'stripe_dead_letters', 'gauge', 'Requests that Stripe refused for good.'),
           (19, 'stripe_settled_last_hour', 'gauge', 'Requests to Stripe settled within the last hour.'),
           (20, 'stripe_attempts_last_hour', 'gauge', 'Attempts that these took.'),
           (21, 'webhooks_open', 'gauge', 'Webhooks that are not processed yet.'),
           (22, 'webhooks_last_hour', 'gauge', 'Webhooks processed within the last hour.'),
           (23, 'webhook_seconds_last_hour', 'gauge', 'Time from receipt to outcome of these, as quantiles.'),
           (24, 'notifications', 'gauge', 'Notifications by state, of the last 90 days.'),
           (25, 'drift_open', 'gauge', 'Differences that reconciliation has found and nobody has repaired.'),
           (26, 'quota_cache_decisions_total', 'counter', 'Decisions at the edge: found in the cache (hit) or not (miss).'),
           (27, 'quota_cache_denials_total', 'counter', 'Denials among the hits.'),
           (28, 'quota_cache_entries_written_total', 'counter', 'Entries written to Redis.'),
           (29, 'quota_cache_events_drained_total', 'counter', 'Usage taken over from Redis.'),
           (30, 'quota_cache_staleness_seconds', 'gauge', 'How old the cache may be.')
$$;

CREATE FUNCTION billing._metric_samples() RETURNS TABLE (name text, labels text[], value numeric)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'info', ARRAY['version', e.extversion], 1::numeric FROM pg_extension e WHERE e.extname = 'pg_billing'
    UNION ALL SELECT 'health_problems', ARRAY['severity', s], (SELECT count(*) FROM billing.health() h WHERE h.severity = s)
                FROM unnest('{error,warning}'::text[]) s
    UNION ALL SELECT 'decisions_total', ARRAY['metric', o.metric, 'status', o.status, 'reason', o.reason], o.decisions FROM billing._stat_outcomes() o
    UNION ALL SELECT x.name, '{}', x.value
                FROM billing._stat_counters() c
               CROSS JOIN LATERAL (VALUES ('counters_capacity', c.capacity), ('counters_in_use', c.in_use), ('counters_loaded_total', c.loads),
                                          ('counters_evicted_total', c.evictions), ('counters_refused_total', c.refused)) x (name, value)
    UNION ALL SELECT x.name, '{}', x.value
                FROM billing._stat_rollups() r
               CROSS JOIN LATERAL (VALUES ('rollup_runs_total', r.runs), ('rollup_events_total', r.events), ('rollup_seconds_total', r.total_time::numeric / 1000),
                                          ('rollup_last_seconds', r.last_time::numeric / 1000)) x (name, value)
    UNION ALL SELECT 'rollup_lag_seconds', '{}', extract(epoch FROM billing._rollup_lag())
    UNION ALL SELECT 'job_failed_runs', ARRAY['job', w.job], w.failed_runs FROM billing.stat_workers w
    UNION ALL SELECT 'stripe_paused', '{}', (billing._stripe_ready() IS NOT NULL)::int
    UNION ALL SELECT 'stripe_queue', ARRAY['state', s], (SELECT count(*) FROM billing.stripe_outbox o WHERE o.state = s AND o.state IN ('waiting', 'sending'))
                FROM unnest('{waiting,sending}'::text[]) s
    UNION ALL SELECT 'stripe_queue_age_seconds', '{}', coalesce(extract(epoch FROM clock_timestamp() - min(w.waiting_since)), 0) FROM billing._stripe_waiting() w
    UNION ALL SELECT 'stripe_dead_letters', '{}', count(*) FROM billing._stripe_dead_letter()
    UNION ALL SELECT x.name, ARRAY['state', s.state], x.value
                FROM (SELECT st.state, count(o.id) AS requests, coalesce(sum(o.attempts), 0) AS attempts
                        FROM unnest('{delivered,failed}'::text[]) st (state)
                        LEFT JOIN billing.stripe_outbox o ON o.state = st.state AND o.settled_at > clock_timestamp() - interval '1 hour'
                       GROUP BY 1) s
               CROSS JOIN LATERAL (VALUES ('stripe_settled_last_hour', s.requests), ('stripe_attempts_last_hour', s.attempts)) x (name, value)
    UNION ALL SELECT 'webhooks_open', '{}', count(*) FROM billing.webhook_events e WHERE e.processed_at IS NULL
    UNION ALL SELECT 'webhooks_last_hour', ARRAY['outcome', e.outcome], count(*)
                FROM billing.webhook_events e WHERE e.processed_at > clock_timestamp() - interval '1 hour' GROUP BY e.outcome
    UNION ALL SELECT 'webhook_seconds_last_hour', ARRAY['quantile', q::text],
                     (SELECT percentile_cont(q) WITHIN GROUP (ORDER BY extract(epoch FROM e.processed_at - e.opened_at)::float8)::numeric
                        FROM billing.webhook_events e WHERE e.processed_at > clock_timestamp() - interval '1 hour')
                FROM unnest('{0.5,0.95,0.99}'::float8[]) q
    UNION ALL SELECT 'notifications', ARRAY['state', n.state], count(*) FROM billing.notifications n GROUP BY n.state
    UNION ALL SELECT 'drift_open', '{}', count(*) FROM billing.drift d WHERE d.repaired_at IS NULL
    UNION ALL SELECT x.name, x.labels, x.value
                FROM billing._stat_quota_cache() c
               CROSS JOIN LATERAL (VALUES ('quota_cache_decisions_total', '{result,hit}'::text[], c.hits), ('quota_cache_decisions_total', '{result,miss}', c.misses),
                                          ('quota_cache_denials_total', '{}', c.denials), ('quota_cache_entries_written_total', '{}', c.entries_written),
                                          ('quota_cache_events_drained_total', '{}', c.events_drained),
                                          ('quota_cache_staleness_seconds', '{}', extract(epoch FROM c.staleness))) x (name, labels, value)
               WHERE current_setting('pg_billing.redis_url') <> ''
$$;

CREATE FUNCTION billing.get_prometheus_metrics() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS $$
    WITH samples AS (
        SELECT s.name, s.value,
               (SELECT '{' || string_agg(format('%s="%s"', s.labels[i], s.labels[i + 1]), ',' ORDER BY i) || '}'
                  FROM generate_series(1, array_length(s.labels, 1), 2) i) AS labels
          FROM billing._metric_samples() s WHERE s.value IS NOT NULL
    ), families AS (
        SELECT f.n, format(E'# HELP pg_billing_%1$s %2$s\n# TYPE pg_billing_%1$s %3$s\n', f.name, f.help, f.type)
                    || string_agg(format(E'pg_billing_%s%s %s\n', f.name, s.labels, trim_scale(s.value)), '' ORDER BY s.labels) AS text
          FROM billing._metric_families() f JOIN samples s USING (name) GROUP BY f.n, f.name, f.help, f.type
    )
    SELECT string_agg(f.text, '' ORDER BY f.n) FROM families f
$$;
COMMENT ON FUNCTION billing.get_prometheus_metrics() IS
    'returns what monitoring watches, in Prometheus'' text format: decisions, counters, rollup, workers, Stripe''s queue, webhooks, notifications, drift, the quota cache; times in seconds';

CREATE FUNCTION billing.scrape_metrics(key_sha256 bytea) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    caller record;
BEGIN
    SELECT * INTO caller FROM billing._authenticate(key_sha256, NULL, 'metrics:read');
    IF caller.refused_with IS NOT NULL THEN
        RAISE EXCEPTION '%', caller.refusal USING ERRCODE = caller.refused_with;
    ELSIF caller.tenant IS NOT NULL THEN
        RAISE EXCEPTION 'metrics are of all tenants: not for a key of tenant "%"', caller.tenant
            USING ERRCODE = 'UB040', HINT = 'Use the key of a service: billing.create_api_key(scopes => ''{metrics:read}'').';
    END IF;
    RETURN billing.get_prometheus_metrics();
END $$;
COMMENT ON FUNCTION billing.scrape_metrics(bytea) IS
    'returns get_prometheus_metrics() to the shim if the key is a service''s with the scope metrics:read. Raises UB040 to UB042';
