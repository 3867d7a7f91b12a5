-- Pauses: checks deny, usage is kept and not billed, and a period begins with the resumption.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{acme,bolt,nemo}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
CREATE VIEW acme AS
    SELECT s.status, s.anchor, s.current_period_start, s.current_period_end, s.paused_at IS NOT NULL AS paused
      FROM billing.subscriptions s WHERE s.tenant_id = 'acme' ORDER BY s.id;

SELECT FROM billing.record_usage('acme', 'api_calls', 100100) \g /dev/null
CALL travel('40 minutes');
BEGIN;
SELECT billing.pause_subscription('acme');
SELECT status, reason FROM billing.check_quota('acme', 'api_calls');
ROLLBACK;
SELECT status FROM billing.check_quota('acme', 'api_calls');
SELECT billing.pause_subscription('acme');
SELECT billing.pause_subscription('acme');
SELECT * FROM acme;
SELECT status, reason FROM billing.check_quota('acme', 'api_calls');
SELECT detail FROM billing.explain_decision('acme', 'api_calls') WHERE step IN ('subscription', 'decision');
CALL attempt($$SELECT billing.consume('acme', 'api_calls', 1)$$);
-- work that was done is recorded, and billed by nobody; usage of before that comes late is not the pause's
SELECT status FROM billing.record_usage('acme', 'api_calls', 500000);
SELECT status FROM billing.record_usage('acme', 'api_calls', 1, occurred_at => '2030-01-31 12:50+00');
SELECT billing.get_current_usage('acme', 'api_calls'), billing.get_overage_cost('acme', 'api_calls');
SELECT billing.get_current_usage('acme', 'api_calls', 'previous'), billing.get_overage_cost('acme', 'api_calls', 'previous');
SELECT count(*) FROM billing.get_upcoming_invoice('acme');
SELECT billing.run_rollup();
SELECT quantity FROM billing.get_usage_history('acme', 'api_calls', 2);
-- an override is the tenant's own and stays in force
SELECT billing.set_quota('acme', 'user_seats', 5);
SELECT status, quota FROM billing.check_quota('acme', 'user_seats');
-- it lasts past the period's end; another plan waits for its own end
CALL travel('45 days');
SELECT billing.run_rollup();
SELECT * FROM acme;
SELECT status, reason FROM billing.check_quota('acme', 'api_calls');
SELECT billing.update_subscription('acme', 'enterprise');

CALL attempt($$SELECT billing.pause_subscription('nemo')$$);
CALL attempt($$SELECT billing.cancel_subscription('acme')$$);
SELECT billing.cancel_subscription('bolt');
CALL attempt($$SELECT billing.pause_subscription('bolt')$$);
SELECT FROM billing.create_subscription('nemo', 'standard', trial_days => 7) \g /dev/null
CALL attempt($$SELECT billing.pause_subscription('nemo')$$);
SET pg_billing.tenant_id = 'nemo';
CALL attempt($$SELECT billing.pause_subscription('acme')$$);
RESET pg_billing.tenant_id;

-- the resumption: a period from this hour, with an allowance of its own
SELECT billing.resume_subscription('acme');
SELECT status, plan FROM billing.get_subscription('acme');
SELECT anchor = date_trunc('hour', billing.now()) AS from_this_hour, current_period_start = anchor AS begins, paused FROM acme;
SELECT status, used, quota FROM billing.try_consume('acme', 'api_calls', 3);
SELECT billing.run_rollup();
SELECT billing.get_current_usage('acme', 'api_calls');
SELECT metric, quantity, amount FROM billing.get_upcoming_invoice('acme') WHERE amount > 0;
-- twice within one moment, and ended while paused
SELECT billing.pause_subscription('acme'), billing.resume_subscription('acme'), billing.pause_subscription('acme');
SELECT status, paused FROM acme;
SELECT billing.cancel_subscription('acme', false);
SELECT status FROM acme;
CALL attempt($$SELECT billing.resume_subscription('acme')$$);
SELECT action, count(*) FROM billing.audit_log WHERE tenant_id = 'acme' GROUP BY 1 ORDER BY 1;
