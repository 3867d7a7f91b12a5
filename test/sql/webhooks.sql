-- Stripe's webhooks: stored raw, once each; the object they are about is fetched anew and what Stripe has is stored.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
SELECT stripe_subscription_id AS sub FROM billing.subscriptions \gset
CREATE VIEW requests AS
    SELECT kind, subject, method, path, params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending');
CREATE FUNCTION event(id text, type text, object text, object_id text, customer text DEFAULT 'cus_acme') RETURNS text
LANGUAGE sql AS $$
    SELECT format('{"id": "%s", "type": "%s", "livemode": false, "api_version": "2026-10-28.endive",
                    "data": {"object": {"object": "%s", "id": "%s", "customer": %s}}}',
                  id, type, object, object_id, coalesce('"' || customer || '"', 'null'))
$$;

SELECT billing.receive_webhook(event('evt_1', 'customer.subscription.updated', 'subscription', :'sub'));
SELECT billing.receive_webhook(event('evt_1', 'customer.subscription.updated', 'subscription', :'sub'));
SELECT id, type, livemode, api_version, object_type, object_id = :'sub' AS of_sub, customer_id,
       payload = event('evt_1', 'customer.subscription.updated', 'subscription', :'sub') AS raw, processed_at, outcome
  FROM billing.webhook_events;
CALL attempt($$SELECT billing.receive_webhook('hello')$$);
CALL attempt($$SELECT billing.receive_webhook('')$$);
CALL attempt($$SELECT billing.receive_webhook(NULL)$$);
CALL attempt($$SELECT billing.receive_webhook('[1, 2]')$$);
CALL attempt($$SELECT billing.receive_webhook('{"id": "evt_2"}')$$);
CALL attempt($$SELECT billing.receive_webhook('{"id": "evt_2", "type": "\u0000"}')$$);
-- an event without an object, and kinds nobody here knows
SELECT billing.receive_webhook('{"id": "evt_bare", "type": "account.updated"}');
SELECT billing.receive_webhook('{"id": "evt_odd", "type": "invoice.paid", "data": [5], "related_object": "x", "api_version": {"a": 1}}');
SELECT billing.receive_webhook(event('evt_kind', 'payment_method.attached', 'payment_method', 'pm_1'));
SELECT billing.receive_webhook(event('evt_stranger', 'invoice.paid', 'invoice', 'in_9', 'cus_stranger'));
SELECT billing.receive_webhook(event('evt_nobody', 'invoice.paid', 'invoice', 'in_8', NULL));
SELECT billing._stripe_plan();
SELECT method, replace(path, :'sub', 'SUB') AS path, params FROM requests;
SELECT id, processed_at IS NOT NULL AS processed, outcome, error FROM billing.webhook_events ORDER BY 1;

