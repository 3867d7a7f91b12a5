-- run_rollup: every event is folded once, into its hour and period; alerts once each; usage_quotas follows.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\set truth :tests /lib/truth.sql
\i :begin
\i :truth
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('bare', 'Bare', 'b@b.example', stripe => false) \g /dev/null
SELECT billing.run_rollup();
SELECT FROM billing.record_usage('acme', 'llm_tokens', 100, NULL, '2030-01-31 12:05+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 20, NULL, '2030-01-31 12:10+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 3, NULL, '2030-01-31 11:59+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 0.5) \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', -0.125) \g /dev/null
SELECT FROM billing.record_usage('bare', 'api_calls', 4) \g /dev/null
SELECT billing.run_rollup();
SELECT billing.run_rollup();
SELECT tenant_id, metric, period_start, hour, quantity, events, submitted, blocked
  FROM billing.usage_aggregates ORDER BY 1, 2, 3, 4;
SELECT tenant_id, metric, period_start, period_end, quota, cap, used
  FROM billing.usage_quotas WHERE used > 0 ORDER BY 1, 2, 3;
SELECT count(*) FROM unrolled;
-- more of the same hour is added to it
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1000, NULL, '2030-01-31 12:20+00') \g /dev/null
SELECT billing.run_rollup();
SELECT period_start, hour, quantity, events FROM billing.usage_aggregates WHERE metric = 'llm_tokens' ORDER BY 1, 2;
-- what is submitted already stays so until the hour grows
UPDATE billing.usage_aggregates SET submitted = quantity;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1, NULL, '2030-01-31 12:20+00') \g /dev/null
SELECT billing.run_rollup();
SELECT metric, hour, quantity, submitted FROM billing.usage_aggregates WHERE submitted <> quantity;
-- a rollup that fails has not happened
BEGIN;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 9, 'rolled back') \g /dev/null
SELECT billing.run_rollup();
ROLLBACK;
SELECT billing.run_rollup();
SELECT sum(quantity) = (SELECT sum(quantity) FROM billing.usage_events) AS aggregates_are_events FROM billing.usage_aggregates;

-- alerts: each threshold once in a period, all that were passed at once, none twice
SELECT FROM billing.record_usage('acme', 'api_calls', 799) \g /dev/null
SELECT billing.run_rollup();
SELECT tenant_id, metric, threshold FROM billing.usage_alerts;
SELECT FROM billing.record_usage('acme', 'api_calls', 1) \g /dev/null
SELECT billing.run_rollup();
SELECT tenant_id, metric, period_start, threshold, used, quota, raised_at >= '2030-01-31 12:30+00' AS just_now FROM billing.usage_alerts;
SELECT FROM billing.record_usage('acme', 'api_calls', 500) \g /dev/null
SELECT billing.run_rollup();
SELECT FROM billing.record_usage('acme', 'api_calls', 500) \g /dev/null
SELECT billing.run_rollup();
SELECT metric, threshold, used, quota FROM billing.usage_alerts ORDER BY 2;
-- unlimited, or without a quota: none
SELECT FROM billing.set_quota('acme', 'user_seats', NULL) \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', 1000) \g /dev/null
SELECT FROM billing.record_usage('bare', 'llm_tokens', 1000000) \g /dev/null
SELECT billing.run_rollup();
SELECT DISTINCT metric FROM billing.usage_alerts;
-- the next period has its own
CALL travel('28 days');
SELECT FROM billing.record_usage('acme', 'api_calls', 800) \g /dev/null
SELECT billing.run_rollup();
SELECT metric, period_start, threshold FROM billing.usage_alerts ORDER BY 2, 3;
SELECT period_start, used FROM billing.usage_quotas WHERE tenant_id = 'acme' AND metric = 'api_calls' ORDER BY 1;
-- all agree
SELECT (SELECT sum(quantity) FROM billing.usage_events) AS events, (SELECT sum(quantity) FROM billing.usage_aggregates) AS aggregates,
       (SELECT sum(used) FROM billing.usage_quotas) AS quotas, (SELECT count(*) FROM unrolled) AS tail;
SELECT * FROM differences;

-- old partitions are not touched: of 40 days, a rollup and the readers lock no more than the few that may have new events
SELECT FROM billing.record_usage('acme', 'user_seats', -1) \g /dev/null
CALL travel('1 day');
SELECT billing.run_rollup();
CALL travel('1 day');
SELECT billing.run_rollup();
SET session_replication_role = replica;     -- else only functions with raised rights may write
SELECT count(billing._ensure_day(day::date)) FROM generate_series(billing.now() - interval '40 days', billing.now(), '1 day') day;
RESET session_replication_role;
SELECT FROM billing.record_usage('acme', 'api_calls', 1) \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', 1) \g /dev/null
CREATE VIEW locked AS SELECT count(DISTINCT relation) AS partitions FROM pg_locks
 WHERE pid = pg_backend_pid() AND relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'billing.usage_events'::regclass);
BEGIN;
SELECT billing.get_current_usage('acme', 'api_calls'), billing.get_billable_usage('acme', 'user_seats');
SELECT billing._used_within('acme', 'api_calls', billing.now() - interval '1 hour', billing.now() + interval '1 hour');
SELECT partitions < 10 AS few FROM locked;
COMMIT;
BEGIN;
SELECT billing.run_rollup();
SELECT partitions < 10 AS few FROM locked;
COMMIT;
-- not even when an hour of a gauge is computed anew
SELECT FROM billing.record_usage('acme', 'user_seats', 1, NULL, billing.now() - interval '1 minute') \g /dev/null
BEGIN;
SELECT billing.run_rollup();
SELECT partitions < 10 AS few FROM locked;
COMMIT;
