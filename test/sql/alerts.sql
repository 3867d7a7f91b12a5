-- Alerts by rules: of percentages, quantities, costs and projections, of all tenants, a plan's or one; each once.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{acme,bolt,core}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
SELECT FROM billing.create_subscription('core', 'free') \g /dev/null
CREATE PROCEDURE use(tenant text, metric text, quantity numeric) LANGUAGE sql AS $$
    SELECT billing.record_usage(tenant, metric, quantity);
    SELECT billing.run_rollup();
$$;
CREATE VIEW alerts AS
    SELECT tenant_id, metric, period_start::date AS period, kind, threshold, used, quota FROM billing.usage_alerts
     ORDER BY tenant_id, metric, period_start, kind, threshold;

-- the rules there are, and others: they add up
SELECT tenant_id, plan, metric, kind, threshold FROM billing.alert_rules ORDER BY id;
SELECT billing.create_alert('percent', 50, 'llm_tokens', 'acme') AS fifty \gset
SELECT billing.create_alert('percent', 50.00, plan => 'standard') AS standard_fifty \gset
SELECT billing.create_alert('usage', 7, 'user_seats') > 0;
SELECT action, tenant_id, before, after ->> 'kind' AS kind, after ->> 'threshold' AS threshold FROM billing.audit_log WHERE action ~ 'alert' ORDER BY id;
CALL use('acme', 'llm_tokens', 499999);
CALL use('core', 'llm_tokens', 7999);
TABLE alerts;
-- two rules that say the same raise one alert
CALL use('acme', 'llm_tokens', 1);
CALL use('bolt', 'user_seats', 13);
TABLE alerts;
-- nobody twice, whatever happens next
CALL use('acme', 'llm_tokens', 1);
CALL use('bolt', 'user_seats', -13);
CALL use('bolt', 'user_seats', 13);
SELECT count(*) FROM billing.usage_alerts;
-- what is not reached any more is not active, but was raised
SELECT tenant, metric, kind, threshold, used, quota FROM billing.get_active_alerts();
CALL use('bolt', 'user_seats', -7);
SELECT tenant, metric, kind, threshold, used, quota FROM billing.get_active_alerts();
-- a rollup that is rolled back has raised none
BEGIN;
CALL use('core', 'llm_tokens', 1);
SELECT kind, threshold FROM alerts WHERE tenant_id = 'core';
ROLLBACK;
SELECT kind, threshold FROM alerts WHERE tenant_id = 'core';
-- a rule that is gone raises none, and another one only with the next usage
SELECT billing.delete_alert(:standard_fifty);
CALL use('bolt', 'llm_tokens', 600000);
SELECT count(*) FROM billing.usage_alerts WHERE (tenant_id, metric) = ('bolt', 'llm_tokens');
SELECT FROM billing.create_alert('usage', 600000, 'llm_tokens', 'bolt') \g /dev/null
SELECT billing.run_rollup();
SELECT count(*) FROM billing.usage_alerts WHERE (tenant_id, metric) = ('bolt', 'llm_tokens');
CALL use('bolt', 'llm_tokens', 1);
SELECT kind, threshold, used, quota FROM alerts WHERE (tenant_id, metric) = ('bolt', 'llm_tokens');

-- costs, as the upcoming invoice has them: 9900 for the next period, and 0.1 for each call from the 100001st on
SELECT FROM billing.create_alert('cost', 10000, tenant_id => 'acme') \g /dev/null
SELECT FROM billing.create_alert('cost', 100, 'api_calls') \g /dev/null
CALL use('acme', 'api_calls', 100989);
SELECT sum(amount) FROM billing.get_upcoming_invoice('acme');
SELECT kind, metric, threshold, used, quota FROM alerts WHERE kind = 'cost';
CALL use('acme', 'api_calls', 1);
SELECT kind, metric, threshold, used, quota FROM alerts WHERE kind = 'cost';
CALL use('acme', 'llm_tokens', 500000);
SELECT kind, metric, threshold, used, quota FROM alerts WHERE kind = 'cost';
CALL use('acme', 'api_calls', 2000);
SELECT kind, metric, threshold, used, quota FROM alerts WHERE kind = 'cost';
SELECT tenant, metric, kind, threshold, used, quota FROM billing.get_active_alerts('acme') WHERE kind = 'cost';
-- of whom does not use what it is about, nothing is computed: a price that cannot be rated does no harm, and little otherwise
UPDATE billing.plan_prices SET terms = terms || '{"tiers": "none"}' WHERE plan = 'standard' AND metric = 'api_calls';
CALL use('bolt', 'llm_tokens', 1);
CALL use('bolt', 'api_calls', 150000);
SELECT used FROM billing.usage_quotas WHERE tenant_id = 'bolt' AND metric = 'api_calls';
UPDATE billing.plan_prices SET terms = t.terms FROM billing._plan_terms('standard') t WHERE plan = 'standard' AND t.metric = 'api_calls' AND plan_prices.metric = 'api_calls';
CALL use('bolt', 'api_calls', 1);
SELECT metric, threshold, used FROM alerts WHERE kind = 'cost' AND tenant_id = 'bolt';

