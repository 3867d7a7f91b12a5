-- Plan, period, quota and what is left; the largest tenants, those near a quota, and alerts.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{acme,bolt,core,none}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_subscription(t, 'free') \g /dev/null
SELECT FROM billing.create_subscription('core', 'enterprise') \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 8000) \g /dev/null
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 12500) \g /dev/null
SELECT FROM billing.record_usage('core', 'llm_tokens', 50000) \g /dev/null
SELECT FROM billing.record_usage('core', 'user_seats', 400) \g /dev/null
SELECT FROM billing.record_usage('bolt', 'storage_gb', 0.9) \g /dev/null
CREATE VIEW standing AS
    SELECT c.tenant_id, m.name, billing.get_quota(c.tenant_id, m.name), billing.get_remaining_quota(c.tenant_id, m.name)
      FROM billing.billing_customers c, billing.metrics m;
SELECT * FROM standing ORDER BY 1, 2;
SELECT c.tenant_id, billing.get_effective_plan(c.tenant_id), billing.get_days_remaining(c.tenant_id), p.*
  FROM billing.billing_customers c, billing.get_current_period(c.tenant_id) p ORDER BY 1;
SELECT * FROM billing.get_top_tenants('llm_tokens');
SELECT * FROM billing.get_top_tenants('llm_tokens', 1);
SELECT * FROM billing.get_tenants_near_quota();
SELECT * FROM billing.get_tenants_near_quota(100, 'llm_tokens');
-- alerts are the rollup's; all else is the same after it
SELECT * FROM billing.get_active_alerts();
CREATE TABLE before AS SELECT * FROM standing;
SELECT billing.run_rollup();
SELECT count(*) AS differences FROM (TABLE before EXCEPT TABLE standing) d;
SELECT tenant, metric, threshold, used, quota FROM billing.get_active_alerts();
SELECT * FROM billing.get_tenants_near_quota();
-- part of it rolled up; a level that has fallen and a quota that was raised are no alerts any more
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1999) \g /dev/null
SELECT FROM billing.record_usage('bolt', 'storage_gb', -0.5) \g /dev/null
SELECT FROM billing.set_quota('bolt', 'llm_tokens', 12500) \g /dev/null
SELECT * FROM billing.get_top_tenants('llm_tokens');
SELECT tenant, metric, threshold, used, quota FROM billing.get_active_alerts();
SELECT tenant, metric, threshold, used, quota FROM billing.get_active_alerts('acme');
-- a plan that has lost its force
UPDATE billing.subscriptions SET status = 'past_due', past_due_since = billing.now() WHERE tenant_id = 'acme';
SELECT billing.get_effective_plan('acme');
CALL travel('7 days');
SELECT billing.get_effective_plan('acme');
-- another period
CALL travel('21 days');
SELECT billing.get_days_remaining('core'), billing.get_current_period('core');
SELECT * FROM billing.get_top_tenants('llm_tokens');
SELECT * FROM billing.get_top_tenants('user_seats');
SELECT tenant, metric, threshold, used, quota FROM billing.get_active_alerts();

CALL attempt($$SELECT billing.get_quota('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.get_quota('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_remaining_quota('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.get_remaining_quota('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_effective_plan('nobody')$$);
CALL attempt($$SELECT billing.get_current_period(NULL)$$);
CALL attempt($$SELECT billing.get_days_remaining('nobody')$$);
CALL attempt($$SELECT billing.get_active_alerts('nobody')$$);
CALL attempt($$SELECT billing.get_top_tenants('nothing')$$);
CALL attempt($$SELECT billing.get_tenants_near_quota(80, 'nothing')$$);
