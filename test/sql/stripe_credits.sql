-- Credit of a tenant billed through Stripe: what is asked of Stripe, and how its transactions become the ledger's entries.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW requests AS
    SELECT kind, subject, method, path, params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending');
CREATE VIEW ledger AS
    SELECT g.name, e.kind, e.amount, e.balance, e.stripe_invoice_id AS invoice, e.reason
      FROM billing.get_credit_ledger('acme') e JOIN billing.get_credit_grants('acme') g USING (grant_id);
-- One of Stripe's transactions: of a grant, its type, amount and, of what was spent or given back, the invoice.
CREATE FUNCTION moved(id text, of_grant text, kind text, amount int, invoice text DEFAULT NULL) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', id, 'credit_grant', of_grant, 'effective_at', 1900000000, 'type', d,
               d, jsonb_build_object('type', kind, 'amount', jsonb_build_object('monetary', jsonb_build_object('currency', 'usd', 'value', amount)),
                      kind, CASE WHEN invoice IS NOT NULL THEN jsonb_build_object('invoice', invoice, 'invoice_line_item', 'il_' || id) END))
      FROM (SELECT CASE WHEN kind IN ('credits_granted', 'credits_application_invoice_voided') THEN 'credit' ELSE 'debit' END) x (d)
$$;
CREATE PROCEDURE transactions(VARIADIC moves jsonb[]) LANGUAGE sql AS $$
    SELECT billing._stripe_claim(100, '0');
    CALL settle('acme', 'credit_transactions', '', 'delivered', jsonb_build_object('data', to_jsonb(moves), 'has_more', false))
$$;
CREATE PROCEDURE grant_is(kind text, subject text, grant_id text, ends bigint DEFAULT NULL, voided bigint DEFAULT NULL) LANGUAGE sql AS $$
    SELECT billing._stripe_claim(100, '0');
    CALL settle('acme', kind, subject, 'delivered', jsonb_build_object('id', grant_id, 'object', 'billing.credit_grant',
        'expires_at', ends, 'voided_at', voided,
        'metadata', jsonb_build_object('tenant_id', 'acme', 'credit_grant_id', subject)))
$$;
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null

-- not before the customer is there; a grant for metrics not before all their prices are
SELECT billing.grant_credit('acme', 2000, priority => 7, expires_at => '2031-01-01', name => 'Prepaid') AS prepaid \gset
SELECT billing.grant_credit('acme', 300, metrics => '{user_seats}', category => 'promotional') AS seats \gset
SELECT billing.grant_credit('acme', 50, name => 'Never sent') AS unsent \gset
SELECT billing._stripe_plan_credits();
UPDATE billing.billing_customers SET stripe_customer_id = 'cus_1';
SELECT billing._publish_plan(name) FROM billing.plans \g /dev/null
UPDATE billing.plan_prices SET stripe_price_id = CASE plan WHEN 'standard' THEN 'price_1' ELSE 'price_0' END
 WHERE metric = 'user_seats' AND plan <> 'free';
SELECT billing._stripe_plan_credits();
SELECT subject::int - :prepaid AS nth, method, path, params #- '{metadata,credit_grant_id}' AS params FROM requests ORDER BY 1;
UPDATE billing.plan_prices SET stripe_price_id = 'price_2' WHERE metric = 'user_seats' AND plan = 'free';
SELECT billing._stripe_plan_credits();
SELECT params #> '{applicability_config}' AS scope, params -> 'category' AS category, params ? 'name' AS named FROM requests WHERE subject = :'seats';
-- one that no request left for is void at once, and is not made; one on its way is void when Stripe says so
SELECT FROM billing.void_credit(:unsent, 'not meant') \g /dev/null
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
SELECT FROM billing.void_credit(:seats, 'no seats') \g /dev/null
SELECT balance, status FROM billing.get_credit_grants('acme') ORDER BY grant_id;
SELECT count(*) FROM requests WHERE subject = :'unsent';
CALL grant_is('credit_grant_create', :'prepaid', 'credgr_1', extract(epoch FROM timestamptz '2031-01-01')::bigint);
CALL grant_is('credit_grant_create', :'seats', 'credgr_2');
SELECT billing._stripe_plan_credits();
SELECT kind, subject::int - :prepaid AS nth, path, params FROM requests;
CALL grant_is('credit_grant_void', :'seats', 'credgr_2', NULL, 1900000000);
-- its transactions are looked at, and only then it is void here
SELECT kind, balance FROM ledger WHERE name IS NULL;
SELECT billing._stripe_plan_credits();
SELECT kind, path, params FROM requests;
CALL transactions(moved('t2', 'credgr_2', 'credits_voided', 300), moved('t1', 'credgr_2', 'credits_granted', 300));
TABLE ledger;
SELECT billing._stripe_plan_credits();

