-- Mode invoice_items: what a billing period comes to becomes an item of its invoice, rated here.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE PROCEDURE travel_to(at timestamptz) LANGUAGE sql AS $$ CALL travel(at - billing.now()) $$;
ALTER FUNCTION answer(text, text, text, jsonb) RENAME TO plain_answer;
CREATE FUNCTION answer(tenant text, kind text, subject text, params jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT CASE kind WHEN 'late_item_create' THEN jsonb_build_object('id', 'ii_' || subject, 'invoice', params -> 'invoice',
                              'parent', CASE WHEN params ? 'subscription' THEN jsonb_build_object('subscription_details',
                                             jsonb_build_object('subscription', params -> 'subscription')) END)
                     WHEN 'item_invoice_create' THEN plain_answer(tenant, 'invoice_fetch', 'in_of_' || tenant, params)
                          || jsonb_build_object('lines', jsonb_build_object('has_more', false, 'data', (
                                 SELECT jsonb_agg(jsonb_build_object('id', 'il_' || l.id, 'amount', l.amount, 'currency', l.currency, 'quantity', 1,
                                            'parent', jsonb_build_object('invoice_item_details', jsonb_build_object('invoice_item', l.stripe_invoice_item_id))))
                                   FROM billing.late_usage l WHERE l.tenant_id = tenant AND l.unattached)))
                     ELSE plain_answer(tenant, kind, subject, params) END
$$;
-- without decimals, and of levels, which go on with the clock, without the last digit
CREATE VIEW items AS
    SELECT o.tenant_id, regexp_replace(o.params ->> 'description', '\.\d+', '') AS description, round((o.params ->> 'amount')::numeric, CASE WHEN o.params ->> 'description' ~ 'Storage' THEN -1 ELSE 0 END) AS amount, o.params ->> 'invoice' AS invoice, o.params ? 'subscription' AS of_subscription
      FROM billing.stripe_outbox o WHERE o.kind = 'late_item_create' ORDER BY o.tenant_id, o.id;
-- a draft at Stripe that ends a period
CREATE PROCEDURE draft(tenant text, status text DEFAULT 'draft') LANGUAGE sql AS $$
    SELECT billing._apply_invoice(tenant, plain_answer(tenant, 'invoice_fetch', 'in_' || tenant, '{}')
               || jsonb_build_object('status', status, 'created', extract(epoch FROM billing.now())::bigint, 'parent',
                      jsonb_build_object('subscription_details', jsonb_build_object('subscription',
                          (SELECT s.stripe_subscription_id FROM billing.subscriptions s WHERE s.tenant_id = tenant ORDER BY s.id DESC LIMIT 1)))))
$$;

UPDATE billing.metrics SET export = 'invoice_items' WHERE name IN ('api_calls', 'storage_gb');
SELECT plan, metric, ordinal, up_to, unit_amount FROM billing.price_tiers WHERE metric IN ('api_calls', 'storage_gb') ORDER BY 1, 2, 3;
SELECT FROM unnest('{acme,bolt,core,dash}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => true) \g /dev/null
SELECT FROM unnest('{acme,bolt,core,dash}'::text[]) t, billing.create_subscription(t, 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
-- neither meter nor price nor product of it at Stripe, but the feature
SELECT kind, subject FROM billing.stripe_outbox WHERE subject ~ 'api_calls|storage_gb' ORDER BY 1, 2;
SELECT kind, jsonb_array_length(params -> 'items') AS items FROM billing.stripe_outbox WHERE kind = 'subscription_create' AND tenant_id = 'acme';
SELECT tenant_id, metric, period_start, period_end, terms -> 'model' AS model, due_at FROM billing.item_periods WHERE tenant_id = 'acme' ORDER BY 2;
CALL attempt($$UPDATE billing.metrics SET export = 'hourly_total' WHERE name = 'api_calls'$$);

SELECT FROM unnest('{acme,bolt,core,dash}'::text[]) t, billing.record_usage(t, 'api_calls', 150000) \g /dev/null
SELECT FROM unnest('{acme,bolt,core,dash}'::text[]) t, billing.record_usage(t, 'storage_gb', 300) \g /dev/null
SELECT billing.run_rollup() > 0 AS rolled_up;
SELECT metric, quantity, amount FROM billing.get_upcoming_invoice('acme') WHERE metric = 'api_calls';

-- a change of plan bills what was used before, at the price of then, and what comes later at the new one
CALL travel_to('2030-02-14 12:10+00');
SELECT billing.update_subscription('bolt', 'enterprise');
SELECT billing.update_subscription('core', 'enterprise', 'none');
SELECT FROM unnest('{bolt,core}'::text[]) t, billing.record_usage(t, 'api_calls', 1000) \g /dev/null
-- the item first
SELECT billing._stripe_plan() > 0 AS planned;
SELECT DISTINCT kind FROM billing.stripe_outbox WHERE tenant_id = 'bolt' AND state = 'waiting';
CALL stripe();
SELECT * FROM items;
SELECT metric, trunc(quantity) AS quantity, round(amount, -1) AS amount, kind FROM billing.get_upcoming_invoice('bolt') WHERE metric IN ('api_calls', 'storage_gb');
SELECT tenant_id, metric, terms #> '{tiers,0,unit_amount}' AS price, trunc(quantity) AS quantity FROM billing.price_changes
 WHERE metric IN ('api_calls', 'storage_gb') ORDER BY 1, 2;
-- an end at once, and a pause
SELECT FROM billing.record_usage('dash', 'api_calls', 7) \g /dev/null
SELECT billing.cancel_subscription('dash', false);
SELECT billing._stripe_plan() > 0 AS planned;
SELECT DISTINCT kind FROM billing.stripe_outbox WHERE tenant_id = 'dash' AND state = 'waiting';
CALL stripe();
SELECT kind FROM billing.stripe_outbox WHERE tenant_id = 'dash' AND kind IN ('late_item_create', 'subscription_cancel') ORDER BY id;
SELECT * FROM items WHERE tenant_id = 'dash';

-- the end of the period: half an hour later, on the draft where it is known
CALL travel_to('2030-02-28 12:05+00');
CALL draft('acme');
SELECT FROM billing.record_usage('acme', 'api_calls', 11, NULL, '2030-02-28 11:59+00') \g /dev/null
CALL stripe();
SELECT count(*) AS before FROM items WHERE tenant_id = 'acme';
CALL travel_to('2030-02-28 12:31+00');
CALL stripe();
SELECT * FROM items WHERE tenant_id = 'acme';
SELECT * FROM items WHERE tenant_id IN ('bolt', 'core');
SELECT tenant_id, metric, period_start, due_at FROM billing.item_periods WHERE tenant_id IN ('acme', 'dash') ORDER BY 1, 2, 3;
-- nothing twice; what comes late is another item, of the next invoice once that one is final
CALL stripe();
SELECT count(*) FROM items;
CALL draft('acme', 'open');
SELECT FROM billing.record_usage('acme', 'api_calls', 100, NULL, '2030-02-28 11:00+00') \g /dev/null
SELECT billing.run_rollup() > 0 AS rolled_up;
CALL stripe();
SELECT * FROM items WHERE tenant_id = 'acme' AND invoice IS NULL;
SELECT quantity, amount, billed_at IS NOT NULL AS billed FROM billing.late_usage WHERE tenant_id = 'acme' AND metric = 'api_calls' ORDER BY id;

-- the draft became final just before: the item goes on the next invoice
CALL draft('acme');
SELECT FROM billing.record_usage('acme', 'api_calls', 200, NULL, '2030-02-28 11:00+00') \g /dev/null
SELECT billing.run_rollup() > 0 AS rolled_up;
SELECT billing._stripe_plan() > 0 AS planned;
SELECT id AS late FROM billing.late_usage WHERE billed_at IS NULL \gset
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL settle('acme', 'late_item_create', :'late', 'failed', '{"error": {"code": "invoice_not_editable", "message": "This invoice is no longer editable"}}', 400);
SELECT billing._stripe_plan();
SELECT kind, subject FROM billing.stripe_outbox WHERE tenant_id = 'acme' AND state = 'waiting';
CALL stripe();
SELECT amount, invoice, of_subscription FROM items WHERE tenant_id = 'acme' AND amount = 20;
SELECT count(*) FROM billing.stripe_dead_letter;

-- an end with the period: no invoice of the subscription is to come, so its items get one, which tells what they are for
SELECT billing.cancel_subscription('core');
SELECT FROM billing.record_usage('core', 'api_calls', 2000000) \g /dev/null
CALL stripe();
CALL travel_to('2030-03-31 12:10+00');
SELECT billing.run_rollup() > 0 AS rolled_up;
UPDATE billing.subscriptions SET stripe_status = 'canceled' WHERE tenant_id = 'core';
CALL travel_to('2030-03-31 12:40+00');
CALL stripe();
SELECT description, invoice, of_subscription FROM items WHERE tenant_id = 'core';
SELECT params - 'customer' AS invoice FROM billing.stripe_outbox WHERE kind = 'item_invoice_create';
SELECT unattached, stripe_invoice_id FROM billing.late_usage WHERE tenant_id = 'core' ORDER BY id DESC LIMIT 1;
SELECT metric, quantity, amount = (SELECT sum(amount) FROM billing.late_usage l WHERE l.stripe_invoice_id = 'in_of_core' AND l.metric = i.metric) AS as_rated
  FROM billing.get_invoice_lines('core', 'in_of_core') i ORDER BY 1;
CALL stripe();
SELECT count(*) FROM billing.stripe_outbox WHERE kind = 'item_invoice_create';

-- a tenant's own price; a pause bills nothing, and what it has cut short stays closed
CALL travel_to('2030-04-05 12:10+00');
SELECT billing.set_price('acme', 'api_calls', '2');
CALL stripe();
SELECT metric, quantity, terms #> '{tiers,0,unit_amount}' AS price, next_terms #> '{tiers,0,unit_amount}' AS next FROM billing.price_changes WHERE tenant_id = 'acme';
SELECT FROM billing.record_usage('acme', 'api_calls', 3) \g /dev/null
SELECT billing.pause_subscription('acme');
CALL stripe();
SELECT FROM billing.record_usage('acme', 'api_calls', 500000) \g /dev/null
-- resumed here in the hour before Stripe does: that one's period counts
CALL travel_to('2030-04-10 11:50+00');
SELECT billing.resume_subscription('acme');
SELECT billing._stripe_plan() > 0 AS planned;
CALL travel_to('2030-04-10 12:10+00');
CALL stripe();
SELECT billing.update_subscription('acme', 'enterprise');
CALL stripe();
SELECT metric, period_start, terms #> '{tiers,0,unit_amount}' AS price FROM billing.item_periods WHERE tenant_id = 'acme' AND period_end > billing.now() ORDER BY 1, 2;
SELECT quantity, amount FROM billing.late_usage WHERE tenant_id = 'acme' AND metric = 'api_calls' AND period_start >= '2030-03-31 12:00+00' ORDER BY id;
-- nor is a trial billed
SELECT FROM billing.create_customer('eve', 'Eve', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('eve', 'standard', 'send_invoice', 30, trial_days => 3) \g /dev/null
CALL stripe();
SELECT FROM billing.record_usage('eve', 'api_calls', 900000) \g /dev/null
CALL travel_to('2030-04-14 12:10+00');
CALL stripe();
SELECT metric, period_start FROM billing.item_periods WHERE tenant_id = 'eve' ORDER BY 1;
SELECT count(*) AS of_the_trial FROM billing.late_usage WHERE tenant_id = 'eve';
