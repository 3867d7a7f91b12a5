-- Invoices: what is stored of one, read page by page, and fetched anew on demand.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
CREATE FUNCTION invoice(id text, created timestamptz, more jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', id, 'status', 'open', 'currency', 'usd', 'subtotal', 300, 'total', 357, 'amount_due', 357,
        'amount_paid', 0, 'amount_remaining', 357, 'created', extract(epoch FROM created)::bigint,
        'lines', '{"has_more": false, "data": []}'::jsonb) || more
$$;
-- everything that may be there
SELECT billing._apply_invoice('acme', invoice('in_1', '2030-03-01', '{"number": "A-1", "billing_reason": "subscription_cycle",
    "total_taxes": [{"amount": 50}, {"amount": 7}], "attempt_count": 2, "next_payment_attempt": 1898700000, "period_start": 1896091200,
    "period_end": 1898510400, "due_date": 1901102400, "status_transitions": {"finalized_at": 1898514000},
    "automatically_finalizes_at": 1898513999, "last_finalization_error": {"code": "x", "message": "No address."},
    "parent": {"subscription_details": {"subscription": "sub_1"}}, "hosted_invoice_url": "https://a.example/1", "invoice_pdf": "https://a.example/1.pdf",
    "lines": {"has_more": false, "data": [
        {"id": "il_z", "description": "Two", "quantity_decimal": "2.5", "amount": 250, "currency": "usd",
         "pricing": {"price_details": {"price": "price_pgb_standard_llm_tokens_month"}}},
        {"id": "il_a", "description": "Fee", "quantity": 1, "amount": 50, "currency": "usd"}]}}')) \g /dev/null
SELECT fetched_at <= clock_timestamp() AS fetched FROM billing.get_invoice('acme', 'in_1');
UPDATE billing.invoices SET fetched_at = '2030-03-01';
SELECT * FROM billing.get_invoice('acme', 'in_1') \gx
SELECT stripe_subscription_id FROM billing.invoices;
SELECT * FROM billing.get_invoice_lines('acme', 'in_1');
-- as older interfaces have it, with nothing that may be missing; a draft's lines change
SELECT billing._apply_invoice('acme', invoice('in_2', '2030-03-01', '{"tax": 9, "subscription": "sub_2", "status": "draft",
    "lines": {"has_more": false, "data": [{"id": "il_1", "amount": 1, "currency": "usd"}, {"id": "il_2", "amount": 2, "currency": "usd"}]}}')) \g /dev/null
SELECT billing._apply_invoice('acme', invoice('in_2', '2030-03-01', '{"tax": 9, "subscription": "sub_2", "status": "draft", "attempt_count": 1,
    "lines": {"has_more": false, "data": [{"id": "il_2", "amount": 3, "currency": "usd"}]}}')) \g /dev/null
SELECT i.total_taxes, i.attempt_count, s.stripe_subscription_id, l.line, l.amount
  FROM billing.get_invoice('acme', 'in_2') i, billing.invoices s, billing.get_invoice_lines('acme', 'in_2') l WHERE s.stripe_invoice_id = 'in_2';
-- page by page, the latest first; two of the same moment are on one page or the other
SELECT billing._apply_invoice('acme', invoice('in_' || n, timestamptz '2030-03-01' + (n % 3) * interval '1 day')) FROM generate_series(3, 6) n \g /dev/null
SELECT billing._apply_invoice('bolt', invoice('in_9', '2030-03-05')) \g /dev/null
SELECT invoice, created_at FROM billing.get_invoices('acme', 4);
SELECT invoice, created_at FROM billing.get_invoices('acme', 4, 'in_5');
SELECT invoice, created_at FROM billing.get_invoices('acme', 4, 'in_3');
SELECT invoice FROM billing.get_invoices('acme', 2, before => 'in_1');
SELECT invoice FROM billing.get_invoices('acme', 2, before => 'in_5');
SELECT invoice FROM billing.get_invoices('acme', 2, 'in_5', before => 'in_1');
SELECT count(*) FROM billing.get_invoices('acme', 0);
-- a page costs what is on it, however many there are
BEGIN;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_sort = off;
EXPLAIN (COSTS OFF) SELECT i.* FROM billing._invoices('acme', NULL) i
 WHERE (i.created_at, i.invoice) < ('2030-03-02', 'in_5') ORDER BY i.created_at DESC, i.invoice DESC LIMIT 4;
ROLLBACK;
CALL attempt($$SELECT billing.get_invoices('acme', 4, 'in_9')$$);
CALL attempt($$SELECT billing.get_invoices('acme', before => 'in_9')$$);
CALL attempt($$SELECT billing.get_invoice('acme', 'in_9')$$);
CALL attempt($$SELECT billing.get_invoice('acme', NULL)$$);
CALL attempt($$SELECT billing.get_invoice_lines('acme', 'in_9')$$);
CALL attempt($$SELECT billing.get_invoices('nobody')$$);
SET ROLE billing_app;
SET pg_billing.tenant_id = 'bolt';
CALL attempt($$SELECT billing.get_invoice('acme', 'in_1')$$);
CALL attempt($$SELECT billing.refresh_invoice('acme', 'in_1')$$);
SELECT invoice FROM billing.get_invoices('bolt');
RESET pg_billing.tenant_id;
RESET ROLE;
-- fetched anew: one request however often it is asked for, and again after one that failed
SELECT billing.refresh_invoice('acme', 'in_1'), billing.refresh_invoice('acme', 'in_1') \g /dev/null
SELECT kind, subject, method, path, params FROM billing.stripe_outbox WHERE state = 'waiting';
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_fetch', 'in_1', 'failed', '{"error": {"message": "Try later."}}', 500);
SELECT billing.refresh_invoice('acme', 'in_1') \g /dev/null
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
SELECT fetched_at AS was FROM billing.invoices WHERE stripe_invoice_id = 'in_1' \gset
CALL settle('acme', 'invoice_fetch', 'in_1', 'delivered', invoice('in_1', '2030-03-01', '{"invoice_pdf": "https://a.example/2.pdf"}'));
SELECT invoice_pdf, fetched_at > :'was' AS later FROM billing.get_invoice('acme', 'in_1');
CALL attempt($$SELECT billing.refresh_invoice('acme', 'in_9')$$);
-- what a line is made of: its hours, and their events as long as those are kept
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1000, 'first', '2030-01-31 12:10+00') a, billing.record_usage('acme', 'llm_tokens', 500, 'second', '2030-01-31 12:20+00') b \g /dev/null
SELECT FROM billing.void_usage('acme', 'second', 'a mistake') \g /dev/null
SELECT billing.run_rollup();
CALL stripe();
SELECT billing._apply_invoice('acme', invoice('in_7', '2030-03-01', jsonb_build_object('lines', jsonb_build_object('has_more', false, 'data', jsonb_build_array(
    jsonb_build_object('id', 'il_1', 'description', '1000 × LLM tokens', 'quantity', 1000, 'amount', 0, 'currency', 'usd', 'period', '{"start": 1896091200, "end": 1898510400}'::jsonb,
                       'pricing', '{"price_details": {"price": "price_pgb_standard_llm_tokens_month"}}'::jsonb)))))) \g /dev/null
SELECT * FROM billing.explain_invoice_line('acme', 'llm_tokens', 'in_7');
SET pg_billing.event_retention = '36d';
CALL travel('1 day');
SELECT billing.run_rollup() \g /dev/null
CALL travel('39 days');
SELECT billing.run_rollup() \g /dev/null
SELECT billing.maintain() \g /dev/null
SELECT * FROM billing.explain_invoice_line('acme', 'llm_tokens', 'in_7');
