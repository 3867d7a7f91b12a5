-- What a session remembers of a quota is right whatever changes it, and however: by function, by any statement on the
-- tables, or by time alone.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_customer('beta', 'Beta', 'b@b.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT billing._publish_plan(name) FROM billing.plans \g /dev/null
CREATE VIEW remembered AS
    SELECT d.quota, d.cap, d.reason, d.resets_at FROM billing.check_quota('acme', 'api_calls', 900) d;
-- Does a statement and shows what is in force afterwards, for who has just asked before it, too.
CREATE PROCEDURE change(statement text) LANGUAGE plpgsql AS $$
DECLARE
    was text := (SELECT r::text FROM remembered r);
BEGIN
    EXECUTE statement;
    COMMIT;
    RAISE INFO '% -> %', was, (SELECT r::text FROM remembered r);
END $$;

CALL change($$SELECT billing.set_quota('acme', 'api_calls', 100)$$);
CALL change($$SELECT billing.set_quota('acme', 'api_calls', 1000, 'none')$$);
CALL change($$SELECT billing.clear_quota('acme', 'api_calls')$$);
-- limits of shorter windows: the first of a metric is in force from the next window on
SELECT FROM unnest('{hour,day}'::text[]) per, billing.set_quota('beta', 'api_calls', 1, per => per) \g /dev/null
CALL change($$SELECT billing.set_quota('acme', 'api_calls', 800, per => 'day')$$);
CALL change($$CALL travel('1 day')$$);
CALL change($$SELECT billing.set_quota('acme', 'api_calls', 700, per => 'hour')$$);
CALL change($$SELECT billing.clear_quota('acme', 'api_calls', 'hour')$$);
CALL change('TRUNCATE billing.window_limits');
CALL change($$INSERT INTO billing.plan_window_limits (plan, metric, per, quota)
              VALUES ('free', 'api_calls', 'day', 600)$$);
CALL change('DELETE FROM billing.plan_window_limits');
CALL change($$INSERT INTO billing.quota_overrides VALUES ('beta', 'api_calls', 500, 'hard', 1, NULL, billing.now())$$);
CALL change($$UPDATE billing.quota_overrides SET tenant_id = 'acme'$$);
CALL change($$UPDATE billing.quota_overrides SET tenant_id = 'beta'$$);
CALL change($$MERGE INTO billing.quota_overrides o USING (SELECT 'acme' AS t) s ON o.tenant_id = t
              WHEN NOT MATCHED THEN INSERT VALUES (t, 'api_calls', 400, 'hard', 1, NULL, billing.now())$$);
CALL change('TRUNCATE billing.quota_overrides');
COPY billing.quota_overrides FROM stdin (FORMAT csv);
acme,api_calls,300,hard,1,,2030-01-01
\.
TABLE remembered;
CALL change($$DELETE FROM billing.quota_overrides$$);
CALL change($$UPDATE billing.plan_metrics SET allowance = 200 WHERE plan = 'free' AND metric = 'api_calls'$$);
CALL change($$UPDATE billing.subscriptions SET plan = 'standard'$$);
CALL change($$DELETE FROM billing.plan_metrics WHERE plan = 'standard' AND metric = 'api_calls'$$);
CALL change($$UPDATE billing.subscriptions SET status = 'unpaid'$$);
CALL change($$UPDATE billing.subscriptions SET status = 'past_due', past_due_since = billing.now(),
                                             plan = 'enterprise'$$);
CALL change($$UPDATE billing.plans SET past_due_grace = '0' WHERE name = 'enterprise'$$);
CALL change($$UPDATE billing.plans SET past_due_grace = '3 days' WHERE name = 'enterprise'$$);
CALL change($$CALL travel('3 days')$$);
CALL change($$CALL travel('-1 hour')$$);
CALL change($$UPDATE billing.subscriptions SET status = 'canceled'$$);
CALL change($$SELECT billing.create_subscription('acme', 'free')$$);
-- the end of the period
CALL change($$CALL travel('40 days')$$);
CALL change($$CALL travel('-40 days')$$);
-- a soft cap whose grace ends some time after the quota was reached
CALL change($$SELECT billing.set_quota('acme', 'api_calls', 10, 'soft', 100, grace_period => '1 hour')$$);
CALL change($$SELECT billing.record_usage('acme', 'api_calls', 10), billing.run_rollup()$$);
CALL change($$CALL travel('61 minutes')$$);
CALL change('DELETE FROM billing.usage_alerts');
-- an unknown tenant is not remembered as such
SELECT billing.check_quota('gamma', 'api_calls');
SELECT FROM billing.create_customer('gamma', 'Gamma', 'g@g.example', stripe => false) \g /dev/null
SELECT status, reason FROM billing.check_quota('gamma', 'api_calls');
