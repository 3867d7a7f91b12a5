-- A fee billed yearly beside usage billed monthly: quotas reset each month, the fee is on one invoice a year.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
-- counters only: the figures of gauges would go out before a change
DELETE FROM billing.price_tiers WHERE metric IN ('storage_gb', 'user_seats');
INSERT INTO billing.plans (name, display_name, price, fee_interval_months) VALUES ('yearly', 'Standard, yearly', 99000, 12);
INSERT INTO billing.plan_metrics (plan, metric, allowance, cap) SELECT 'yearly', metric, allowance, cap FROM billing.plan_metrics WHERE plan = 'standard';
INSERT INTO billing.price_tiers SELECT 'yearly', metric, ordinal, up_to, unit_amount FROM billing.price_tiers WHERE plan = 'standard';
SELECT FROM billing.create_customer('local', 'Local', 'a@a.example', stripe => false), billing.create_subscription('local', 'yearly') \g /dev/null
SELECT coalesce(metric, 'fee') AS price, terms -> 'months' AS months FROM billing.plan_prices WHERE plan = 'yearly' ORDER BY metric NULLS FIRST;
CREATE VIEW bills AS
    SELECT s.tenant_id, i.metric, i.amount, i.period_start, i.period_end
      FROM billing.subscriptions s JOIN billing.get_upcoming_invoice(s.tenant_id) i ON i.kind <> 'proration'
     WHERE i.metric IS NULL OR i.metric = 'llm_tokens' AND i.tier > 1 ORDER BY 1, 2;
SELECT FROM billing.record_usage('local', 'llm_tokens', 3000000) \g /dev/null
SELECT current_period_start, current_period_end FROM billing.subscriptions;
TABLE bills;
CALL travel('28 days');
SELECT used, quota, resets_at FROM billing.check_quota('local', 'llm_tokens', 0);
TABLE bills;
-- in the last month of the year the next one is due
CALL travel('320 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT FROM billing.record_usage('local', 'llm_tokens', 1500000) \g /dev/null
TABLE bills;
UPDATE billing.subscriptions SET cancel_at_period_end = true;
TABLE bills;
UPDATE billing.subscriptions SET cancel_at_period_end = false;
CALL travel('17 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT count(*) FROM bills WHERE metric IS NULL;
CALL travel('-365 days');
-- from monthly to yearly and back, within the period
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true), billing.create_subscription('acme', 'yearly', 'send_invoice', 30) \g /dev/null
SELECT FROM billing.create_customer('beta', 'Beta', 'a@a.example', stripe => true), billing.create_subscription('beta', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT tenant_id, params -> 'billing_cycle_anchor_config' AS anchor, params -> 'billing_cycle_anchor' AS at FROM billing.stripe_outbox WHERE kind = 'subscription_create' ORDER BY 1;
SELECT subject, params -> 'recurring' AS recurring FROM billing.stripe_outbox WHERE kind = 'price_create' AND subject ~ 'yearly_(year|llm)' ORDER BY 1;
SELECT billing.update_subscription('beta', 'yearly');
SELECT billing._stripe_plan();
SELECT method, path, params #> '{items,0}' AS fee FROM billing.stripe_outbox WHERE state = 'waiting';
-- Stripe counts the years from the month of its anchor: its periods are taken over, the month's from the item with the shortest
CREATE FUNCTION shown(tenant text, year_begins timestamptz) RETURNS jsonb LANGUAGE sql AS $$
    SELECT a || jsonb_build_object('items', jsonb_build_object('data',
               (SELECT jsonb_agg(CASE WHEN i #>> '{price,id}' = 'price_pgb_yearly_year'
                                 THEN i || jsonb_build_object('current_period_start', extract(epoch FROM year_begins)::bigint,
                                          'current_period_end', extract(epoch FROM year_begins + interval '1 year')::bigint,
                                          'price', '{"id": "price_pgb_yearly_year", "recurring": {"interval": "year"}}'::jsonb)
                                 ELSE i || jsonb_build_object('current_period_start', extract(epoch FROM s.current_period_start)::bigint,
                                          'current_period_end', extract(epoch FROM s.current_period_end)::bigint) END)
                  FROM jsonb_array_elements(a #> '{items,data}') i)))
      FROM billing.subscriptions s, answer(tenant, 'subscription_update', s.id::text, '{}') a WHERE s.tenant_id = tenant
$$;
CALL stripe();
SELECT FROM billing._apply_subscription('beta', shown('beta', '2029-02-28 12:00+00'), true) \g /dev/null
SELECT FROM billing._apply_subscription('acme', shown('acme', '2030-01-31 12:00+00'), true) \g /dev/null
SELECT tenant_id, stripe_plan, anchor, current_period_start, current_period_end, fee_anchor FROM billing.subscriptions WHERE tenant_id <> 'local' ORDER BY 1;
SELECT tenant_id, amount, period_start, period_end FROM bills WHERE tenant_id <> 'local';
SELECT billing.update_subscription('beta', 'standard');
CALL stripe();
SELECT tenant_id, amount, period_start, period_end FROM bills WHERE tenant_id <> 'local';
-- other intervals of the fee there are not
CALL attempt($$UPDATE billing.plans SET fee_interval_months = 6 WHERE name = 'yearly'$$);
CALL attempt($$UPDATE billing.plans SET interval_months = 3 WHERE name = 'yearly'$$);
