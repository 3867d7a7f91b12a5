-- create_subscription and get_subscription: quotas at once, one live subscription, periods that move on.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('local', 'Local', 'l@l.example', 'Europe/Berlin', stripe => false) \g /dev/null
SELECT FROM billing.create_customer('stripe', 'Stripe', 's@s.example', 'Europe/Berlin', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('third', 'Third', 't@t.example', stripe => false) \g /dev/null

SELECT * FROM billing.get_subscription('local');
SELECT billing.create_subscription('local', 'standard') > 0 AS created;
SELECT plan, status, current_period_start, current_period_end, cancel_at_period_end, stripe_subscription_id,
       created_at >= timestamptz '2030-01-31 12:30+00' AS created_now
  FROM billing.get_subscription('local');
-- its period runs in its own time zone, one billed through Stripe in UTC; that one waits for Stripe
SELECT billing.create_subscription('stripe', 'free', 'send_invoice', 30) > 0 AS created;
SELECT tenant_id, plan, status, timezone, anchor, current_period_start, current_period_end, collection_method, days_until_due
  FROM billing.subscriptions ORDER BY tenant_id;
SELECT tenant_id, metric, period_start, period_end, quota, cap, grace, used
  FROM billing.usage_quotas ORDER BY tenant_id, metric;

CALL attempt($$SELECT billing.create_subscription('local', 'free')$$);
CALL attempt($$SELECT billing.create_subscription('nobody', 'free')$$);
CALL attempt($$SELECT billing.create_subscription(NULL, 'free')$$);
CALL attempt($$SELECT billing.create_subscription('third', 'platinum')$$);
CALL attempt($$SELECT billing.create_subscription('third', NULL)$$);
CALL attempt($$SELECT billing.create_subscription('third', 'free', 'barter')$$);
CALL attempt($$SELECT billing.create_subscription('third', 'free', NULL)$$);
CALL attempt($$SELECT billing.create_subscription('third', 'free', 'send_invoice')$$);
CALL attempt($$SELECT billing.create_subscription('third', 'free', 'send_invoice', 366)$$);
CALL attempt($$SELECT billing.create_subscription('third', 'free', 'charge_automatically', 30)$$);
SET pg_billing.tenant_id = 'local';
CALL attempt($$SELECT billing.create_subscription('third', 'free')$$);
RESET pg_billing.tenant_id;
SELECT count(*) FROM billing.subscriptions;

-- a canceled one is history; the next may begin
UPDATE billing.subscriptions SET status = 'canceled' WHERE tenant_id = 'local';
SELECT * FROM billing.get_subscription('local');
SELECT billing.create_subscription('local', 'enterprise') > 0 AS created;
SELECT plan, status FROM billing.get_subscription('local');
SELECT quota, cap FROM billing.usage_quotas WHERE tenant_id = 'local' AND metric = 'api_calls';

-- time goes by: the rollup moves each on from its anchor, over several periods at once if need be
CALL travel('28 days');
SELECT billing.run_rollup();
SELECT tenant_id, current_period_start, current_period_end FROM billing.subscriptions WHERE status <> 'canceled' ORDER BY 1;
CALL travel('95 days');
SELECT billing.run_rollup();
SELECT tenant_id, current_period_start, current_period_end FROM billing.subscriptions WHERE status <> 'canceled' ORDER BY 1;
SELECT period_start, period_end FROM billing.usage_quotas WHERE tenant_id = 'stripe' AND metric = 'api_calls' ORDER BY 1;
SELECT current_period_start FROM billing.subscriptions WHERE status = 'canceled';
