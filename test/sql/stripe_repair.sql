-- The dead letter: what operators see of it and of what waits, and how it is carried out again once.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW requests AS
    SELECT tenant_id, kind, subject, method, path, params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending');
CREATE PROCEDURE refuse(tenant text, kind text, subject text, http_status int, code text, message text) LANGUAGE sql AS $$
    CALL settle(tenant, kind, subject, 'failed',
                jsonb_build_object('error', jsonb_build_object('code', code, 'message', message)), http_status)
$$;

-- the catalogue, one refusal of each kind; what depends on it waits, what does not goes on
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL refuse('', 'product_create', 'pgb_plan_free', 400, 'parameter_unknown', 'Received unknown parameter.');
CALL settle('', 'meter_find', 'llm_tokens', 'delivered', '{"data": [], "has_more": false}');
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL refuse('', 'meter_create', 'llm_tokens', 400, 'resource_already_exists', 'An active meter has that event_name.');
CALL stripe();
SELECT billing._stripe_plan();
SELECT tenant_id, kind, subject, request, http_status, error, failed_at <= clock_timestamp() AS failed, hint
  FROM billing.stripe_dead_letter ORDER BY id;
-- of a kind; the catalogue; each once; what was refused stays as history, and what is made anew has another key
SELECT billing.retry_failed('meter_create');
SELECT billing.retry_failed('meter_create');
SELECT billing._stripe_plan();
SELECT kind, subject FROM requests;
CALL stripe();
SELECT billing.retry_failed(tenant_id => '');
CALL stripe();
SELECT kind, state, retried_at IS NOT NULL AS retried, http_status FROM billing.stripe_outbox
 WHERE subject = 'pgb_plan_free' ORDER BY id;
SELECT count(DISTINCT idempotency_key) AS keys FROM billing.stripe_outbox WHERE subject = 'pgb_plan_free';
SELECT count(*) FROM billing.metrics WHERE stripe_meter_id IS NULL;
SELECT count(*) FROM billing.stripe_dead_letter;

-- a customer: Stripe may have made it all the same (an attempt without an answer came first), so it is looked for, page by page
SELECT FROM unnest('{acme,bolt,clock}'::text[]) t, billing.create_customer(t, t, t || '@a.example', stripe => true,
    stripe_test_clock => CASE t WHEN 'clock' THEN 'clock_1' END) \g /dev/null
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL refuse('acme', 'customer_create', '', 500, NULL, 'An unknown error occurred.');
CALL refuse('bolt', 'customer_create', '', 402, 'card_declined', 'No.');
CALL refuse('clock', 'customer_create', '', 404, 'resource_missing', 'No such test clock.');
SELECT tenant_id, http_status, hint FROM billing.stripe_dead_letter ORDER BY 1;
SELECT billing._stripe_plan();
CALL attempt($$SELECT billing.retry_failed(tenant_id => 'nobody')$$);
SELECT billing.retry_failed('customer_create', 'acme');
SELECT billing.retry_failed();
SELECT tenant_id, kind, method, path, params #- '{created,gte}' AS params FROM requests ORDER BY 1;
SELECT extract(epoch FROM c.created_at - interval '1 hour')::bigint - (f.params #>> '{created,gte}')::bigint AS apart
  FROM billing.stripe_outbox c JOIN billing.stripe_outbox f USING (tenant_id)
 WHERE tenant_id = 'acme' AND c.kind = 'customer_create' AND f.kind = 'customer_find';
-- nothing is made while it is looked for
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'customer_find', '', 'delivered', '{"has_more": true, "data": [{"id": "cus_x", "created": 1, "metadata": {"tenant_id": "other"}}]}');
SELECT params - 'created' AS params FROM requests WHERE tenant_id = 'acme';
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'customer_find', '', 'delivered', '{"has_more": false, "data": [
    {"id": "cus_later", "created": 3, "metadata": {"tenant_id": "acme"}}, {"id": "cus_first", "created": 2, "metadata": {"tenant_id": "acme"}}]}');
