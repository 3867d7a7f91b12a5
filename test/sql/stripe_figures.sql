-- What does not add up over hours at Stripe: gauges, maxima and last values have one figure per billing period.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
-- what was sent since it was looked at last; averages up to the present are shown without decimals
CREATE TABLE seen AS SELECT 0::bigint AS id;
CREATE PROCEDURE show() LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT o.*, o.params #>> '{payload,value}' AS value, to_timestamp((o.params ->> 'timestamp')::bigint) AS at
               FROM billing.stripe_outbox o WHERE o.id > (SELECT max(s.id) FROM seen s) ORDER BY o.id LOOP
        RAISE INFO '%', concat_ws(' ', r.tenant_id, r.kind, r.subject, CASE WHEN r.subject = 'storage_gb' THEN round(r.value::numeric)::text ELSE r.value END,
                                   date_trunc('minute', r.at + interval '30 seconds'));
    END LOOP;
    INSERT INTO seen SELECT max(o.id) FROM billing.stripe_outbox o;
END $$;
CREATE PROCEDURE travel_to(at timestamptz) LANGUAGE sql AS $$ CALL travel(at - billing.now()) $$;

INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name) VALUES
    ('peak_jobs', 'Jobs at once', 'counter', 'jobs', 'max', 0, 'peak_jobs'), ('balance', 'Balance', 'counter', 'units', 'last', 0, 'balance');
INSERT INTO billing.plan_metrics (plan, metric, cap) VALUES ('standard', 'peak_jobs', 'none'), ('standard', 'balance', 'none');
INSERT INTO billing.price_tiers (plan, metric, ordinal, unit_amount) VALUES ('standard', 'peak_jobs', 1, 5), ('standard', 'balance', 1, 5);
DELETE FROM billing.price_tiers WHERE metric IN ('llm_tokens', 'agent_executions');
DELETE FROM billing.plan_metrics WHERE metric IN ('llm_tokens', 'agent_executions');
CALL stripe();
SELECT subject, params #>> '{default_aggregation,formula}' AS formula, params ->> 'event_time_window' AS per
  FROM billing.stripe_outbox WHERE kind = 'meter_create' ORDER BY 1;

INSERT INTO seen SELECT max(o.id) FROM billing.stripe_outbox o;
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 40, NULL, '2030-01-31 12:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', 30, NULL, '2030-01-31 12:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', -5, NULL, '2030-01-31 12:10+00') \g /dev/null
SELECT FROM unnest('{7,12,9}'::int[]) n, billing.record_usage('acme', 'peak_jobs', n) \g /dev/null
SELECT FROM unnest('{3,8}'::int[]) n, billing.record_usage('acme', 'balance', n) \g /dev/null
SELECT billing.run_rollup();
-- nothing in the first hour; then each once, and not again while it stays what it is
CALL stripe();
SELECT metric, period_start, period_end, due_at FROM billing.usage_figures ORDER BY 1;
CALL show();
CALL travel('1 hour');
CALL stripe();
CALL show();
CALL travel('1 hour');
SELECT FROM billing.record_usage('acme', 'peak_jobs', 4) \g /dev/null
CALL stripe();
CALL show();
-- what changed is sent once an hour
SELECT FROM billing.record_usage('acme', 'peak_jobs', 14) \g /dev/null
CALL stripe();
CALL show();
CALL travel('1 hour');
CALL stripe();
CALL show();

-- the end of the period: what it bills, in its last hour, although nothing is rolled up
CALL travel_to('2030-02-14 12:30+00');
SELECT FROM billing.record_usage('acme', 'storage_gb', 20, NULL, '2030-02-14 12:00+00') \g /dev/null
CALL travel_to('2030-02-28 12:05+00');
CALL stripe();
CALL show();
SELECT metric, submitted, due_at, billing.get_billable_usage('acme', metric, 'previous') = submitted AS as_read FROM billing.usage_figures
 WHERE period_end = '2030-02-28 12:00+00' ORDER BY 1;
