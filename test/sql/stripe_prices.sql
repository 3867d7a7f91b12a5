-- New prices at Stripe: another price takes over the lookup key, the old one is deactivated and goes on billing.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
-- counters only: the figures of gauges would go out before a change
DELETE FROM billing.price_tiers WHERE metric IN ('storage_gb', 'user_seats');
CREATE VIEW requests AS
    SELECT tenant_id, kind, subject, method, path, params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending') ORDER BY id;
CREATE PROCEDURE send() LANGUAGE sql AS $$ SELECT count(*) FROM billing._stripe_claim(100, '1 minute') $$;
CREATE PROCEDURE deliver() LANGUAGE sql AS $$
    SELECT billing._stripe_settle(o.tenant_id, o.id, o.attempts, 'delivered', 200,
                                  answer(o.tenant_id, o.kind, o.subject, o.params), NULL, NULL)
      FROM billing.stripe_outbox o WHERE o.state = 'sending'
$$;
-- A price as Stripe shows it, made by these parameters.
CREATE FUNCTION shown(price_id text, params jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT '{"object": "price", "active": true, "tiers_mode": null, "transform_quantity": null, "unit_amount": 1, "livemode": false}' || params
           || jsonb_build_object('id', price_id, 'recurring', '{"meter": null, "trial_period_days": null}' || (params -> 'recurring'))
           || CASE WHEN params ? 'tiers' THEN jsonb_build_object('unit_amount_decimal', NULL, 'tiers', (
                  SELECT jsonb_agg(CASE t ->> 'up_to' WHEN 'inf' THEN t || '{"up_to": null, "flat_amount": null}'
                                        ELSE t || jsonb_build_object('up_to', (t ->> 'up_to')::bigint) END)
                    FROM jsonb_array_elements(params -> 'tiers') t)) ELSE '{}' END
$$;
-- The list that Stripe shows of a price we know.
CREATE FUNCTION there(price_id text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('data', jsonb_build_array(shown(price_id, billing._stripe_price_params(p.plan, p.metric, p.terms))))
      FROM billing.plan_prices p WHERE p.stripe_price_id = price_id
$$;
SELECT FROM unnest('{acme,slow}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT tenant_id, plan, plan_version, stripe_plan, stripe_price_id, prices_due FROM billing.subscriptions;

-- a new fee, and a new price of a metric; one who subscribed just before gets what he was shown
SELECT FROM billing.create_subscription('slow', 'standard', 'send_invoice', 30) \g /dev/null
UPDATE billing.plans SET price = 12000 WHERE name = 'standard';
UPDATE billing.price_tiers SET unit_amount = 0.002 WHERE plan = 'standard' AND metric = 'llm_tokens' AND ordinal = 2;
SELECT billing._stripe_plan();
SELECT tenant_id, kind, subject, params - 'items' - 'metadata' - 'backdate_start_date' - 'billing_cycle_anchor_config' AS params FROM requests;
CALL send();
-- the lookup key still names the old price, whose terms are others: it is not adopted
CALL settle('', 'price_find', 'pgb_standard_month', 'delivered', there('price_pgb_standard_month'));
CALL settle('', 'price_find', 'pgb_standard_llm_tokens_month', 'delivered', '{"data": []}');
SELECT subject, params ->> 'unit_amount_decimal' AS amount, params ->> 'lookup_key' AS key, params ->> 'transfer_lookup_key' AS transfer
  FROM requests WHERE kind = 'price_create';
SELECT detail - 'price' AS detail FROM billing.stripe_outbox WHERE kind = 'price_create' AND state = 'waiting' ORDER BY id;
CALL send();
CALL settle('', 'price_create', 'pgb_standard_month', 'delivered', '{"id": "price_new"}');
CALL settle('', 'price_create', 'pgb_standard_llm_tokens_month', 'delivered', '{"id": "price_new_tokens"}');
-- as long as one is to get them, the old ones stay active
SELECT billing._stripe_plan();
SELECT id FROM billing.subscriptions WHERE tenant_id = 'slow' \gset
SELECT p.stripe_price_id, p.stripe_active FROM billing.plan_prices p WHERE p.plan = 'standard' AND p.until = 2 ORDER BY 1;
CALL deliver();
SELECT billing._stripe_plan();
SELECT kind, subject, method, path, params FROM requests;
CALL stripe();
SELECT since, until, stripe_price_id, stripe_active FROM billing.plan_prices
 WHERE plan = 'standard' AND (metric IS NULL OR metric = 'llm_tokens') ORDER BY metric NULLS FIRST, since;
-- who has them is not touched
SELECT count(*) FROM billing.stripe_outbox WHERE kind = 'subscription_update';
SELECT tenant_id, plan_version, stripe_price_id FROM billing.subscriptions ORDER BY 1;

-- moved when asked: only the items whose price is another
SELECT billing.update_subscription('acme', 'standard', 'none');
SELECT billing._stripe_plan();
SELECT kind, path, params FROM requests;
CALL stripe();
SELECT plan_version, stripe_price_id, prices_due FROM billing.subscriptions WHERE tenant_id = 'acme';
SELECT metric, stripe_price_id FROM billing.subscription_items WHERE tenant_id = 'acme' ORDER BY 1;
SELECT metric, unit_amount FROM billing.get_upcoming_invoice('acme') WHERE tier = 2 AND metric = 'llm_tokens' OR metric IS NULL;
-- a plan is put at Stripe to a version that was: what is known of it is taken over
SELECT billing.update_subscription('acme', 'enterprise');
CALL stripe();
SELECT billing._apply_subscription('acme', answer('acme', 'subscription_update', s.id::text,
           jsonb_build_object('items', jsonb_build_array(jsonb_build_object('id', s.stripe_item_id, 'price', 'price_pgb_standard_month')))), true)
  FROM billing.subscriptions s WHERE tenant_id = 'acme';
SELECT plan, plan_version, stripe_plan, stripe_price_id, prices_due FROM billing.subscriptions WHERE tenant_id = 'acme';
-- its metered items follow, for which an old price is activated once more
SELECT billing._stripe_plan();
SELECT kind, subject, params FROM requests;
CALL stripe();
SELECT metric, stripe_price_id FROM billing.subscription_items WHERE tenant_id = 'acme' ORDER BY 1;
SELECT count(*) FILTER (WHERE stripe_active), count(*) FROM billing.plan_prices WHERE until = 2;
SELECT billing._stripe_plan();

-- a wish that is taken back before Stripe has heard of it leaves nothing to do
SELECT billing.update_subscription('acme', 'free');
SELECT billing._apply_subscription('acme', answer('acme', 'subscription_update', id::text, '{}'), false) FROM billing.subscriptions WHERE tenant_id = 'acme';
SELECT plan, prices_due FROM billing.subscriptions WHERE tenant_id = 'acme';
UPDATE billing.subscriptions SET plan = 'standard', plan_version = 1 WHERE tenant_id = 'acme';
SELECT billing._stripe_plan();
SELECT plan, prices_due FROM billing.subscriptions WHERE tenant_id = 'acme';

-- a price that is there is ours if all that it bills by is the same
INSERT INTO billing.plans (name, display_name, price, interval_months, stripe_product_id) VALUES ('studio', 'Studio', 100.5, 3, 'pgb_plan_studio');
INSERT INTO billing.plan_metrics (plan, metric, cap, price_model, package_size, package_round) VALUES
    ('studio', 'llm_tokens', 'none', 'volume', NULL, NULL), ('studio', 'api_calls', 'none', 'graduated', NULL, NULL),
    ('studio', 'agent_executions', 'none', 'package', 1000, 'up');
INSERT INTO billing.price_tiers VALUES ('studio', 'llm_tokens', 1, 100, 0.0000001, 50), ('studio', 'llm_tokens', 2, NULL, 2.50, NULL),
    ('studio', 'api_calls', 1, NULL, 0.10, NULL), ('studio', 'agent_executions', 1, NULL, 300, NULL);
SELECT billing._stripe_plan();
CALL send();
CREATE VIEW found AS
    SELECT o.subject, shown('price_found_' || o.subject, billing._stripe_price_params(p.plan, p.metric, p.terms)) AS price
      FROM billing.stripe_outbox o JOIN billing.plan_prices p ON p.id = (o.detail ->> 'price')::bigint
     WHERE o.kind = 'price_find' AND o.state = 'sending';
SELECT subject, billing._stripe_price_terms(price) FROM found ORDER BY 1;
SELECT f.subject, c AS other, billing._stripe_price_terms(f.price || c) = billing._stripe_price_terms(f.price) AS same
  FROM found f,
       unnest(ARRAY['{"nickname": "?"}', '{"currency": "eur"}', '{"product": "pgb_plan_free"}', '{"unit_amount_decimal": "9"}',
                    '{"recurring": {"interval": "year", "interval_count": 3, "usage_type": "metered", "meter": "mtr_llm_tokens"}}',
                    '{"tiers": [{"up_to": 100, "unit_amount_decimal": "0.0000001"}, {"up_to": null, "unit_amount_decimal": "2.5"}]}',
                    '{"tiers_mode": "graduated"}', '{"transform_quantity": {"divide_by": 1000, "round": "down"}}']::jsonb[]) c
 WHERE f.subject LIKE '%llm%' OR c ? 'transform_quantity' AND f.subject LIKE '%agent%' ORDER BY 1, 2;
SELECT billing._stripe_settle('', o.id, o.attempts, 'delivered', 200, jsonb_build_object('data', jsonb_build_array(f.price)), NULL, NULL)
  FROM found f JOIN billing.stripe_outbox o ON o.kind = 'price_find' AND o.subject = f.subject AND o.state = 'sending' \g /dev/null
SELECT coalesce(metric, 'fee') AS price, stripe_price_id FROM billing.plan_prices WHERE plan = 'studio' ORDER BY metric NULLS FIRST;
SELECT billing._stripe_plan();
-- one that another row of ours is, is not taken for a second
UPDATE billing.plans SET price = 99 WHERE name = 'studio';
CALL stripe();
UPDATE billing.plans SET price = 100.5 WHERE name = 'studio';
SELECT billing._stripe_plan();
CALL send();
CALL settle('', 'price_find', 'pgb_studio_3months', 'delivered', there('price_found_pgb_studio_3months'));
SELECT kind, subject FROM requests;

-- a plan whose price makes no sense stays at Stripe what it was
UPDATE billing.price_tiers SET up_to = 3 WHERE plan = 'studio' AND metric = 'llm_tokens' AND ordinal = 2;
SELECT max(version) FROM billing.plan_versions WHERE plan = 'studio';
CALL stripe();
SELECT max(version) FROM billing.plan_versions WHERE plan = 'studio';