CALL settle('bolt', 'customer_find', '', 'delivered', '{"has_more": false, "data": []}');
-- the search may be refused, too
CALL refuse('clock', 'customer_find', '', 400, NULL, 'No.');
SELECT billing._stripe_plan();
SELECT tenant_id, kind FROM requests;
SELECT billing.retry_failed(tenant_id => 'clock');
SELECT tenant_id, kind FROM requests ORDER BY 1;
CALL stripe();
SELECT tenant_id, stripe_customer_id FROM billing.billing_customers ORDER BY 1;

-- a subscription: found it is adopted, else made
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
SELECT id AS acme FROM billing.subscriptions WHERE tenant_id = 'acme' \gset
SELECT id AS bolt FROM billing.subscriptions WHERE tenant_id = 'bolt' \gset
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'subscription_create', :'acme', 'delivered', jsonb_build_object('id', 'sub_made', 'status', 'on holiday',
            'metadata', jsonb_build_object('tenant_id', 'acme', 'subscription_id', :'acme'), 'items', '{"data": []}'::jsonb));
CALL refuse('bolt', 'subscription_create', :'bolt', 400, 'resource_missing', 'No such price.');
SELECT tenant_id, http_status, hint FROM billing.stripe_dead_letter ORDER BY 1;
SELECT billing.retry_failed('subscription_create');
SELECT billing._stripe_plan();
SELECT tenant_id, kind, subject IN (:'acme', :'bolt') AS of_subscription, method, path, params FROM requests ORDER BY 1;
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'subscription_find', :'acme', 'delivered', jsonb_build_object('has_more', false, 'data',
    jsonb_build_array(jsonb_build_object('id', 'sub_other', 'created', 1, 'status', 'active', 'metadata', '{"tenant_id": "acme"}'::jsonb),
        jsonb_build_object('id', 'sub_made', 'created', 2, 'status', 'active', 'items', '{"data": []}'::jsonb,
                           'metadata', jsonb_build_object('tenant_id', 'acme', 'subscription_id', :'acme')))));
CALL settle('bolt', 'subscription_find', :'bolt', 'delivered', '{"has_more": false, "data": []}');
CALL stripe();
SELECT tenant_id, status, replace(stripe_subscription_id, id::text, 'ID') AS at_stripe FROM billing.subscriptions ORDER BY 1;
SELECT tenant_id, count(*) FROM billing.stripe_outbox WHERE kind = 'subscription_create' GROUP BY 1 ORDER BY 1;

UPDATE billing.usage_figures SET due_at = 'infinity';   -- of gauges tells stripe_figures.sql
-- usage: the hour goes on with what it is by then, and to whom the customer is by then
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 1000) \g /dev/null
SELECT FROM billing.record_usage('bolt', 'api_calls', 7) \g /dev/null
SELECT billing.run_rollup();
CALL travel('1 hour');
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 30) \g /dev/null
SELECT billing.run_rollup();
SELECT * FROM billing.stripe_unsubmitted ORDER BY 1, 2;
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
SELECT tenant_id, kind, subject, request, state, attempts, next_attempt_at FROM billing.stripe_waiting ORDER BY 3;
UPDATE billing.billing_customers SET stripe_customer_id = 'cus_mended' WHERE tenant_id = 'bolt';
CALL refuse('bolt', 'meter_event', 'llm_tokens', 400, 'resource_missing', 'No such customer.');
CALL settle('bolt', 'meter_event', 'api_calls', 'retry', '{"error": {"message": "Too many requests."}}', 429, '1 hour');
SELECT subject, state, attempts, next_attempt_at - clock_timestamp() > '50 minutes' AS later, last_error FROM billing.stripe_waiting ORDER BY subject DESC;
SELECT * FROM billing.stripe_unsubmitted ORDER BY 1, 2;
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 5, NULL, '2030-01-31 12:45+00') \g /dev/null
SELECT billing.run_rollup();
SELECT billing.retry_failed('meter_event');
UPDATE billing.stripe_outbox SET not_before = clock_timestamp() WHERE state = 'waiting';
SELECT billing._stripe_plan();
SELECT subject, params -> 'payload' AS payload FROM requests ORDER BY 1;
CALL stripe();
SELECT metric, hour, quantity, submitted, blocked FROM billing.usage_aggregates ORDER BY 1, 2;
SELECT state, retried_at IS NOT NULL AS retried, detail -> 'quantity' AS quantity, params #>> '{payload,stripe_customer_id}' AS customer
  FROM billing.stripe_outbox
 WHERE kind = 'meter_event' AND subject = 'llm_tokens' ORDER BY id;