-- the items as Stripe has them: one of them made anew
CREATE FUNCTION items(first jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('data', jsonb_build_array('{"id": "si_1", "price": {"id": "price_pgb_standard_month"}}' || first)
               || jsonb_agg(jsonb_build_object('id', CASE i.metric WHEN 'api_calls' THEN 'si_new' ELSE i.stripe_item_id END,
                                               'price', jsonb_build_object('id', i.stripe_price_id))))
      FROM billing.subscription_items i
$$;
-- events that come while a fetch is under way wait for the next one
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
SELECT billing.receive_webhook(event('evt_3', 'customer.subscription.updated', 'subscription', :'sub'));
SELECT billing.receive_webhook(event('evt_4', 'customer.subscription.updated', 'subscription', :'sub'));
SELECT billing._stripe_plan();
CALL settle('acme', 'subscription_fetch', :'sub', 'delivered', jsonb_build_object('id', :'sub', 'status', 'past_due',
    'cancel_at_period_end', true, 'items', items('{"current_period_start": 1896091200, "current_period_end": 1898510400}')));
SELECT status, current_period_start, current_period_end, cancel_at_period_end FROM billing.get_subscription('acme');
SELECT past_due_since >= '2030-01-31 12:30+00' AS past_due_now FROM billing.subscriptions;
SELECT metric, stripe_item_id FROM billing.subscription_items WHERE stripe_item_id !~ '^si_price' ORDER BY 1;
SELECT period_start, period_end FROM billing.usage_quotas WHERE metric = 'api_calls';
SELECT id, outcome, error FROM billing.webhook_events WHERE object_type = 'subscription' ORDER BY 1;
-- one fetch for both, and a second past_due does not begin the grace anew
UPDATE billing.subscriptions SET past_due_since = '2030-01-30';
SELECT billing._stripe_plan();
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL settle('acme', 'subscription_fetch', :'sub', 'delivered', jsonb_build_object('id', :'sub', 'status', 'past_due', 'items', items()));
SELECT status, past_due_since, cancel_at_period_end, current_period_end FROM billing.subscriptions;
SELECT id, outcome, error FROM billing.webhook_events WHERE object_type = 'subscription' ORDER BY 1;
-- paid; as an older interface says it, with the period on the subscription itself
SELECT billing.receive_webhook(event('evt_5', 'customer.subscription.updated', 'subscription', :'sub'));
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('acme', 'subscription_fetch', :'sub', 'delivered', jsonb_build_object('id', :'sub', 'status', 'active', 'cancel_at_period_end', false,
    'current_period_start', 1896091200, 'current_period_end', 1898514000, 'items', items()));
SELECT status, past_due_since, cancel_at_period_end, current_period_end FROM billing.subscriptions;
-- a subscription of the same customer that was made elsewhere is not ours
SELECT billing.receive_webhook(event('evt_6', 'customer.subscription.created', 'subscription', 'sub_elsewhere'));
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('acme', 'subscription_fetch', 'sub_elsewhere', 'delivered', '{"id": "sub_elsewhere", "status": "trialing", "items": {"data": []}}');
SELECT count(*), max(status) FROM billing.subscriptions;

-- an invoice with all its lines
SELECT billing.receive_webhook(event('evt_7', 'invoice.finalized', 'invoice', 'in_1'));
SELECT billing._stripe_plan();
SELECT method, path, params FROM requests;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CREATE FUNCTION line(n int, metric text DEFAULT 'api_calls') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', 'il_' || n, 'description', 'Line ' || n, 'quantity_decimal', n || '.5', 'amount', n * 100, 'currency', 'usd',
        'period', '{"start": 1896091200, "end": 1898510400}'::jsonb,
        'pricing', '{"price_details": {"price": "price_x"}}'::jsonb,
        'parent', jsonb_build_object('subscription_item_details', jsonb_build_object('subscription_item',
            (SELECT stripe_item_id FROM billing.subscription_items i WHERE i.metric = line.metric))))
$$;
CREATE FUNCTION invoice(id text, status text, lines jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', id, 'number', 'A-1', 'status', status, 'billing_reason', 'subscription_cycle', 'currency', 'usd', 'subtotal', 300,
        'total', 357, 'amount_due', 357, 'amount_paid', 0, 'amount_remaining', 357, 'period_start', 1896091200, 'period_end', 1898510400,
        'due_date', NULL, 'status_transitions', '{"finalized_at": 1898514000}'::jsonb, 'created', 1898510400, 'lines', lines)
