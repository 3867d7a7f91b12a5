-- The upcoming invoice after a change of price amid the period: docs/pricing.md works the fees by hand.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM unnest('{acme,bolt,none}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => true),
       billing.create_subscription(t, 'standard') \g /dev/null
CALL stripe();
-- the period is from January 31, 12:00, to February 28, 12:00; six and a half days of it are left
SELECT timestamptz '2030-02-22 00:00:00.5+00' - billing.now() AS wait \gset
CALL travel(:'wait');
SELECT FROM unnest('{acme,bolt,none}'::text[]) t,
       LATERAL (SELECT billing.record_usage(t, 'llm_tokens', 1200000), billing.record_usage(t, 'user_seats', 30)) u \g /dev/null
SELECT billing.run_rollup();
CALL stripe();
CREATE VIEW bills AS
    SELECT s.tenant_id, i.kind, i.metric, i.tier, i.quantity, i.amount, date_trunc('hour', i.period_start) AS starts, date_trunc('hour', i.period_end) AS ends
      FROM billing.subscriptions s, billing.get_upcoming_invoice(s.tenant_id) i
     WHERE i.metric IN ('llm_tokens', 'user_seats') OR i.metric IS NULL ORDER BY 1, 2 DESC, 3, ends, 4, 5, 6;
-- what it will come to, told before, while Stripe does not know of it, and when it has made it
SELECT kind, metric, tier, quantity, amount FROM billing.preview_subscription('acme', 'enterprise') WHERE metric IN ('llm_tokens', 'user_seats') OR metric IS NULL;
SELECT billing.update_subscription('acme', 'enterprise'), billing.update_subscription('bolt', 'enterprise', 'always_invoice'),
       billing.update_subscription('none', 'enterprise', 'none') \g /dev/null
TABLE bills;
CREATE TABLE before AS TABLE bills;
CALL stripe();
SELECT count(*) AS differences FROM ((TABLE before EXCEPT TABLE bills) UNION ALL (TABLE bills EXCEPT TABLE before)) d;
SELECT tenant_id, metric, quantity, proration_behavior FROM billing.price_changes ORDER BY 1, 2;
-- from then on usage is the new price's, and an answer that comes twice changes nothing
SELECT FROM billing._apply_subscription('acme', answer('acme', 'subscription_update', (SELECT id::text FROM billing.subscriptions WHERE tenant_id = 'acme'), '{}'), true) \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 10000500) \g /dev/null
SELECT kind, metric, tier, quantity, amount FROM bills WHERE tenant_id = 'acme';
-- a second change in the same period
SELECT billing.run_rollup();
CALL stripe();
SELECT billing.update_subscription('acme', 'standard') \g /dev/null
CALL stripe();
SELECT kind, metric, tier, quantity, amount FROM bills WHERE tenant_id = 'acme' AND (kind = 'proration' OR metric = 'llm_tokens');
SELECT sum(amount) AS fees FROM bills WHERE tenant_id = 'acme' AND kind = 'proration';
-- the next period knows nothing of it
CALL travel('7 days');
SELECT kind, metric, tier, quantity, amount FROM bills WHERE tenant_id = 'acme' AND metric IS DISTINCT FROM 'user_seats';
-- a tenant sees its own
SET ROLE billing_tenant;
SET pg_billing.tenant_id = 'bolt';
SELECT count(*) FROM billing.price_changes WHERE tenant_id <> 'bolt';
SELECT count(*) > 0 AS shown FROM billing.get_upcoming_invoice('bolt');
RESET ROLE;
