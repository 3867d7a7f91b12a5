-- run_rollup: every event is folded once, into its hour and period; alerts once each; usage_quotas follows.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
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
SELECT count(*) FROM billing._tail('acme');
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
       (SELECT sum(used) FROM billing.usage_quotas) AS quotas, (SELECT count(*) FROM billing._tail('acme')) AS tail;