$$;
CALL settle('acme', 'invoice_fetch', 'in_1', 'delivered', invoice('in_1', 'open', jsonb_build_object('has_more', false, 'data', jsonb_build_array(line(1), line(2, NULL)))));
UPDATE billing.invoices SET fetched_at = '2030-02-28 13:00+00';
SELECT * FROM billing.invoices \gx
SELECT * FROM billing.invoice_lines ORDER BY stripe_line_id;
-- changed later: a line gone, another with other content
SELECT billing.receive_webhook(event('evt_8', 'invoice.paid', 'invoice', 'in_1'));
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_fetch', 'in_1', 'delivered', invoice('in_1', 'paid', jsonb_build_object('has_more', false, 'data', jsonb_build_array(line(1, 'llm_tokens')))));
SELECT status, (SELECT count(*) FROM billing.invoice_lines) AS lines, (SELECT metric FROM billing.invoice_lines WHERE stripe_line_id = 'il_1') FROM billing.invoices;
-- longer than its first page: all lines are fetched, page by page
SELECT billing.receive_webhook(event('evt_9', 'invoice.finalized', 'invoice', 'in_2'));
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_fetch', 'in_2', 'delivered', invoice('in_2', 'open', jsonb_build_object('has_more', true, 'data', jsonb_build_array(line(1)))));
SELECT kind, method, path, params FROM requests;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
SELECT jsonb_agg(line(n) ORDER BY n) AS page FROM generate_series(1, 100) n \gset
CALL settle('acme', 'invoice_lines', 'in_2', 'delivered', jsonb_build_object('has_more', true, 'data', :'page'::jsonb));
SELECT kind, method, path, params FROM requests;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_lines', 'in_2', 'delivered', jsonb_build_object('has_more', false, 'data', jsonb_build_array(line(101), line(102))));
SELECT count(*), sum(amount) FROM billing.invoice_lines WHERE stripe_invoice_id = 'in_2';
-- one that cannot be fetched
SELECT billing.receive_webhook(event('evt_a', 'invoice.created', 'invoice', 'in_3'));
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('acme', 'invoice_fetch', 'in_3', 'failed', '{"error": {"message": "Out of order"}}', 400);
SELECT id, processed_at IS NOT NULL AS processed, outcome, error FROM billing.webhook_events ORDER BY 1;
SELECT billing._stripe_plan(), (SELECT count(*) FROM requests) AS open;

-- processed again on demand; what failed is out of the dead letter then
CALL attempt($$SELECT billing.replay_webhooks()$$);
CALL attempt($$SELECT billing.replay_webhooks(ids => '{evt_7,evt_lost}')$$);
SELECT billing.replay_webhooks(ids => '{evt_7,evt_a}');
SELECT id, outcome, error FROM billing.webhook_events WHERE processed_at IS NULL ORDER BY 1;
SELECT billing._stripe_plan(), (SELECT count(*) FROM billing.stripe_dead_letter) AS dead;
SELECT kind, subject FROM requests ORDER BY 2;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
SELECT billing.replay_webhooks(type => 'invoice.*') AS those_that_are_not_open;
CALL settle('acme', 'invoice_fetch', 'in_1', 'delivered', invoice('in_1', 'void', '{"has_more": false, "data": []}'));
CALL settle('acme', 'invoice_fetch', 'in_3', 'delivered', invoice('in_3', 'open', '{"has_more": false, "data": []}'));
SELECT stripe_invoice_id, status FROM billing.invoices ORDER BY 1;
UPDATE billing.webhook_events SET processed_at = clock_timestamp(), outcome = 'kept' WHERE processed_at IS NULL;
UPDATE billing.webhook_events SET received_at = received_at - interval '1 day' WHERE id ~ '[1-4]$';
SELECT billing.replay_webhooks(until => clock_timestamp() - interval '12 hours', type => 'customer_subscription.*') AS an_underscore_is_one,
       billing.replay_webhooks(until => clock_timestamp() - interval '12 hours') AS older,
       billing.replay_webhooks(since => clock_timestamp() - interval '12 hours') AS newer;

-- how long it takes, and what is open
UPDATE billing.webhook_events SET opened_at = '2030-01-31 12:00+00', processed_at = NULL, outcome = NULL, error = NULL;
UPDATE billing.webhook_events SET processed_at = opened_at + interval '2 s', outcome = 'applied' WHERE id IN ('evt_7', 'evt_8');
UPDATE billing.webhook_events SET processed_at = opened_at + interval '4 s', outcome = 'applied' WHERE id = 'evt_9';
UPDATE billing.webhook_events SET processed_at = opened_at + interval '1 s', outcome = 'failed', error = 'of old' WHERE id = 'evt_a';
UPDATE billing.webhook_events SET type = 'invoice.paid', opened_at = opened_at - interval '1 min' WHERE type ~ '^invoice';
SELECT * FROM billing.stat_webhooks ORDER BY type, outcome;

