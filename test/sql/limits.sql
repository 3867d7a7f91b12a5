-- Limits beside the period's quota: per hour and per day, and the grace period of a soft cap.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT FROM billing.create_customer('delhi', 'Delhi', 'd@d.example', 'Asia/Kolkata', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('delhi', 'standard') \g /dev/null
CREATE FUNCTION answer(d billing.decision) RETURNS text LANGUAGE sql AS
    'SELECT concat_ws('' '', d.status, d.reason, d.used, ''of'', d.quota, d.cap, ''until'', d.resets_at, d.warning)';

-- ten an hour, fifteen a day, of 100,000 a month: of what was used before, too
SELECT FROM billing.record_usage('acme', 'api_calls', 1000) \g /dev/null
INSERT INTO billing.plan_window_limits VALUES ('standard', 'api_calls', 'hour', 10), ('standard', 'api_calls', 'day', 15);
SELECT answer(billing.try_consume('acme', 'api_calls'));
CALL travel('1 hour');
SELECT answer(billing.try_consume('acme', 'api_calls'));
CALL travel('1 day');
-- all count, the narrowest refuses
SELECT answer(billing.try_consume('acme', 'api_calls', 10));
SELECT answer(billing.try_consume('acme', 'api_calls'));
SELECT answer(billing.check_quota('acme', 'api_calls'));
CALL attempt($$SELECT billing.consume('acme', 'api_calls')$$);
-- the next hour
CALL travel('1 hour');
SELECT answer(billing.try_consume('acme', 'api_calls', 6));
SELECT answer(billing.try_consume('acme', 'api_calls', 5));
SELECT answer(billing.try_consume('acme', 'api_calls'));
-- what was denied for one limit left nothing on the others; what is recorded counts on all, and is never denied
SELECT answer(billing.record_usage('acme', 'api_calls', 3));
SELECT answer(billing.try_consume('acme', 'api_calls', 0));
-- a late event counts into its own hour and day
SELECT answer(billing.record_usage('acme', 'api_calls', 2, NULL, billing.now() - interval '1 hour'));
SELECT answer(billing.try_consume('acme', 'api_calls', 1, NULL, billing.now() - interval '1 day'));
-- a rollback gives back on all of them
CALL travel('1 day');
BEGIN;
SELECT answer(billing.try_consume('acme', 'api_calls', 10));
SAVEPOINT s;
SELECT answer(billing.try_consume('acme', 'api_calls'));
ROLLBACK;
SELECT answer(billing.try_consume('acme', 'api_calls', 10));
-- loaded anew from what is rolled up and what is not (another scale is another counter)
SELECT billing.run_rollup() > 0 AS rolled_up;
SELECT answer(billing.record_usage('acme', 'api_calls', 1));
UPDATE billing.metrics SET scale = 1 WHERE name = 'api_calls';
SELECT answer(billing.try_consume('acme', 'api_calls'));
CALL travel('1 hour');
SELECT answer(billing.try_consume('acme', 'api_calls', 4.5));
UPDATE billing.metrics SET scale = 0 WHERE name = 'api_calls';
SELECT answer(billing.try_consume('acme', 'api_calls'));
-- the tenant's own limits come before its plan's; null: none; and a limit counts from its commit
SELECT FROM billing.set_quota('acme', 'api_calls', 20, per => 'day');
SELECT answer(billing.try_consume('acme', 'api_calls', 3));
BEGIN;
SELECT FROM billing.set_quota('acme', 'api_calls', NULL, per => 'day');
SELECT answer(billing.try_consume('acme', 'api_calls', 1));
ROLLBACK;
SELECT answer(billing.try_consume('acme', 'api_calls', 2));
SELECT FROM billing.set_quota('acme', 'api_calls', NULL, per => 'day');
SELECT FROM billing.set_quota('acme', 'api_calls', NULL, per => 'hour');
SELECT answer(billing.try_consume('acme', 'api_calls', 500));
-- what was used while there was no limit counts when there is one again
SELECT FROM billing.clear_quota('acme', 'api_calls', 'hour');
SELECT answer(billing.try_consume('acme', 'api_calls'));
DELETE FROM billing.plan_window_limits WHERE per = 'hour';
SELECT answer(billing.try_consume('acme', 'api_calls'));
-- a day begins at local midnight, where that is off the hour with the hour it falls into
SELECT at, billing._window_at('day', 'Asia/Kolkata', at) FROM unnest(ARRAY['2030-02-01 17:59+00', '2030-02-01 18:00+00', '2030-02-01 18:30+00']::timestamptz[]) at;
SELECT billing._window_at('day', 'Europe/Berlin', '2030-03-31 12:00+00'), billing._window_at('day', 'Europe/Berlin', '2030-10-27 12:00+00');
SELECT answer(billing.try_consume('delhi', 'api_calls', 16));
SELECT answer(billing.try_consume('delhi', 'api_calls', 15));

CALL attempt($$SELECT billing.set_quota('acme', 'api_calls', 1, per => 'week')$$);
CALL attempt($$SELECT billing.set_quota('acme', 'api_calls', 1, 'soft', per => 'day')$$);
CALL attempt($$SELECT billing.set_quota('acme', 'api_calls', -1, per => 'day')$$);
CALL attempt($$SELECT billing.set_quota('acme', 'user_seats', 1, per => 'day')$$);

-- a soft cap's grace period: from the moment the quota was seen to be reached
SELECT FROM billing.set_quota('acme', 'llm_tokens', 100, 'soft', 1.5, '1 day');
SELECT answer(billing.try_consume('acme', 'llm_tokens', 85));
SELECT answer(billing.try_consume('acme', 'llm_tokens', 45));
SELECT billing.run_rollup();
SELECT threshold, used, quota FROM billing.usage_alerts WHERE tenant_id = 'acme' AND metric = 'llm_tokens' ORDER BY 1;
SELECT answer(billing.try_consume('acme', 'llm_tokens', 5));
SELECT answer(billing.try_consume('acme', 'llm_tokens', 20));
CALL travel('1 day');
SELECT answer(billing.try_consume('acme', 'llm_tokens', 5));
SELECT answer(billing.record_usage('acme', 'llm_tokens', 5));
CALL travel('30 days');
SELECT answer(billing.try_consume('acme', 'llm_tokens', 120));

-- why
SELECT * FROM billing.explain_decision('acme', 'llm_tokens', 30);
SELECT * FROM billing.explain_decision('delhi', 'api_calls', 16);
SELECT * FROM billing.explain_decision('delhi', 'api_calls', 1);
SELECT * FROM billing.explain_decision('delhi', 'user_seats', 100);
UPDATE billing.subscriptions SET status = 'past_due', past_due_since = date_trunc('hour', billing.now()) - interval '6 days' WHERE tenant_id = 'delhi';
SELECT * FROM billing.explain_decision('delhi', 'llm_tokens');
CALL travel('1 day');
SELECT * FROM billing.explain_decision('delhi', 'llm_tokens');
CALL attempt($$SELECT billing.explain_decision('nobody', 'llm_tokens')$$);

-- all that is in force
SELECT * FROM billing.get_quotas('acme');
SELECT metric, per, quota, own, refusal FROM billing.get_quotas('delhi') WHERE metric IN ('api_calls', 'user_seats');
SELECT count(*) FROM billing.get_quotas('acme') q, billing.metrics m
 WHERE m.name = q.metric AND q.per IS NULL AND q.quota IS DISTINCT FROM billing.get_quota('acme', m.name);
CALL attempt($$SELECT billing.get_quotas('nobody')$$);