-- an invoice with credit that is not here; what was spent is taken over once, however often it is told
CREATE PROCEDURE invoice(status text, credit int) LANGUAGE sql AS $$
    SELECT billing._apply_invoice('acme', jsonb_build_object('id', 'in_1', 'status', status, 'currency', 'usd', 'subtotal', 900, 'total', 900 - credit,
        'amount_due', 900 - credit, 'amount_paid', 0, 'amount_remaining', 900 - credit, 'attempt_count', 0, 'created', 1900000000,
        'total_pretax_credit_amounts', jsonb_build_array(jsonb_build_object('type', 'credit_balance_transaction', 'amount', credit)),
        'lines', '{"has_more": false, "data": [{"id": "il_t3", "amount": 900, "currency": "usd", "pricing": {"price_details": {"price": "price_1"}}, "period": {"start": 1896091200, "end": 1898510400}}]}'::jsonb))
$$;
CALL invoice('draft', 400);
SELECT billing._stripe_plan_credits();
CALL invoice('open', 400);
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t3', 'credgr_1', 'credits_applied', 400, 'in_1'));
CALL invoice('paid', 400);
SELECT billing._stripe_plan_credits();
SELECT billing._credit_stale('acme') \g /dev/null
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t3', 'credgr_1', 'credits_applied', 400, 'in_1'), moved('t0', 'credgr_1', 'credits_granted', 2000));
TABLE ledger;
SELECT metric, period_start FROM billing.get_credit_ledger('acme') WHERE kind = 'applied';
-- voided: given back
CALL invoice('void', 400);
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t4', 'credgr_1', 'credits_application_invoice_voided', 400, 'in_1'));
SELECT * FROM ledger WHERE name = 'Prepaid';
CALL invoice('void', 400);
SELECT billing._stripe_plan_credits();

-- pages: the newest first, until one tells nothing new. What comes up while a list is under way is not missed.
SELECT billing._credit_stale('acme') \g /dev/null
SELECT billing._stripe_plan_credits();
SELECT billing._stripe_claim(100, '0') \g /dev/null
SELECT billing._credit_stale('acme') \g /dev/null
CALL settle('acme', 'credit_transactions', '', 'delivered', jsonb_build_object('has_more', true, 'data',
    jsonb_build_array(moved('t6', 'credgr_1', 'credits_application_invoice_voided', 50, 'in_2'))));
SELECT params FROM requests;
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_transactions', '', 'delivered', jsonb_build_object('has_more', true, 'data',
    jsonb_build_array(moved('t5', 'credgr_1', 'credits_applied', 50, 'in_2'))));
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_transactions', '', 'delivered', jsonb_build_object('has_more', true, 'data',
    jsonb_build_array(moved('t4', 'credgr_1', 'credits_application_invoice_voided', 400, 'in_1'))));
SELECT count(*) FROM requests;
SELECT balance FROM billing.get_credit_grants('acme') WHERE name = 'Prepaid';
SELECT billing._stripe_plan_credits();
CALL transactions(VARIADIC '{}');
SELECT billing._stripe_plan_credits();

-- a void that Stripe refuses, because it has spent some of it: it heals itself
SELECT FROM billing.void_credit(:prepaid, 'contract ended') \g /dev/null
SELECT billing._stripe_plan_credits();
SELECT kind FROM requests;
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_grant_expire', :'prepaid', 'failed', '{"error": {"message": "It was used."}}', 400);
SELECT kind, error FROM billing.stripe_dead_letter;
SELECT billing._stripe_plan_credits();
SELECT kind FROM requests;
CALL transactions(moved('t7', 'credgr_1', 'credits_expired', 2000));
SELECT kind, amount, balance, reason FROM ledger WHERE name = 'Prepaid' ORDER BY balance LIMIT 1;
SELECT billing._stripe_plan_credits();
SELECT kind, error FROM billing.stripe_dead_letter;
SELECT billing.grant_credit('acme', 100, name => 'Late') AS late \gset
SELECT billing._stripe_plan_credits();
CALL grant_is('credit_grant_create', :'late', 'credgr_6');
SELECT FROM billing.void_credit(:late, 'too late') \g /dev/null
SELECT billing._stripe_plan_credits();
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_grant_void', :'late', 'failed', '{"error": {"message": "It was used."}}', 400);
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t7a', 'credgr_6', 'credits_applied', 40, 'in_4'));
SELECT billing._stripe_plan_credits();
SELECT kind, path FROM requests;
CALL grant_is('credit_grant_expire', :'late', 'credgr_6', 1800000000);
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t7b', 'credgr_6', 'credits_expired', 60), moved('t7a', 'credgr_6', 'credits_applied', 40, 'in_4'));
SELECT kind, amount, reason FROM ledger WHERE name = 'Late';
SELECT count(*) FROM billing.stripe_dead_letter;