-- content is kept for pg_billing.webhook_retention, ids for as long as an event may come again
UPDATE billing.webhook_events SET processed_at = clock_timestamp() - interval '29 days', outcome = 'kept' WHERE id = 'evt_1';
UPDATE billing.webhook_events SET processed_at = clock_timestamp() - interval '30 days 1 hour', outcome = 'kept' WHERE id = 'evt_3';
UPDATE billing.webhook_events SET processed_at = clock_timestamp() - interval '31 days 1 hour', outcome = 'kept' WHERE id = 'evt_4';
UPDATE billing.webhook_events SET processed_at = NULL, outcome = NULL WHERE id = 'evt_5';
UPDATE billing.webhook_events SET received_at = clock_timestamp() - interval '1 year', opened_at = clock_timestamp() - interval '1 year' WHERE id = 'evt_5';
SELECT billing.maintain();
SELECT id, payload IS NOT NULL AS kept, outcome FROM billing.webhook_events WHERE id IN ('evt_1', 'evt_3', 'evt_4', 'evt_5') ORDER BY 1;
SELECT billing.receive_webhook(event('evt_3', 'customer.subscription.updated', 'subscription', :'sub'));
SELECT billing.replay_webhooks(ids => '{evt_3}') AS without_its_content;
SET pg_billing.webhook_retention = -1;
UPDATE billing.webhook_events SET processed_at = clock_timestamp() - interval '10 years', outcome = 'kept' WHERE id = 'evt_1';
SELECT billing.maintain();
SELECT payload IS NOT NULL AS kept FROM billing.webhook_events WHERE id = 'evt_1';

-- bodies that were changed at random are stored or refused, whatever they are
CREATE FUNCTION mutated(body text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    at int := 1 + floor(random() * length(body));
    piece text := (ARRAY['"', '{', '}', '[', ']', ':', ',', 'null', '1e999', '\u0000', '\ud800', '\', '-', 'é', ' ', '{"object": ', '5', 'true'])
                  [1 + floor(random() * 18)];
BEGIN
    RETURN overlay(body PLACING piece FROM at FOR floor(random() * 12)::int);
END $$;
SELECT setseed(0.5) \g /dev/null
CREATE TABLE tried (outcome text);
DO $$
DECLARE
    body text;
BEGIN
    FOR i IN 1 .. 4000 LOOP
        body := CASE i % 2 WHEN 0 THEN event('evt_m' || i, 'customer.subscription.updated', 'subscription', 'sub_m')
                ELSE jsonb_build_object('id', 'evt_m' || i, 'object', 'v2.core.event', 'type', 'v1.invoice.paid', 'livemode', false,
                         'related_object', '{"id": "in_m", "type": "invoice", "url": "/v1/invoices/in_m"}'::jsonb)::text END;
        FOR n IN 0 .. i % 4 LOOP
            body := mutated(body);
        END LOOP;
        BEGIN
            INSERT INTO tried SELECT billing.receive_webhook(body);
        EXCEPTION WHEN SQLSTATE 'UB032' THEN
            INSERT INTO tried VALUES ('refused');
        END;
    END LOOP;
END $$;
SELECT outcome, count(*) > 100 AS many FROM tried WHERE outcome <> 'duplicate' GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM billing.webhook_events WHERE subject_id !~ '^[A-Za-z0-9_.-]+$';
SELECT billing._stripe_plan() > 0 AS planned;
SELECT kind, method, path FROM requests WHERE path !~ '^/v1/(subscriptions|invoices)/[A-Za-z0-9_.-]+$';