-- the next one: levels go on, and no usage is a figure, too
CALL travel('1 hour');
CALL stripe();
CALL show();
-- late usage corrects the figure of its period, and of those after it that it changes
SELECT billing.run_rollup() > 0 AS folded;
CALL stripe();
CALL show();
SELECT FROM billing.record_usage('acme', 'user_seats', 10, NULL, '2030-02-27 10:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', -10, NULL, '2030-02-27 11:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'balance', 99, NULL, '2030-02-28 11:00+00') \g /dev/null
CALL stripe();
CALL show();
SELECT billing.run_rollup();
CALL stripe();
CALL show();

-- refused: nothing more of it until it is retried
SELECT FROM billing.record_usage('acme', 'balance', 100, NULL, '2030-02-28 11:30+00') \g /dev/null
SELECT billing.run_rollup();
SELECT billing._stripe_plan() > 0 AS planned;
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL settle('acme', 'meter_event', 'balance', 'failed', '{"error": {"message": "No such customer."}}', 400);
SELECT FROM billing.record_usage('acme', 'balance', 101, NULL, '2030-02-28 11:40+00') \g /dev/null
SELECT billing.run_rollup();
CALL stripe();
SELECT submitted, blocked FROM billing.usage_figures WHERE metric = 'balance' AND period_end = '2030-02-28 12:00+00';
SELECT billing.retry_failed();
CALL stripe();
CALL show();

-- a change of plan: the old price bills what it has come to, the new one the rest, which together is the whole period's figure
CALL travel_to('2030-03-14 12:30+00');
SELECT FROM billing.record_usage('acme', 'user_seats', 5, NULL, '2030-03-14 12:10+00') \g /dev/null
SELECT billing.update_subscription('acme', 'enterprise');
CALL stripe();
CALL show();
SELECT metric, since IS NOT NULL AS changed, round(counted) AS counted FROM billing.subscription_items WHERE metric IN ('storage_gb', 'user_seats') ORDER BY 1;
SELECT FROM billing.record_usage('acme', 'user_seats', 6, NULL, billing.now()) \g /dev/null
CALL travel_to('2030-03-31 12:05+00');
CALL stripe();
CALL show();
SELECT o.params #>> '{payload,value}' = trim_scale(f.submitted - i.counted)::text AS the_rest, f.submitted
  FROM billing.stripe_outbox o, billing.usage_figures f, billing.subscription_items i
 WHERE o.id = (SELECT max(id) FROM billing.stripe_outbox WHERE subject = 'storage_gb') AND f.metric = 'storage_gb'
   AND f.period_end = '2030-03-31 12:00+00' AND i.metric = f.metric;

-- an end is such a change; afterwards nothing is due
CALL travel_to('2030-04-15 12:30+00');
CALL stripe();
CALL show();
SELECT billing.cancel_subscription('acme', false);
CALL stripe();
CALL show();
CALL travel_to('2030-05-15 12:30+00');
CALL stripe();
CALL show();
SELECT count(*) FROM billing.usage_figures WHERE period_start >= '2030-04-30';
SELECT count(*) FROM billing.usage_figures WHERE due_at <= billing.now();

-- a change of plan in the first minutes of a period: the last figures of the one before go first, also one that was put back
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('bolt', 'standard') \g /dev/null
CALL stripe();
CALL travel_to('2030-06-14 12:30+00');
SELECT FROM billing.record_usage('bolt', 'user_seats', 30, NULL, '2030-06-14 12:10+00') \g /dev/null
CALL stripe();
INSERT INTO seen SELECT max(o.id) FROM billing.stripe_outbox o;
CALL travel_to('2030-06-15 12:10+00');
SELECT FROM billing.record_usage('bolt', 'user_seats', 9, NULL, '2030-06-15 11:30+00') \g /dev/null
SELECT billing.update_subscription('bolt', 'enterprise');
SELECT billing._stripe_plan() > 0 AS planned;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('bolt', 'meter_event', 'user_seats', 'renew', '{"error": {"message": "Stored."}}', 500);
UPDATE billing.stripe_outbox SET attempts = 6, state = 'sending' WHERE tenant_id = 'bolt' AND subject = 'user_seats' AND state = 'waiting';
CALL settle('bolt', 'meter_event', 'user_seats', 'renew', '{"error": {"message": "Stored."}}', 500);
CALL stripe();
CALL show();
SELECT plan, stripe_plan FROM billing.subscriptions WHERE tenant_id = 'bolt';
