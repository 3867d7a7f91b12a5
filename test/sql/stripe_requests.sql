-- The outbox: customers, subscriptions and usage become frozen requests; claims, leases, retries and the dead letter.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW requests AS
    SELECT tenant_id, kind, subject, method, path, params - 'identifier' AS params FROM billing.stripe_outbox
     WHERE state IN ('waiting', 'sending');
CALL stripe();

-- a customer, then the subscription; who is not billed through Stripe is left alone
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true, stripe_test_clock => 'clock_1') \g /dev/null
SELECT FROM billing.create_customer('cash', 'Cash', 'c@c.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT FROM billing.create_subscription('bolt', 'free', 'send_invoice', 14) \g /dev/null
SELECT FROM billing.create_subscription('cash', 'free') \g /dev/null
SELECT billing._stripe_plan();
SELECT * FROM requests ORDER BY 1;
SELECT tenant_id, attempt FROM billing._stripe_claim(100, '1 minute') ORDER BY 1;
CALL settle('acme', 'customer_create', '', 'delivered', '{"id": "cus_acme"}');
CALL settle('bolt', 'customer_create', '', 'delivered', '{"id": "cus_bolt"}');
SELECT billing._stripe_plan();
SELECT tenant_id, path, jsonb_pretty(params - 'items') AS params FROM requests ORDER BY 1;
SELECT tenant_id, item FROM requests, jsonb_array_elements(params -> 'items') WITH ORDINALITY i (item, n) ORDER BY 1, n;
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
SELECT id AS acme FROM billing.subscriptions WHERE tenant_id = 'acme' \gset
SELECT answer('acme', 'subscription_create', :'acme', params) AS answer FROM requests WHERE tenant_id = 'acme' \gset
CALL settle('acme', 'subscription_create', :'acme', 'delivered', :'answer');
-- of gauges tells stripe_figures.sql
UPDATE billing.subscription_items i SET figures = tstzrange(s.current_period_start, s.current_period_end)
  FROM billing.subscriptions s WHERE s.id = i.subscription_id;
SELECT tenant_id, status, stripe_subscription_id = concat('sub_', id) AS of_stripe, current_period_start, current_period_end
  FROM billing.subscriptions ORDER BY 1;
SELECT tenant_id, metric, stripe_item_id, stripe_price_id FROM billing.subscription_items ORDER BY 2;
-- one that Stripe refuses stays a wish, with the reason; its quotas stay in force
SELECT id AS bolt FROM billing.subscriptions WHERE tenant_id = 'bolt' \gset
CALL settle('bolt', 'subscription_create', :'bolt', 'failed', '{"error": {"message": "This customer has no address."}}', 400);
SELECT status FROM billing.get_subscription('bolt');
SELECT status, reason FROM billing.check_quota('bolt', 'api_calls');
SELECT kind, state, http_status, error FROM billing.stripe_outbox WHERE tenant_id = 'bolt' AND state = 'failed';
SELECT billing._stripe_plan();

-- usage: whole hours of counters, the oldest first, one open request per customer and metric
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1000) \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 500) \g /dev/null
SELECT FROM billing.record_usage('acme', 'api_calls', 7) \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 7, NULL, '2030-01-31 12:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 9999, NULL, '2030-01-31 11:00+00') \g /dev/null
SELECT FROM billing.record_usage('bolt', 'api_calls', 7) \g /dev/null
SELECT FROM billing.record_usage('cash', 'api_calls', 7) \g /dev/null
SELECT billing.run_rollup();
CALL travel('1 hour');
SELECT FROM billing.record_usage('acme', 'llm_tokens', 30) \g /dev/null
SELECT billing.run_rollup();
SELECT billing._stripe_plan();
SELECT tenant_id, subject, path, params ->> 'event_name' AS event_name, params -> 'payload' AS payload,
       to_timestamp((params ->> 'timestamp')::bigint) AS timestamp FROM requests ORDER BY 2;
SELECT bool_and(params ->> 'identifier' = idempotency_key) AS same_key FROM billing.stripe_outbox WHERE kind = 'meter_event';
SELECT billing._stripe_plan();

