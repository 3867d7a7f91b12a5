-- A tenant's own prices: in place of its plan's, rated here and brought to Stripe, for it alone.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
-- counters only: the figures of gauges would go out before a change
DELETE FROM billing.price_tiers WHERE metric IN ('storage_gb', 'user_seats');
CREATE VIEW requests AS
    SELECT tenant_id, kind, regexp_replace(subject, '^price_', '') AS subject, method, path, params
      FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending') ORDER BY id;
CREATE VIEW bills AS
    SELECT s.tenant_id, s.plan, i.metric, i.tier, i.quantity, i.unit_amount, i.amount
      FROM billing.subscriptions s JOIN billing.get_upcoming_invoice(s.tenant_id) i ON i.kind <> 'proration'
     WHERE i.metric = 'llm_tokens' OR i.metric IS NULL ORDER BY 1, 3, 4;
SELECT FROM unnest('{acme,beta}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => true),
       billing.create_subscription(t, 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5000000), billing.run_rollup() \g /dev/null
CALL stripe();

-- in force at once, for the one tenant
SELECT billing.set_price('acme', 'llm_tokens', '[{"up_to": 3000000, "unit_amount": 0.00}, {"unit_amount": 0.0005, "flat_amount": null}]');
SELECT billing.set_price('acme', NULL, '7900.0', proration_behavior => 'none');
TABLE bills;
SELECT billing.get_overage('acme', 'llm_tokens'), billing.get_overage_cost('acme', 'llm_tokens');
SELECT plan, metric, terms, cleared_at IS NULL AS in_force FROM billing.tenant_prices ORDER BY id;
-- the same again is no change
SELECT billing.set_price('acme', NULL, '7900');
SELECT action, before -> 'terms' AS before, after -> 'terms' AS after FROM billing.audit_log WHERE action LIKE '%price' ORDER BY id;
-- first the prices, then the subscription
SELECT billing._stripe_plan();
SELECT tenant_id, kind, subject, params - 'recurring' AS params FROM requests;
CREATE PROCEDURE deliver() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM billing._stripe_claim(100, '1 minute');
    PERFORM billing._stripe_settle(o.tenant_id, o.id, o.attempts, 'delivered', 200, answer(o.tenant_id, o.kind, o.subject, o.params), NULL, NULL)
       FROM billing.stripe_outbox o WHERE o.state = 'sending';
END $$;
CALL deliver();
SELECT billing._stripe_plan();
SELECT tenant_id, kind, path, params FROM requests;
CALL stripe();
SELECT tenant_id, stripe_plan, stripe_price_id, prices_due FROM billing.subscriptions ORDER BY 1;
SELECT tenant_id, stripe_price_id FROM billing.subscription_items WHERE metric = 'llm_tokens' ORDER BY 1;
SELECT billing._stripe_plan();
-- its lines on an invoice are known by it
SELECT FROM billing._apply_invoice('acme', '{"id": "in_1", "status": "paid", "currency": "usd", "subtotal": 0, "total": 0, "amount_due": 0, "amount_paid": 0,
    "amount_remaining": 0, "created": 1898856000, "lines": {"has_more": false, "data": [{"id": "il_1", "description": "Line 1", "quantity_decimal": "1",
    "amount": 0, "currency": "usd", "period": {"start": 1896091200, "end": 1898510400},
    "pricing": {"price_details": {"price": "price_pgb_standard_llm_tokens_month_own1"}}}]}}') \g /dev/null
SELECT metric FROM billing.invoice_lines;

-- another takes the first one's place, which is deactivated
SELECT billing.set_price('acme', 'llm_tokens', '0.0009');
CALL stripe();
SELECT id, terms -> 'tiers' AS tiers, cleared_at IS NULL AS in_force, stripe_price_id, stripe_active FROM billing.tenant_prices WHERE metric = 'llm_tokens' ORDER BY 1;
SELECT stripe_price_id FROM billing.subscription_items WHERE tenant_id = 'acme' AND metric = 'llm_tokens';
-- they are of the plan: on another one its prices are in force, and they are again when the tenant returns
SELECT billing.update_subscription('acme', 'enterprise');
CALL stripe();
TABLE bills;
SELECT metric, stripe_active FROM billing.tenant_prices WHERE cleared_at IS NULL ORDER BY metric NULLS FIRST;
-- one for the plan to come
SELECT billing.set_price('acme', 'llm_tokens', '50', 'package', 1000000, 'up', plan => 'free');
SELECT billing._stripe_plan();
SELECT billing.update_subscription('acme', 'standard');
CALL stripe();
TABLE bills;
SELECT metric, stripe_active FROM billing.tenant_prices WHERE cleared_at IS NULL ORDER BY plan, metric NULLS FIRST;

-- cleared: the plan's, of the version the tenant is on
UPDATE billing.plans SET price = 12000 WHERE name = 'standard';
SELECT billing._publish_plan('standard');
SELECT billing.clear_price('acme', NULL);
SELECT billing.clear_price('acme', NULL);
SELECT amount FROM bills WHERE tenant_id = 'acme' AND metric IS NULL;
CALL stripe();
SELECT s.stripe_price_id, s.prices_due, p.since, p.stripe_active
  FROM billing.subscriptions s JOIN billing.plan_prices p USING (stripe_price_id) WHERE tenant_id = 'acme';
SELECT action, before -> 'terms' AS before, after FROM billing.audit_log WHERE action = 'clear_price';
-- before the subscription: it begins with them
SELECT FROM billing.create_customer('gamma', 'Gamma', 'a@a.example', stripe => true) \g /dev/null
SELECT billing.set_price('gamma', NULL, '100', plan => 'standard');
SELECT FROM billing.create_subscription('gamma', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT s.plan_version, s.stripe_price_id, t.terms FROM billing.subscriptions s JOIN billing.tenant_prices t USING (tenant_id, stripe_price_id) WHERE tenant_id = 'gamma';
SELECT count(*) FROM billing.stripe_outbox WHERE tenant_id = 'gamma' AND kind = 'subscription_update';
-- and one without Stripe is rated by them
SELECT FROM billing.create_customer('local', 'Local', 'a@a.example', stripe => false), billing.create_subscription('local', 'standard') \g /dev/null
SELECT billing.set_price('local', NULL, '1');
SELECT amount FROM bills WHERE tenant_id = 'local' AND metric IS NULL;
SELECT billing._stripe_plan();
-- a tenant sees its own
SET ROLE billing_tenant;
SET pg_billing.tenant_id = 'gamma';
SELECT DISTINCT tenant_id FROM billing.tenant_prices;
SELECT amount FROM billing.get_upcoming_invoice('gamma') WHERE kind = 'fee';
RESET ROLE;
CALL attempt($$SELECT billing.set_price('acme', NULL, '1')$$);
RESET pg_billing.tenant_id;

-- what is no price
CALL attempt($$SELECT billing.set_price('acme', 'llm_tokens', '[{"up_to": 5, "unit_amount": 1}]', 'volume')$$);
CREATE FUNCTION refused(price jsonb, model text, size bigint, round text, fee boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN billing._terms_like(CASE WHEN fee THEN '{"amount": 1}' ELSE '{}'::jsonb END, price, model, size, round);
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END $$;
SELECT refused, count(*)
  FROM unnest('{-1,[],"{}",null,NULL,0.0000000000001,"\"1\"",[1]}'::text[]
              || ARRAY['[{"up_to": 5}]', '[{"unit_amount": null}]', '[{"unit_amount": 1, "up_to": 5}]', '[{"unit_amount": 1}, {"unit_amount": 2}]',
                       '[{"unit_amount": 1, "up_to": 2.5}, {"unit_amount": 2}]', '[{"unit_amount": 1, "up_to": 0}, {"unit_amount": 2}]',
                       '[{"unit_amount": 1, "up_to": 5}, {"unit_amount": 2, "up_to": 5}, {"unit_amount": 2}]', '[{"unit_amount": 1, "per": 5}]',
                       '[{"unit_amount": 1, "flat_amount": -5}]', '[{"unit_amount": "1"}]', '[[]]']) p (price),
       (VALUES ('graduated', NULL, NULL), ('volume', NULL, NULL), ('package', 5, 'up')) m (model, size, round),
       unnest('{t,f}'::boolean[]) fee,
       refused(price::jsonb, model, size, round, fee) GROUP BY 1;
SELECT model, size, round, refused('5', model, size, round, false) AS metric, refused('5', model, size, round, true) AS fee,
       refused('[{"unit_amount": 1, "up_to": 5, "flat_amount": 0.5}, {"unit_amount": 0.1, "up_to": null}]', model, size, round, false) AS tiers
  FROM (VALUES ('graduated', NULL, NULL), ('volume', NULL, NULL), ('package', 5, 'up'), ('package', 5, 'down'), ('package', 0, 'up'), ('package', NULL, 'up'),
               ('package', 5, 'off'), ('package', 5, NULL), ('graduated', 5, NULL), ('volume', NULL, 'up'), ('tiered', NULL, NULL), (NULL, NULL, NULL)) m (model, size, round);
DELETE FROM billing.price_tiers WHERE plan = 'free' AND metric = 'api_calls';
SELECT billing._publish_plan('free');
CALL attempt($$SELECT billing.set_price('acme', 'api_calls', '1', plan => 'free')$$);
CALL attempt($$SELECT billing.set_price('acme', 'api_calls', '1', proration_behavior => 'sometimes')$$);
CALL attempt($$SELECT billing.set_price('acme', 'nothing', '1')$$);
CALL attempt($$SELECT billing.set_price('acme', 'api_calls', '1', plan => 'gold')$$);
CALL attempt($$SELECT billing.set_price('nobody', 'api_calls', '1')$$);
SELECT FROM billing.create_customer('delta', 'Delta', 'a@a.example', stripe => false) \g /dev/null
CALL attempt($$SELECT billing.set_price('delta', 'api_calls', '1')$$);
CALL attempt($$SELECT billing.clear_price('delta', 'api_calls')$$);
CALL attempt($$SELECT billing.clear_price('acme', 'nothing')$$);
CALL attempt($$SELECT billing.clear_price('acme', 'api_calls', proration_behavior => 'sometimes')$$);