-- expiry by Stripe's clock: its word is waited for, and what rolls over is a grant of its own
SELECT billing.grant_credit('acme', 500, expires_at => billing.now() + interval '1 day', rollover_max => 200, name => 'Rolls') AS rolls \gset
SELECT billing._stripe_plan_credits();
SELECT extract(epoch FROM expires_at)::bigint AS ends FROM billing.credit_grants WHERE id = :rolls \gset
CALL grant_is('credit_grant_create', :'rolls', 'credgr_3', :ends);
SELECT billing._stripe_plan_credits();
CALL travel('25 hours');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT billing.get_credit_balance('acme');
SELECT billing._stripe_plan_credits();
CALL transactions(VARIADIC '{}');
SELECT billing._stripe_plan_credits();
CALL travel('61 minutes');
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t8', 'credgr_3', 'credits_expired', 500));
SELECT * FROM ledger WHERE name = 'Rolls' ORDER BY balance, kind;
SELECT billing._stripe_plan_credits();
SELECT kind, params #>> '{amount,monetary,value}' AS value, params -> 'name' AS name FROM requests;

-- a grant that was made at Stripe: known by its transactions, fetched, and its transactions again
SELECT billing._stripe_claim(100, '0') \g /dev/null
SELECT billing._credit_stale('acme') \g /dev/null
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t9', 'credgr_4', 'credits_applied', 30, 'in_3'), moved('t8a', 'credgr_4', 'credits_granted', 100));
SELECT kind, subject, path FROM requests WHERE kind LIKE '%fetch';
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_grant_fetch', 'credgr_4', 'delivered', '{"id": "credgr_4", "name": "Dashboard", "category": "promotional",
    "priority": null, "amount": {"monetary": {"currency": "usd", "value": 100}}, "created": 1900000000, "expires_at": null, "voided_at": null,
    "metadata": {}, "applicability_config": {"scope": {"prices": [{"id": "price_1"}]}}}');
SELECT billing._stripe_plan_credits();
CALL transactions(moved('t9', 'credgr_4', 'credits_applied', 30, 'in_3'), moved('t8a', 'credgr_4', 'credits_granted', 100));
SELECT name, amount, balance, category, priority, metrics FROM billing.get_credit_grants('acme') WHERE name = 'Dashboard';

-- a refused grant is looked for before it is made again, page by page; one that was voided meanwhile is void if it is on none
SELECT billing.grant_credit('acme', 60, name => 'Refused') AS refused \gset
SELECT billing.grant_credit('acme', 70, name => 'Refused, then voided') AS voided \gset
SELECT billing._stripe_plan_credits();
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_grant_create', :'refused', 'failed', '{"error": {"message": "Something is wrong."}}', 400);
CALL settle('acme', 'credit_grant_create', :'voided', 'failed', '{"error": {"message": "Something is wrong."}}', 400);
SELECT FROM billing.void_credit(:voided, 'given up') \g /dev/null
SELECT balance FROM billing.get_credit_grants('acme') WHERE grant_id = :voided;
SELECT billing._stripe_plan_credits();
SELECT billing.retry_failed();
SELECT billing._stripe_plan_credits();
SELECT kind, subject::int - :refused AS nth, method, path, params FROM requests WHERE kind = 'credit_grant_find' ORDER BY 2;
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_grant_find', :'voided', 'delivered', '{"has_more": false, "data": []}');
CALL settle('acme', 'credit_grant_find', :'refused', 'delivered', '{"has_more": true, "data": [{"id": "credgr_x", "created": 1, "metadata": {}}]}');
SELECT balance FROM billing.get_credit_grants('acme') WHERE grant_id = :voided;
SELECT params -> 'starting_after' AS page FROM requests WHERE kind = 'credit_grant_find';
SELECT billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'credit_grant_find', :'refused', 'delivered', jsonb_build_object('has_more', false, 'data', jsonb_build_array(
    jsonb_build_object('id', 'credgr_5', 'created', 1, 'metadata', jsonb_build_object('tenant_id', 'acme', 'credit_grant_id', :'refused')))));
SELECT stripe_grant_id, stripe_stale_since IS NOT NULL AS looked_at FROM billing.credit_grants WHERE id = :refused;

-- what has been tried for almost a day without an answer is not sent again
SELECT billing.grant_credit('acme', 80, name => 'Unknown') AS unknown \gset
SELECT billing._stripe_plan_credits() > 0 AS planned;
UPDATE billing.stripe_outbox SET created_at = created_at - interval '24 hours' WHERE subject = :'unknown';
SELECT billing._stripe_give_up() \g /dev/null
SELECT kind, state, attempts FROM billing.stripe_outbox WHERE subject = :'unknown';
UPDATE billing.stripe_outbox SET attempts = 1 WHERE subject = :'unknown';
SELECT billing._stripe_give_up() \g /dev/null
SELECT kind, state, retried_at IS NOT NULL AS retried, error FROM billing.stripe_outbox WHERE subject = :'unknown' ORDER BY id;
SELECT count(*) FROM billing.stripe_dead_letter;

-- Stripe keeps 100; the ledger adds up
SELECT FROM generate_series(1, 200) n, billing.grant_credit('acme', n) WHERE n <= 100 - (SELECT count(*) FROM billing.credit_grants WHERE balance > 0) \g /dev/null
CALL attempt($$SELECT billing.grant_credit('acme', 1)$$);
SELECT count(*) AS differences FROM billing.credit_grants g
 WHERE g.balance <> (SELECT sum(e.amount) FROM billing.credit_ledger e WHERE e.tenant_id = g.tenant_id AND e.grant_id = g.id);