-- a retry waits its time, and sends the same bytes under the same key, whatever came after
CREATE TABLE sent AS SELECT * FROM billing._stripe_claim(100, '1 minute');
SELECT tenant_id, attempt, params ->> 'event_name' AS event_name FROM sent ORDER BY 3;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5, NULL, '2030-01-31 12:45+00') \g /dev/null
SELECT billing.run_rollup();
CALL settle('acme', 'meter_event', 'llm_tokens', 'retry', '{"error": {"message": "Too many requests"}}', 429, '1 hour');
SELECT state, attempts, http_status, error, not_before - clock_timestamp() > '50 minutes' AS later
  FROM billing.stripe_outbox WHERE kind = 'meter_event' AND subject = 'llm_tokens';
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
SELECT billing._stripe_next_due() < clock_timestamp() AS now_as_api_calls_is_under_way;
CALL settle('acme', 'meter_event', 'api_calls', 'delivered', '{}');
SELECT billing._stripe_next_due() - clock_timestamp() > '50 minutes' AS later;
SELECT billing._stripe_plan();
UPDATE billing.stripe_outbox SET not_before = clock_timestamp();
SELECT c.attempt, c.params = s.params AS same_bytes, c.idempotency_key = s.idempotency_key AS same_key
  FROM billing._stripe_claim(100, '1 minute') c JOIN sent s USING (tenant_id, id);
CALL settle('acme', 'meter_event', 'llm_tokens', 'delivered', '{}');
SELECT metric, hour, quantity, submitted FROM billing.usage_aggregates WHERE tenant_id = 'acme' AND period_start > '2030-01-31' ORDER BY 1, 2;
-- the hour has grown: its whole total once more, under a new key; then the next hour
SELECT billing._stripe_plan();
SELECT params #>> '{payload,value}' AS value, to_timestamp((params ->> 'timestamp')::bigint) AS timestamp FROM requests;
SELECT c.attempt, s.id IS NULL AS new_key FROM billing._stripe_claim(100, '1 minute') c LEFT JOIN sent s USING (idempotency_key);
CALL settle('acme', 'meter_event', 'llm_tokens', 'delivered', '{}');
SELECT billing._stripe_plan();
SELECT params #>> '{payload,value}' AS value, to_timestamp((params ->> 'timestamp')::bigint) AS timestamp FROM requests;

-- refused for good: the dead letter, and the hour is blocked; other hours go on
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL settle('acme', 'meter_event', 'llm_tokens', 'failed', '{"error": {"message": "No such customer."}}', 400);
SELECT hour, quantity, submitted, blocked FROM billing.usage_aggregates WHERE tenant_id = 'acme' AND metric = 'llm_tokens' AND period_start > '2030-01-31' ORDER BY 1;
SELECT billing._stripe_plan();
CALL travel('1 hour');
SELECT FROM billing.record_usage('acme', 'llm_tokens', 8) \g /dev/null
SELECT billing.run_rollup();
SELECT billing._stripe_plan();
SELECT params #>> '{payload,value}' AS value FROM requests;

-- a sender that died: whoever comes next takes it over at once, unchanged; the dead one's answer comes too late
SELECT id, attempt, params AS first_params, idempotency_key AS first_key FROM billing._stripe_claim(100, '1 hour') \gset
\c -
SELECT attempt, params = :'first_params' AS same_bytes, idempotency_key = :'first_key' AS same_key FROM billing._stripe_claim(100, '1 hour');
SELECT count(*) FROM billing._stripe_claim(100, '1 hour');
SELECT billing._stripe_settle('acme', :id, :attempt, 'failed', 400, NULL, 'late', NULL);
SELECT state, attempts, error FROM billing.stripe_outbox WHERE id = :id;
-- one whose lease is over is taken again by the same sender, too
UPDATE billing.stripe_outbox SET lease_until = clock_timestamp() - interval '1 second' WHERE id = :id;
SELECT attempt FROM billing._stripe_claim(100, '1 hour');
CALL settle('acme', 'meter_event', 'llm_tokens', 'delivered', '{}');
SELECT billing._stripe_settle('acme', :id, 3, 'failed', 400, NULL, 'twice', NULL);
SELECT state, attempts, error FROM billing.stripe_outbox WHERE id = :id;

-- no more than asked for, the oldest first
SELECT FROM generate_series(1, 5) n, billing.create_customer('t' || n, 'T', 't@t.example', stripe => true) \g /dev/null
SELECT billing._stripe_plan();
SELECT tenant_id FROM billing._stripe_claim(2, '1 minute') ORDER BY id;
SELECT tenant_id FROM billing._stripe_claim(2, '1 minute') ORDER BY id;
-- an answer that makes no sense is a dead letter, not a stop
SELECT billing.create_subscription(tenant_id, 'free') FROM billing.billing_customers WHERE tenant_id IN ('t1', 't2') \g /dev/null
CALL settle('t1', 'customer_create', '', 'delivered', '{"id": "cus_t1"}');
CALL settle('t2', 'customer_create', '', 'delivered', '{"id": "cus_t2"}');
SELECT billing._stripe_plan();
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
SELECT id AS t1 FROM billing.subscriptions WHERE tenant_id = 't1' \gset
CALL settle('t1', 'subscription_create', :'t1', 'delivered', jsonb_build_object('id', 'sub_t1', 'status', 'on holiday',
            'metadata', jsonb_build_object('subscription_id', :'t1'), 'items', '{"data": []}'::jsonb));
