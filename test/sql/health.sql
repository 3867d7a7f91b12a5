-- What health() finds: each thing it looks at is broken, found, and mended.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE FUNCTION found(IN the_area text DEFAULT NULL, OUT severity text, OUT problem text, OUT hint text) RETURNS SETOF record LANGUAGE sql AS $$
    SELECT h.severity, regexp_replace(h.problem, 'time_shift is \S+', 'time_shift is …'), h.hint FROM billing.health() h
     WHERE the_area IS NULL AND h.area <> 'settings' AND h.problem !~ 'database_workers' OR h.area = the_area
$$;
SELECT * FROM found();
-- this server's own
SELECT severity, problem, hint FROM found('settings') ORDER BY problem;
SET synchronous_commit = off;
SET pg_billing.dedup_window = '34d';
SET pg_billing.event_retention = '35d';
SELECT problem FROM found('settings') WHERE problem !~ '^(fsync|full_page|pg_billing.time_shift)';
RESET synchronous_commit;
SET pg_billing.dedup_window = '35d';
SET pg_billing.event_retention = '36d';
SELECT problem FROM found('settings') WHERE problem !~ '^(fsync|full_page|pg_billing.time_shift)';
RESET pg_billing.event_retention;
SELECT severity, problem, hint FROM found('workers');

-- plans, keys, files, channels
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
UPDATE billing.price_tiers SET up_to = 5 WHERE plan = 'standard' AND metric = 'api_calls' AND ordinal = 2;
SELECT * FROM found();
UPDATE billing.price_tiers SET up_to = NULL WHERE plan = 'standard' AND metric = 'api_calls' AND ordinal = 2;
SELECT FROM billing.create_api_key('acme', expires_at => billing.now() + interval '8 days') \g /dev/null
SELECT * FROM found();
CALL travel('2 days');
SELECT severity, regexp_replace(problem, 'key \S+', 'key …') AS problem, hint FROM found();
UPDATE billing.api_keys SET revoked_at = billing.now();
SELECT * FROM found();
UPDATE billing.metrics SET export = 'file' WHERE name = 'api_calls';
SELECT * FROM found();
UPDATE billing.metrics SET export = 'hourly_total' WHERE name = 'api_calls';
SELECT FROM billing.create_channel('email', 'ops@a.example', 'acme') \g /dev/null
SELECT * FROM found();
UPDATE billing.notification_channels SET enabled = false, disabled_reason = 'it answers 410 Gone';
SELECT * FROM found();
DELETE FROM billing.notification_channels;

-- Stripe
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true), billing.create_subscription('bolt', 'standard') \g /dev/null
SELECT * FROM found();
CREATE VIEW others AS SELECT * FROM found() WHERE problem !~ '^nothing is submitted';
CALL stripe();
TABLE others;
UPDATE billing.stripe_outbox SET settled_at = settled_at - interval '61 minutes' WHERE kind = 'subscription_create';
TABLE others;
SELECT FROM billing.receive_webhook('{"id": "evt_1", "object": "event", "type": "invoice.paid", "livemode": false, "created": 1896091200,
                                      "data": {"object": {"object": "invoice", "id": "in_1", "customer": "cus_bolt"}}}') \g /dev/null
TABLE others;
UPDATE billing.webhook_events SET opened_at = opened_at - interval '16 minutes';
TABLE others;
UPDATE billing.webhook_events SET processed_at = clock_timestamp(), outcome = 'failed', error = 'no such customer';
TABLE others;
UPDATE billing.webhook_events SET outcome = 'applied', error = NULL;
SELECT FROM billing.record_usage('bolt', 'api_calls', 7) \g /dev/null
SELECT billing.run_rollup();
CALL travel('23 hours');
TABLE others;
CALL travel('3 hours');
TABLE others;
SELECT billing._stripe_plan() > 0 AS planned;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('bolt', 'meter_event', 'api_calls', 'failed', '{"error": {"message": "No such meter."}}', 400);
UPDATE billing.stripe_outbox SET created_at = created_at - interval '61 minutes' WHERE state = 'sending';
TABLE others;
INSERT INTO billing.catalog_drift VALUES ('price', 'price_1', 'price_1 was archived', billing.now());
SELECT problem FROM others WHERE problem ~ 'somebody';
INSERT INTO billing.drift (tenant_id, reconciliation_id, metric, kind, period_start, hour, found_at)
VALUES ('bolt', 1, 'api_calls', 'stripe', billing.now(), billing.now(), billing.now());
SELECT problem FROM others WHERE problem ~ 'differences';
UPDATE billing.rollup_state SET held_back = true;
SELECT problem FROM others WHERE problem ~ 'dropped';

-- who monitors may ask
SET ROLE billing_admin;
SELECT count(*) > 0 AS answered FROM billing.health();
RESET ROLE;
SET ROLE pg_monitor;
SELECT count(*) > 0 AS answered FROM billing.health();
RESET ROLE;
SET ROLE billing_tenant;
CALL attempt('SELECT billing.health()');
