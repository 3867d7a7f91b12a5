-- The upcoming invoice beside Stripe's preview: line by line, and why lines differ.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('cash', 'Cash', 'c@c.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('cash', 'standard') \g /dev/null
CALL attempt($$SELECT billing.compare_upcoming_invoice('acme')$$);
CALL attempt($$SELECT billing.compare_upcoming_invoice('cash')$$);
CALL attempt($$SELECT billing.compare_upcoming_invoice('nobody')$$);
DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'api_calls', 'storage_gb');
DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'api_calls', 'storage_gb');
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
SELECT stripe_subscription_id AS sub FROM billing.subscriptions WHERE tenant_id = 'acme' \gset
-- a preview of two lines a page; usage as Stripe has it
CREATE FUNCTION line(n int, metric text, quantity numeric, amount int, more jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', 'il_' || n, 'description', 'Line ' || n, 'quantity_decimal', quantity::text, 'amount', amount,
        'period', '{"start": 1896091200, "end": 1898510400}'::jsonb,
        'pricing', jsonb_build_object('price_details', jsonb_build_object('price', 'price_pgb_standard' || coalesce('_' || metric, '') || '_month'))) || more
$$;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1200000, NULL, '2030-01-31 12:10+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'api_calls', 7, NULL, '2030-01-31 12:10+00') \g /dev/null
SELECT billing.run_rollup();
CALL stripe();
SELECT billing.compare_upcoming_invoice('acme'), billing.compare_upcoming_invoice('acme') \g /dev/null
SELECT kind, method, path, replace(params::text, :'sub', 'SUB') AS params FROM billing.stripe_outbox WHERE state = 'waiting';
SELECT FROM billing._stripe_claim(10, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_preview', :'sub', 'delivered', jsonb_build_object('id', 'upcoming_in_1', 'lines', jsonb_build_object('has_more', true,
    'data', jsonb_build_array(line(1, 'api_calls', 7, 0), line(2, 'api_calls', 0, 0)))));
SELECT count(*) AS not_yet FROM billing.invoice_comparisons;
SELECT kind, method, path, params FROM billing.stripe_outbox WHERE state = 'waiting';
SELECT FROM billing._stripe_claim(10, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_preview_lines', :'sub', 'delivered', jsonb_build_object('has_more', true,
    'data', jsonb_build_array(line(3, 'llm_tokens', 1000000, 0), line(4, 'llm_tokens', 200000, 200))));
SELECT params FROM billing.stripe_outbox WHERE state = 'waiting';
SELECT FROM billing._stripe_claim(10, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_preview_lines', :'sub', 'delivered', jsonb_build_object('has_more', false,
    'data', jsonb_build_array(line(5, 'storage_gb', 0, 0), line(6, NULL, 1, 9900))));
CREATE VIEW compared AS SELECT ordinal, metric, quantity, stripe_quantity, amount, stripe_amount, unsubmitted, difference FROM billing.invoice_comparisons ORDER BY ordinal;
TABLE compared;
-- usage that Stripe does not have, a tier that it has not reached, what only Stripe knows of, a total it has wrong
SELECT FROM billing.record_usage('acme', 'llm_tokens', 300, NULL, '2030-01-31 12:15+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 120, NULL, '2030-01-31 12:00+00') \g /dev/null
SELECT billing._compare_preview('acme', jsonb_build_array(line(1, 'api_calls', 9, 0), line(2, 'llm_tokens', 1000000, 0),
    line(3, 'llm_tokens', 200000, 200), line(4, 'llm_tokens', 50, 1, '{"period": {"start": 1896091200, "end": 1896094800}}'),
    line(5, NULL, 1, 9900), line(6, NULL, 1, -77, '{"parent": {"subscription_item_details": {"proration": true}}}'),
    line(7, NULL, 1, 3, '{"parent": {"type": "invoice_item_details"}, "pricing": null}'), line(8, 'storage_gb', 90, 0))) \g /dev/null
SELECT ordinal, metric, CASE metric WHEN 'storage_gb' THEN round(quantity) ELSE quantity END AS quantity, stripe_quantity,
       CASE metric WHEN 'storage_gb' THEN round(amount, -3) ELSE amount END AS amount, stripe_amount, round(unsubmitted), difference FROM compared;
SELECT billing._compare_preview('acme', '[]') \g /dev/null
SELECT count(*), min(difference) FROM compared WHERE metric = 'api_calls';
SET ROLE billing_tenant;
SET pg_billing.tenant_id = 'cash';
SELECT count(*) FROM billing.invoice_comparisons;
RESET ROLE;