-- what a webhook led to is fetched as it is now; lines of an invoice with the whole of it
CREATE FUNCTION invoice(has_more boolean) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', 'in_1', 'status', 'open', 'currency', 'usd', 'subtotal', 1, 'total', 1, 'amount_due', 1,
        'amount_paid', 0, 'amount_remaining', 1, 'created', 1, 'lines', jsonb_build_object('has_more', has_more, 'data', '[]'::jsonb))
$$;
SELECT billing.receive_webhook('{"id": "evt_1", "type": "invoice.paid", "data": {"object": {"object": "invoice", "id": "in_1", "customer": "cus_first"}}}');
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL refuse('acme', 'invoice_fetch', 'in_1', 400, 'parameter_unknown', 'Not today.');
SELECT outcome, error FROM billing.webhook_events;
SELECT billing.retry_failed(tenant_id => 'acme');
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'invoice_fetch', 'in_1', 'delivered', invoice(true));
SELECT outcome, error FROM billing.webhook_events;
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL refuse('acme', 'invoice_lines', 'in_1', 404, 'resource_missing', 'No such invoice.');
SELECT billing._stripe_plan();
SELECT billing.retry_failed();
SELECT billing._stripe_plan();
SELECT kind FROM requests;
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('acme', 'invoice_fetch', 'in_1', 'delivered', invoice(true));
SELECT kind FROM requests;
SELECT outcome, error FROM billing.webhook_events;

-- an error that Stripe remembers for the key: after some attempts another request takes the place by itself, with another key
SELECT FROM billing.record_usage('bolt', 'api_calls', 3) \g /dev/null
SELECT billing.run_rollup();
SELECT FROM billing.create_customer('dora', 'dora', 'd@a.example', stripe => true) \g /dev/null
SELECT billing._stripe_plan();
CREATE PROCEDURE remembered(times int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. times LOOP
        PERFORM billing._stripe_claim(100, '0');
        CALL settle('bolt', 'meter_event', 'api_calls', 'renew', '{"error": {"message": "An unknown error occurred."}}', 500);
        CALL settle('dora', 'customer_create', '', 'renew', '{"error": {"message": "An unknown error occurred."}}', 500);
    END LOOP;
END $$;
CALL remembered(5);
SELECT billing._stripe_plan();
SELECT kind, state, attempts FROM billing.stripe_outbox WHERE tenant_id IN ('bolt', 'dora') AND http_status = 500 ORDER BY 1;
CALL remembered(1);
SELECT kind, state, attempts, retried_at IS NOT NULL AS retried FROM billing.stripe_outbox
 WHERE tenant_id IN ('bolt', 'dora') AND http_status = 500 ORDER BY 1;
SELECT count(*) FROM billing.stripe_dead_letter;
SELECT billing._stripe_plan();
SELECT tenant_id, kind, params #>> '{payload,value}' AS value, idempotency_key NOT IN (SELECT o.idempotency_key
         FROM billing.stripe_outbox o WHERE o.http_status = 500) AS new_key
  FROM billing.stripe_outbox WHERE state = 'waiting' AND tenant_id <> 'acme' ORDER BY 1;

-- who may: administrators; a session that is bound to a tenant its own
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL refuse('bolt', 'meter_event', 'api_calls', 400, 'archived_meter', 'Archived.');
SET ROLE billing_app;
CALL attempt($$SELECT billing.retry_failed()$$);
CALL attempt($$SELECT FROM billing.stripe_dead_letter$$);
RESET ROLE;
GRANT EXECUTE ON PROCEDURE attempt TO billing_admin;
SET ROLE billing_admin;
SET pg_billing.tenant_id = 'acme';
CALL attempt($$SELECT billing.retry_failed(tenant_id => 'bolt')$$);
SELECT billing.retry_failed();
SELECT count(*) FROM billing.stripe_dead_letter;
SELECT count(*) FROM billing.stripe_waiting;
SELECT count(*) FROM billing.stripe_unsubmitted;
RESET pg_billing.tenant_id;
SELECT tenant_id, hint FROM billing.stripe_dead_letter;
SELECT billing.retry_failed();
