-- Mode delta: an hour is sent as what it has grown by, and what may have arrived is never sent again before Stripe is asked.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW requests AS
    SELECT kind, subject, method, path, params - 'identifier' - 'event_name' AS params FROM billing.stripe_outbox
     WHERE state IN ('waiting', 'sending') ORDER BY id;
CREATE VIEW hours AS
    SELECT hour, quantity, submitted, blocked FROM billing.usage_aggregates WHERE metric = 'api_calls' ORDER BY hour;
CREATE PROCEDURE use(quantity numeric) LANGUAGE sql AS $$
    SELECT billing.record_usage('acme', 'api_calls', use.quantity); SELECT billing.run_rollup()
$$;
-- The next request is sent, and answered by Stripe, or by nobody.
CREATE PROCEDURE send() LANGUAGE sql AS $$ SELECT billing._stripe_plan(); SELECT count(*) FROM billing._stripe_claim(100, '0') $$;
-- The hour's sum at Stripe, in answer to the request for it.
CREATE PROCEDURE sum_at_stripe(sum text) LANGUAGE plpgsql AS $$
BEGIN
    UPDATE billing.stripe_outbox SET not_before = clock_timestamp() WHERE kind = 'delta_find' AND state = 'waiting';
    PERFORM billing._stripe_claim(100, '0');
    CALL settle('acme', 'delta_find', 'api_calls', 'delivered', CASE WHEN sum IS NULL THEN '{"data": []}'
        ELSE jsonb_build_object('data', jsonb_build_array(jsonb_build_object('aggregated_value', sum::numeric))) END);
END $$;
DELETE FROM billing.price_tiers WHERE metric <> 'api_calls';
DELETE FROM billing.plan_metrics WHERE metric <> 'api_calls';

-- what adds up may be sent so; a raw meter and its price take the place of what was made before
CALL attempt($$UPDATE billing.metrics SET export = 'delta' WHERE name = 'user_seats'$$);
CALL stripe();
SELECT stripe_meter_id, stripe_event_name FROM billing.metrics WHERE name = 'api_calls';
UPDATE billing.metrics SET export = 'delta' WHERE name = 'api_calls';
CALL stripe();
SELECT stripe_meter_id, stripe_event_name FROM billing.metrics WHERE name = 'api_calls';
SELECT params FROM billing.stripe_outbox WHERE kind = 'meter_create' AND subject = 'api_calls' ORDER BY id;
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
CALL attempt($$UPDATE billing.metrics SET export = 'hourly_total' WHERE name = 'api_calls'$$);

-- what came since, more or less
CALL use(1000);
CALL send();
SELECT params FROM requests;
CALL use(50);
CALL settle('acme', 'meter_event', 'api_calls', 'delivered', '{}');
SELECT * FROM hours;
SELECT params FROM requests;
SELECT FROM billing.record_usage('acme', 'api_calls', 30, 'wrong') \g /dev/null
SELECT FROM billing.void_usage('acme', 'wrong', 'test') \g /dev/null
CALL stripe();
SELECT FROM billing.record_usage('acme', 'api_calls', 30, 'late') \g /dev/null
SELECT billing.run_rollup() > 0 AS folded;
CALL stripe();
SELECT FROM billing.void_usage('acme', 'late', 'test') \g /dev/null
SELECT billing.run_rollup() > 0 AS folded;
CALL send();
SELECT params -> 'payload' AS payload FROM requests;
CALL settle('acme', 'meter_event', 'api_calls', 'delivered', '{}');
SELECT * FROM hours;

-- in doubt for a day: not sent again; the hour's sum tells that it had arrived
CALL use(7);
CALL send();
CALL settle('acme', 'meter_event', 'api_calls', 'retry', NULL, NULL);
UPDATE billing.stripe_outbox SET sent_at = sent_at - interval '23 hours 1 minute' WHERE state = 'waiting';
CALL use(100);
SELECT count(*) FROM billing._stripe_claim(100, '0');
SELECT billing._stripe_plan();
SELECT * FROM requests;
CALL sum_at_stripe('1057');
SELECT * FROM hours;
CALL send();
SELECT params -> 'payload' AS payload FROM requests;
-- … that it had not
CALL settle('acme', 'meter_event', 'api_calls', 'retry', NULL, NULL);
UPDATE billing.stripe_outbox SET sent_at = sent_at - interval '23 hours 1 minute' WHERE state = 'waiting';
SELECT billing._stripe_plan();
CALL sum_at_stripe('1057');
SELECT * FROM hours;
CALL send();
SELECT params -> 'payload' AS payload FROM requests;
-- … that there is more than was sent: for somebody to look at, and nothing more of that hour until then
CALL settle('acme', 'meter_event', 'api_calls', 'retry', NULL, NULL);
UPDATE billing.stripe_outbox SET sent_at = sent_at - interval '23 hours 1 minute' WHERE state = 'waiting';
SELECT billing._stripe_plan();
CALL sum_at_stripe('1999');
SELECT kind, error FROM billing.stripe_dead_letter;
SELECT billing._stripe_plan();
SELECT * FROM hours;
SELECT billing.retry_failed();
CALL sum_at_stripe('1157');
SELECT * FROM hours;
SELECT count(*) FROM billing.stripe_dead_letter;

-- an error that may have had an effect: the same, a while later; a refusal had none
CALL use(1);
CALL send();
CALL settle('acme', 'meter_event', 'api_calls', 'failed', '{"error": {"message": "An unknown error occurred."}}', 500);
SELECT billing.retry_failed();
SELECT kind, not_before - created_at > '9 minutes' AS later FROM billing.stripe_outbox WHERE state = 'waiting';
-- a change of plan waits for the answer, too
BEGIN;
SELECT billing.update_subscription('acme', 'enterprise');
SELECT billing._stripe_plan();
SELECT kind FROM billing.stripe_outbox WHERE state = 'waiting' AND tenant_id = 'acme' AND kind <> 'meter_event';
ROLLBACK;
CALL sum_at_stripe('1157');
CALL send();
CALL settle('acme', 'meter_event', 'api_calls', 'failed', '{"error": {"message": "No such customer."}}', 400);
SELECT billing.retry_failed();
CALL send();
SELECT kind, params -> 'payload' AS payload FROM requests;
CALL settle('acme', 'meter_event', 'api_calls', 'delivered', '{}');
SELECT * FROM hours;

-- when not all requests of an hour are kept any more, what Stripe has confirmed counts
BEGIN;
DELETE FROM billing.stripe_outbox WHERE id = (SELECT min(id) FROM billing.stripe_outbox WHERE kind = 'meter_event' AND state = 'delivered' AND tenant_id = 'acme');
SELECT submitted, sent < submitted AS too_little FROM billing._meter_hours('acme', 'api_calls', '2030-01-31', '2030-03-01');
SET LOCAL pg_billing.outbox_retention = '1s';
SELECT submitted, sent FROM billing._meter_hours('acme', 'api_calls', '2030-01-31', '2030-03-01');
ROLLBACK;

-- after the last subscription has ended the mode may change again
SELECT billing.cancel_subscription('acme', false);
CALL stripe();
CALL travel('2 hours');
UPDATE billing.metrics SET export = 'hourly_total' WHERE name = 'api_calls';
SELECT stripe_meter_id, stripe_event_name FROM billing.metrics WHERE name = 'api_calls';