SELECT state, regexp_replace(error, '"subscriptions_.*"', '...') AS error FROM billing.stripe_outbox WHERE tenant_id = 't1' AND kind = 'subscription_create';
SELECT status, stripe_subscription_id FROM billing.get_subscription('t1');
SELECT billing._stripe_plan();

-- a subscription made in an hour's first seconds is sent when that hour has begun by Stripe's clock, too
SELECT date_trunc('hour', billing.now()) + interval '1 hour 1 second' - billing.now() AS wait \gset
CALL travel(:'wait');
SELECT FROM billing.create_customer('early', 'Early', 'e@e.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('early', 'free') \g /dev/null
SELECT billing._stripe_plan();
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL settle('early', 'customer_create', '', 'delivered', '{"id": "cus_early"}');
SELECT billing._stripe_plan();
SELECT kind, not_before - created_at BETWEEN '2 seconds' AND '5 seconds' AS waits FROM billing.stripe_outbox WHERE tenant_id = 'early' ORDER BY id;

-- requests are kept for pg_billing.outbox_retention after they are settled, but what is open or has failed
INSERT INTO billing.stripe_outbox (tenant_id, kind, subject, method, path, params, idempotency_key, detail, state, settled_at, retried_at)
SELECT 'old', 'customer_fetch', x.subject, 'GET', '/v1/customers/cus_1', '{}', x.subject, '{}', x.state,
       clock_timestamp() - x.age, CASE x.subject WHEN 'retried' THEN clock_timestamp() END
  FROM (VALUES ('open', 'waiting', NULL::interval), ('young', 'delivered', '89 days'), ('old', 'delivered', '91 days'),
               ('failed', 'failed', '91 days'), ('retried', 'failed', '91 days')) x (subject, state, age);
SET pg_billing.outbox_retention = -1;
SELECT billing.maintain();
SELECT count(*) FROM billing.stripe_outbox WHERE tenant_id = 'old';
RESET pg_billing.outbox_retention;
SELECT billing.maintain();
SELECT subject FROM billing.stripe_outbox WHERE tenant_id = 'old' ORDER BY 1;

-- many answers at once: delivered usage is followed by its next hour; an answer to an attempt that was given up changes nothing
SELECT FROM billing.create_customer('many', 'Many', 'm@m.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('many', 'standard') \g /dev/null
CALL stripe();
CALL travel('5 hours');
SELECT FROM unnest('{api_calls,llm_tokens}'::text[]) m, generate_series(1, 2) h,
            LATERAL (SELECT billing.record_usage('many', m, 100 * h, NULL, billing.now() - h * interval '1 hour')) u \g /dev/null
SELECT billing.run_rollup();
SELECT billing._stripe_plan() > 0 AS planned;
SELECT count(*) > 0 AS claimed FROM billing._stripe_claim(100, '1 minute');
CREATE VIEW usage_requests AS
    SELECT subject, params #>> '{payload,value}' AS value, state, error, http_status, settled_at IS NOT NULL AS settled, response
      FROM billing.stripe_outbox WHERE tenant_id = 'many' AND kind = 'meter_event' AND subject IN ('api_calls', 'llm_tokens') ORDER BY id;
SELECT billing._stripe_settle_all(jsonb_agg(jsonb_build_object('tenant_id', o.tenant_id, 'id', o.id::text, 'attempt', o.attempts + 1,
           'outcome', 'delivered', 'http_status', 200, 'response', '{}'::jsonb, 'retry_in', '0 milliseconds')))
  FROM billing.stripe_outbox o WHERE o.tenant_id = 'many' AND o.state = 'sending';
SELECT * FROM usage_requests;
SELECT billing._stripe_settle_all(jsonb_agg(CASE o.subject
           WHEN 'api_calls' THEN jsonb_build_object('tenant_id', o.tenant_id, 'id', o.id::text, 'attempt', o.attempts,
               'outcome', 'delivered', 'http_status', 200, 'response', '{"object": "billing.meter_event"}'::jsonb, 'retry_in', '0 milliseconds')
           ELSE jsonb_build_object('tenant_id', o.tenant_id, 'id', o.id::text, 'attempt', o.attempts,
               'outcome', 'retry', 'error', 'no answer', 'retry_in', '1000 milliseconds') END))
  FROM billing.stripe_outbox o WHERE o.tenant_id = 'many' AND o.state = 'sending';
SELECT * FROM usage_requests;
SELECT not_before > clock_timestamp() AS later FROM billing.stripe_outbox WHERE tenant_id = 'many' AND error = 'no answer';