-- projections: from a tenth of the period on, which are 2.8 days
SELECT FROM billing.create_alert('projected_percent', 100) \g /dev/null
SELECT FROM billing.create_alert('projected_usage', 40000, 'agent_executions') \g /dev/null
SELECT FROM billing.create_alert('projected_cost', 100000, tenant_id => 'bolt') \g /dev/null
CALL use('core', 'agent_executions', 90);
CALL use('bolt', 'agent_executions', 3500);
SELECT tenant_id, kind, metric, threshold, used, quota FROM alerts WHERE kind LIKE 'projected%';
CALL travel('67 hours');
CALL use('core', 'agent_executions', 1);
CALL use('bolt', 'agent_executions', 1);
SELECT tenant_id, kind, metric, threshold, round(used, -3) AS used, quota FROM alerts WHERE kind LIKE 'projected%';
SELECT round(billing.get_projected_usage('core', 'agent_executions'), -3) AS usage, round(billing.get_projected_cost('bolt'), -3) AS cost;
CALL use('core', 'agent_executions', 1);
SELECT count(*) FROM billing.usage_alerts WHERE kind LIKE 'projected%';
-- a session that is bound to a tenant rolls up, and has alerts raised, for all
SELECT FROM billing.record_usage('core', 'api_calls', 900) \g /dev/null
SET pg_billing.tenant_id = 'acme';
SELECT billing.run_rollup();
RESET pg_billing.tenant_id;
SELECT kind, threshold FROM alerts WHERE (tenant_id, metric) = ('core', 'api_calls');

-- the next period has its own; a gauge's level that fell before and rises again in it, too
CALL travel('28 days');
CALL use('bolt', 'user_seats', -6);
CALL use('core', 'agent_executions', 1);
SELECT tenant_id, metric, kind, threshold, used FROM alerts WHERE period > '2030-02-01';
CALL use('bolt', 'user_seats', 8);
SELECT tenant_id, metric, kind, threshold, used FROM alerts WHERE period > '2030-02-01';
CALL use('bolt', 'user_seats', -8);
CALL use('bolt', 'user_seats', 8);
SELECT count(*) FROM alerts WHERE period > '2030-02-01';
SELECT tenant, metric, kind, threshold, used, quota FROM billing.get_active_alerts();

-- what is refused
CALL attempt($$SELECT billing.create_alert('percent', 80)$$);
CALL attempt($$SELECT billing.create_alert('percent', 50, 'llm_tokens', 'acme')$$);
CALL attempt($$SELECT billing.create_alert('percent', 0)$$);
CALL attempt($$SELECT billing.create_alert('percent', 'NaN')$$);
CALL attempt($$SELECT billing.create_alert('percent', NULL)$$);
CALL attempt($$SELECT billing.create_alert('cost', 'Infinity')$$);
CALL attempt($$SELECT billing.create_alert('spend', 1)$$);
CALL attempt($$SELECT billing.create_alert('usage', 1)$$);
CALL attempt($$SELECT billing.create_alert('projected_usage', 1)$$);
CALL attempt($$SELECT billing.create_alert('percent', 1, 'nothing')$$);
CALL attempt($$SELECT billing.create_alert('percent', 1, tenant_id => 'nobody')$$);
CALL attempt($$SELECT billing.create_alert('percent', 1, plan => 'nothing')$$);
CALL attempt($$SELECT billing.delete_alert(0)$$);
CALL attempt($$SELECT billing.delete_alert(id) FROM billing.alert_rules WHERE threshold = 100 AND kind = 'percent'$$);
-- what was deleted stays so when the tables are installed again
SELECT billing.delete_alert(id) FROM billing.alert_rules WHERE kind = 'percent' AND threshold = 120;
SELECT FROM billing.install() \g /dev/null
SELECT tenant_id, kind, threshold FROM billing.alert_rules WHERE kind = 'percent' ORDER BY id;
SELECT action, before ->> 'threshold' AS threshold, after FROM billing.audit_log WHERE action = 'delete_alert' ORDER BY id;
