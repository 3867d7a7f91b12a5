-- Usage that comes after its period's invoice is final, by each policy: billed once, and shown where it is not.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SET pg_billing.reconcile_settle = 0;
SELECT FROM unnest('{ignored,next,item}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => true) \g /dev/null
SELECT FROM unnest('{ignored,next,item}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
CALL stripe();
-- Stripe's final invoice of the first period: what had been sent by then, a line for each tier
CREATE TABLE billed (tenant text PRIMARY KEY, used numeric);
CREATE FUNCTION invoice(tenant text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', 'in_' || tenant, 'status', 'open', 'currency', 'usd', 'subtotal', 0, 'total', 0, 'amount_due', 0,
        'amount_paid', 0, 'amount_remaining', 0, 'created', 1898510400, 'status_transitions', '{"finalized_at": 1898514000}'::jsonb,
        'parent', jsonb_build_object('subscription_details', jsonb_build_object('subscription',
            (SELECT s.stripe_subscription_id FROM billing.subscriptions s WHERE s.tenant_id = tenant))),
        'lines', jsonb_build_object('has_more', false, 'data', (SELECT jsonb_agg(jsonb_build_object('id', 'il_' || n, 'amount', 0, 'currency', 'usd',
            'quantity_decimal', q::text, 'period', '{"start": 1896091200, "end": 1898510400}'::jsonb,
            'pricing', '{"price_details": {"price": "price_pgb_standard_llm_tokens_month"}}'::jsonb))
            FROM billed b, LATERAL (VALUES (1, least(b.used, 1000000)), (2, greatest(b.used - 1000000, 0))) x (n, q) WHERE b.tenant = invoice.tenant)))
$$;
ALTER FUNCTION answer(text, text, text, jsonb) RENAME TO plain_answer;
CREATE FUNCTION answer(tenant text, kind text, subject text, params jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT CASE kind WHEN 'invoice_fetch' THEN invoice(tenant)
                     WHEN 'invoice_list' THEN jsonb_build_object('has_more', false, 'data', jsonb_build_array(invoice(tenant)))
                     WHEN 'late_item_create' THEN jsonb_build_object('id', 'ii_' || subject)
                     ELSE plain_answer(tenant, kind, subject, params) END
$$;
CREATE TABLE mark AS SELECT clock_timestamp() AS at;
CREATE VIEW late AS
    SELECT tenant_id, metric, period_start, quantity, policy, hour, amount, currency, billed_at IS NOT NULL AS billed FROM billing.late_usage;
CREATE VIEW sent AS
    SELECT o.tenant_id, o.detail ->> 'hour' AS hour, o.params #>> '{payload,value}' AS value FROM billing.stripe_outbox o
     WHERE o.kind = 'meter_event' AND o.detail ? 'hour' AND o.created_at >= (SELECT at FROM mark);
SELECT FROM unnest('{ignored,next,item}'::text[]) t, billing.record_usage(t, 'llm_tokens', 1200000, 'in time', '2030-01-31 12:10+00') \g /dev/null
SELECT billing.run_rollup();
CALL stripe();
INSERT INTO billed SELECT tenant_id, 1200000 FROM billing.subscriptions;
CALL travel('30 days');
SELECT billing.run_rollup();
SELECT current_period_start FROM billing.subscriptions GROUP BY 1;
SELECT billing._apply_invoice(tenant, invoice(tenant)) FROM billed \g /dev/null
SELECT count(*) AS in_time_is_not_late FROM late;
SELECT FROM unnest('{next,item}'::text[]) t, billing.record_usage(t, 'llm_tokens', 50, 'before it', '2030-03-02 12:05+00') \g /dev/null

SHOW pg_billing.late_usage;
-- 2,600 of late usage: the policy of the plan, or else the installation's
UPDATE mark SET at = clock_timestamp();
SELECT FROM unnest('{ignored,next,item}'::text[]) t, billing.record_usage(t, 'llm_tokens', 2600, 'late', '2030-02-27 10:10+00') \g /dev/null
SELECT billing.run_rollup();
CALL attempt($$UPDATE billing.plans SET late_usage = 'carry' WHERE name = 'free'$$);
UPDATE billing.plans SET late_usage = 'next_period' WHERE name = 'standard';
BEGIN;
CALL stripe();
SELECT tenant_id, metric, period_start, quantity, policy, hour, amount, billed FROM late ORDER BY 1;
ROLLBACK;
UPDATE billing.plans SET late_usage = NULL WHERE name = 'standard';
-- one tenant after the other, each under another policy
CREATE PROCEDURE bill(tenant text, policy text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('pg_billing.late_usage', policy, false);
    PERFORM billing._stripe_plan();
    UPDATE billing.stripe_outbox SET not_before = CASE WHEN tenant_id = tenant THEN clock_timestamp() ELSE 'infinity' END
     WHERE state = 'waiting';
    WHILE billing._stripe_plan() > 0 OR EXISTS (SELECT FROM billing.stripe_outbox WHERE state = 'waiting' AND tenant_id = tenant) LOOP
        PERFORM billing._stripe_settle(c.tenant_id, c.id, c.attempt, 'delivered', 200, answer(o.tenant_id, o.kind, o.subject, o.params), NULL, NULL)
           FROM billing._stripe_claim(1000, '1 minute') c JOIN billing.stripe_outbox o ON o.tenant_id = c.tenant_id AND o.id = c.id;
    END LOOP;
END $$;
CALL bill('ignored', 'ignore');
CALL bill('next', 'next_period');
CALL bill('item', 'invoice_item');
SELECT * FROM late ORDER BY 1;
SELECT * FROM sent ORDER BY 1, 2, 3;
SELECT params - 'customer' - 'subscription' AS item FROM billing.stripe_outbox WHERE kind = 'late_item_create';
SELECT count(*) AS refetched FROM billing.stripe_outbox WHERE kind = 'invoice_fetch';
-- here it counts in its own period, and is told of where it is billed
SELECT t, billing.get_current_usage(t, 'llm_tokens', 'previous') AS previous, billing.get_current_usage(t, 'llm_tokens') AS current,
       (SELECT sum(quantity) FROM billing.get_upcoming_invoice(t) WHERE metric = 'llm_tokens') AS to_be_billed
  FROM unnest('{ignored,next,item}'::text[]) t;
-- once: not again when the invoice is fetched again, nor by a reconciliation; and the hour keeps what it carries
SELECT FROM billed, billing.refresh_invoice(tenant, 'in_' || tenant) \g /dev/null
SET pg_billing.late_usage = 'ignore';
UPDATE mark SET at = clock_timestamp();
SELECT FROM billing.record_usage('next', 'llm_tokens', 5) \g /dev/null
SELECT billing.run_rollup();
CALL stripe();
SELECT * FROM sent;
SELECT count(*) FROM late;
SELECT FROM billing.reconcile('previous') \g /dev/null
CALL stripe();
SELECT tenant_id, kind, ledger, sent, invoiced FROM billing.stripe_drift WHERE repaired_at IS NULL AND kind = 'invoice';
SELECT tenant, kind, was, mended, action FROM billing.repair() WHERE kind = 'invoice';
-- more of it, and less: what was used is taken back
SET pg_billing.late_usage = 'invoice_item';
SELECT FROM billing.void_usage('item', 'late', 'a mistake') \g /dev/null
SELECT FROM billing.record_usage('ignored', 'llm_tokens', 400, NULL, '2030-02-27 10:10+00') \g /dev/null
SELECT billing.run_rollup();
CALL stripe();
SELECT tenant_id, quantity, policy, amount, billed FROM late ORDER BY 1, quantity DESC;
SELECT tenant_id, params -> 'amount' AS amount, params ->> 'description' AS description FROM billing.stripe_outbox WHERE kind = 'late_item_create' ORDER BY id;
SELECT FROM billing.reconcile('previous') \g /dev/null
CALL stripe();
SELECT count(*) FROM billing.stripe_drift WHERE repaired_at IS NULL AND kind = 'invoice';

-- an item that Stripe refused is looked for before another is made: one that was made all the same is the one
SELECT FROM billing.record_usage('item', 'llm_tokens', 3000, NULL, '2030-02-27 10:10+00') \g /dev/null
SELECT FROM billing.record_usage('ignored', 'llm_tokens', 2000, NULL, '2030-02-27 10:10+00') \g /dev/null
SELECT billing.run_rollup();
DO $$
DECLARE
    c record;
BEGIN
    WHILE billing._stripe_plan() > 0 OR EXISTS (SELECT FROM billing.stripe_outbox WHERE state = 'waiting') LOOP
        FOR c IN SELECT s.*, o.kind, o.subject FROM billing._stripe_claim(1000, '1 minute') s JOIN billing.stripe_outbox o USING (tenant_id, id) LOOP
            PERFORM billing._stripe_settle(c.tenant_id, c.id, c.attempt, CASE c.kind WHEN 'late_item_create' THEN 'failed' ELSE 'delivered' END,
                        200, answer(c.tenant_id, c.kind, c.subject, c.params), 'refused', NULL);
        END LOOP;
    END LOOP;
END $$;
SELECT tenant_id, subject, error FROM billing.stripe_dead_letter ORDER BY 1;
SELECT billing.retry_failed('late_item_create');
SELECT billing._stripe_plan();
SELECT tenant_id, kind, method, path, params FROM billing.stripe_outbox WHERE state = 'waiting' ORDER BY 1;
SELECT FROM billing._stripe_claim(10, '1 minute') \g /dev/null
SELECT max(id) FILTER (WHERE tenant_id = 'item') AS item, max(id) FILTER (WHERE tenant_id = 'ignored') AS ignored FROM billing.late_usage \gset
CALL settle('item', 'late_item_find', :'item', 'delivered', jsonb_build_object('has_more', false, 'data', jsonb_build_array(
    '{"id": "ii_other", "metadata": {}}'::jsonb, jsonb_build_object('id', 'ii_made', 'metadata', jsonb_build_object('late_usage_id', :'item', 'tenant_id', 'item')))));
CALL settle('ignored', 'late_item_find', :'ignored', 'delivered', '{"has_more": true, "data": [{"id": "ii_another", "metadata": {"late_usage_id": "0"}}]}');
SELECT billing._stripe_plan();
SELECT tenant_id, kind, params ->> 'starting_after' AS starting_after FROM billing.stripe_outbox WHERE state = 'waiting';
SELECT FROM billing._stripe_claim(10, '1 minute') \g /dev/null
CALL settle('ignored', 'late_item_find', :'ignored', 'delivered', '{"has_more": false, "data": []}');
SELECT billing._stripe_plan();
SELECT tenant_id, kind FROM billing.stripe_outbox WHERE state = 'waiting';
CALL stripe();
SELECT tenant_id, quantity, amount, stripe_invoice_item_id = 'ii_made' AS adopted, billed_at IS NOT NULL AS billed FROM billing.late_usage
 WHERE id IN (:item, :ignored) ORDER BY 1;
