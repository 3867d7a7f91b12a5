-- A tenant without Stripe comes to it: from this hour on, in UTC, and nothing of before is billed there.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM unnest('{acme,bolt,idle,ends}'::text[]) t, billing.create_customer(t, t, 'a@a.example', 'Asia/Kolkata', stripe => false) \g /dev/null
SELECT FROM billing.create_customer('there', 'There', 't@t.example', stripe => true) \g /dev/null
SELECT FROM unnest('{acme,ends}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
SELECT FROM billing.create_subscription('bolt', 'standard', trial_days => 14) \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5000) \g /dev/null
CALL stripe();
SELECT count(*) FROM billing.stripe_outbox WHERE tenant_id <> '';
CALL travel('3 days 90 minutes');

CALL attempt($$SELECT billing.connect_stripe('nobody')$$);
CALL attempt($$SELECT billing.connect_stripe('there')$$);
SELECT billing.cancel_subscription('ends');
CALL attempt($$SELECT billing.connect_stripe('ends')$$);
SET pg_billing.tenant_id = 'acme';
CALL attempt($$SELECT billing.connect_stripe('bolt')$$);
RESET pg_billing.tenant_id;
SELECT billing.connect_stripe(t) FROM unnest('{acme,bolt,idle}'::text[]) t;
CALL attempt($$SELECT billing.connect_stripe('acme')$$);
SELECT tenant_id, status, timezone, anchor, current_period_start, current_period_end FROM billing.subscriptions ORDER BY 1;
-- quotas stay in force; what was used before is a period of its own, which Stripe never hears of
SELECT status, used FROM billing.try_consume('acme', 'llm_tokens', 70);
SELECT billing.get_current_usage('acme', 'llm_tokens', 'previous');
CALL stripe();
SELECT tenant_id, params -> 'backdate_start_date' AS backdated, params -> 'billing_cycle_anchor_config' AS anchor, params -> 'trial_end' AS trial
  FROM billing.stripe_outbox WHERE kind = 'subscription_create' ORDER BY 1;
SELECT tenant_id, stripe_customer_id FROM billing.billing_customers WHERE stripe ORDER BY 1;
SELECT billing.run_rollup();
CALL stripe();
SELECT period_start, quantity, submitted FROM billing.usage_aggregates ORDER BY 1;
SELECT action, before ->> 'stripe' AS before, after ->> 'stripe' AS after, after ->> 'status' AS status
  FROM billing.audit_log WHERE tenant_id = 'acme' ORDER BY id;
