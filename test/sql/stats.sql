-- The stat_ views: what was decided and done, counted in shared memory.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('bare', 'Bare', 'b@b.example', stripe => false) \g /dev/null
SELECT billing.stat_reset();
SELECT metric, recorded, duplicates, checks_allowed, denied FROM billing.stat_metrics;

SELECT FROM billing.record_usage('acme', 'api_calls', 1, 'a') \g /dev/null
SELECT FROM billing.record_usage('acme', 'api_calls', 1, 'a') \g /dev/null
SELECT FROM billing.try_consume('acme', 'api_calls', 1, 'a') \g /dev/null
SELECT FROM billing.check_quota('acme', 'api_calls') \g /dev/null
SELECT FROM billing.check_quota('acme', 'user_seats', 4) \g /dev/null
SELECT FROM billing.try_consume('acme', 'api_calls', 5000) \g /dev/null
CALL attempt($$SELECT billing.consume('acme', 'api_calls', 5000)$$);
SELECT FROM billing.set_quota('acme', 'api_calls', 1, per => 'hour') \g /dev/null
SELECT FROM billing.try_consume('acme', 'api_calls', 1) \g /dev/null
SELECT FROM billing.try_consume('bare', 'api_calls', 1) \g /dev/null
UPDATE billing.subscriptions SET status = 'unpaid';
SELECT FROM billing.try_consume('acme', 'api_calls', 1) \g /dev/null
-- an error is no decision; a decision that is rolled back was made
CALL attempt($$SELECT billing.try_consume('acme', 'api_calls', -1)$$);
BEGIN;
SELECT FROM billing.record_usage('acme', 'llm_tokens') \g /dev/null
ROLLBACK;
SELECT metric, recorded, duplicates, checks_allowed, denied, stats_reset <= clock_timestamp() AS since FROM billing.stat_metrics ORDER BY 1;
SELECT * FROM billing.stat_denials WHERE denied > 0 ORDER BY 1, 2;

-- counters: loaded once each, pinned while a transaction holds usage
SELECT capacity, loads > 0 AS loaded, pinned, in_use >= loads AS kept, refused FROM billing.stat_counters;
BEGIN;
SELECT FROM billing.record_usage('acme', 'llm_tokens') \g /dev/null
SELECT pinned FROM billing.stat_counters;
SELECT FROM billing.run_rollup();
SELECT pid = pg_backend_pid() AS mine, datname = current_database() AS here, command, phase, done, total FROM billing.stat_progress;
COMMIT;
SELECT count(*) AS under_way, (SELECT pinned FROM billing.stat_counters) AS pinned FROM billing.stat_progress;

-- rollups
SELECT FROM billing.record_usage('acme', 'llm_tokens') \g /dev/null
SELECT FROM billing.run_rollup();
SELECT runs, events, total_time >= last_time AS timed, last_run_at <= clock_timestamp() AS ran, last_events, lag IS NOT NULL AS lags
  FROM billing.stat_rollup;
SELECT billing.stat_reset();
SELECT metric, recorded, denied FROM billing.stat_metrics ORDER BY 1;
SELECT runs, events, last_run_at FROM billing.stat_rollup;

-- workers: none runs in this server
SELECT job, pid, failed_runs FROM billing.stat_workers;

-- who may look
CREATE ROLE regress_watcher IN ROLE pg_monitor;
CREATE ROLE regress_app IN ROLE billing_app;
SET ROLE regress_watcher;
SELECT count(*) FROM billing.stat_metrics;
SELECT runs FROM billing.stat_rollup;
SELECT count(*) FROM billing.stat_denials, billing.stat_counters, billing.stat_progress;
SELECT count(*) FROM billing.stat_workers;
CALL attempt($$SELECT billing.stat_reset()$$);
SET ROLE regress_app;
CALL attempt($$SELECT * FROM billing.stat_metrics$$);
RESET ROLE;
DROP ROLE regress_watcher, regress_app;
