-- Mode delta_stream: each row of the outbox is one event for the event stream, and otherwise what a delta is.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW hours AS
    SELECT hour, quantity, submitted, blocked FROM billing.usage_aggregates WHERE metric = 'api_calls' ORDER BY hour;
CREATE PROCEDURE use(quantity numeric) LANGUAGE sql AS $$
    SELECT billing.record_usage('acme', 'api_calls', use.quantity); SELECT billing.run_rollup()
$$;
DELETE FROM billing.price_tiers WHERE metric NOT IN ('api_calls', 'llm_tokens');
DELETE FROM billing.plan_metrics WHERE metric NOT IN ('api_calls', 'llm_tokens');

-- of what adds up only, as deltas
CALL attempt($$UPDATE billing.metrics SET export = 'delta_stream' WHERE name = 'user_seats'$$);
UPDATE billing.metrics SET export = 'delta_stream' WHERE name = 'api_calls';
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
SELECT params FROM billing.stripe_outbox WHERE kind = 'meter_create' AND subject = 'api_calls';

-- the stream and the rest are claimed by themselves; the event is JSON as the API v2 has it
SELECT FROM billing.record_usage('acme', 'llm_tokens', 7) \g /dev/null
CALL use(1000);
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT path FROM billing._stripe_claim(100, '1 minute', false);
SELECT method, path, params - 'identifier' AS params, params ->> 'identifier' = idempotency_key AS known_by_its_key
  FROM billing._stripe_claim(100, '1 minute', true);
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL use(50);
CALL settle('acme', 'meter_event', 'api_calls', 'delivered', '{}');
SELECT * FROM hours;
SELECT params -> 'payload' AS payload FROM billing.stripe_outbox WHERE state = 'waiting';
CALL stripe();
SELECT * FROM hours;

-- what the stream had accepted and Stripe could not count is found by its identifier
SELECT idempotency_key AS key FROM billing.stripe_outbox WHERE kind = 'meter_event' AND subject = 'api_calls' ORDER BY id LIMIT 1 \gset
SELECT billing._apply_meter_errors(jsonb_build_object('id', 'evt_1', 'data', jsonb_build_object('reason', jsonb_build_object('error_types',
    jsonb_build_array(jsonb_build_object('code', 'meter_event_customer_not_found', 'error_count', 1, 'sample_errors',
        jsonb_build_array(jsonb_build_object('error_message', 'no', 'request', jsonb_build_object('identifier', :'key')))))))));
SELECT * FROM hours;
SELECT kind, subject, request, error FROM billing.stripe_dead_letter;
SELECT billing.retry_failed();
CALL stripe();
SELECT * FROM hours;

-- the stream leads to the meter that deltas have: between the two a metric changes whoever subscribes it
UPDATE billing.metrics SET export = 'delta' WHERE name = 'api_calls';
SELECT stripe_meter_id, stripe_event_name FROM billing.metrics WHERE name = 'api_calls';
CALL use(1);
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT path, params -> 'payload' AS payload FROM billing._stripe_claim(100, '1 minute');
CALL stripe();
UPDATE billing.metrics SET export = 'delta_stream' WHERE name = 'api_calls';
CALL use(2);
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT path, params -> 'payload' AS payload FROM billing._stripe_claim(100, '1 minute');
CALL stripe();
SELECT * FROM hours;
CALL attempt($$UPDATE billing.metrics SET export = 'hourly_total' WHERE name = 'api_calls'$$);

-- the address is for superusers
CREATE ROLE nobody_special;
SET ROLE nobody_special;
CALL attempt('SHOW pg_billing.stripe_stream_base');
RESET ROLE;
DROP ROLE nobody_special;
