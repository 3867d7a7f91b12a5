-- What is not kept for ever: idempotency keys (billing.prune_keys) and days of events (billing.maintain).
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\set stripe :tests /lib/stripe.sql
\set truth :tests /lib/truth.sql
\i :begin
\i :stripe
\i :truth
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'enterprise') \g /dev/null
CREATE VIEW days AS
    SELECT count(*), min(relname), max(relname) FROM pg_class WHERE relname ~ '^usage_events_\d+$' AND relkind = 'r';
CREATE PROCEDURE use(metric text, quantity numeric, at timestamptz DEFAULT NULL) LANGUAGE sql AS $$
    SELECT billing.record_usage('acme', metric, quantity, NULL, at)
$$;
CREATE FUNCTION use(key text) RETURNS text LANGUAGE sql AS $$
    SELECT status FROM billing.record_usage('acme', 'api_calls', 1, key)
$$;
-- Sweeps over all 16 partitions of the keys once, as the worker does in the course of 16 hours.
CREATE FUNCTION prune(max_rows int DEFAULT 5000, OUT pruned bigint, OUT calls int, OUT most_at_once bigint) LANGUAGE plpgsql AS $$
DECLARE
    parts int := 0;
    n bigint;
BEGIN
    pruned := 0;
    calls := 0;
    WHILE parts < 16 LOOP
        n := billing.prune_keys(max_rows);
        pruned := pruned + n;
        calls := calls + 1;
        most_at_once := greatest(most_at_once, n);
        parts := parts + (n < max_rows)::int;
    END LOOP;
END $$;

-- keys are remembered for as long as is set, and a little longer
SHOW pg_billing.dedup_window;
SELECT billing.run_rollup();
SELECT use('old');
SELECT * FROM prune();
CALL travel('1 day');
SELECT billing.run_rollup();
SELECT use('young');
CALL travel('34 days 23 hours');
SELECT * FROM prune();
SELECT use('old');
CALL travel('2 hours');
SELECT * FROM prune();
SELECT use('young');
-- after that an event counts again
SELECT use('old');
SELECT use('old');
SELECT billing.get_current_usage('acme', 'api_calls');
-- the age of a key is not that of its tick, which stays open when no rollup runs for long
CALL travel('35 days');
SELECT * FROM prune();
SELECT billing.run_rollup();
SELECT * FROM prune();
CALL travel('35 days');
SET pg_billing.dedup_window = -1;
SELECT * FROM prune();
RESET pg_billing.dedup_window;
SELECT * FROM prune();
SELECT use('old'), use('young');
-- in small batches, each going on where the last one stopped
SELECT count(use('key ' || n)) FROM generate_series(1, 3000) n;
SELECT billing.run_rollup();
CALL travel('1 day');
SELECT billing.run_rollup();
SELECT count(use('new ' || n)) FROM generate_series(1, 100) n;
CALL travel('35 days');
SELECT billing.prune_keys(20) > 0 AS some;
SELECT sweep_part, sweep_block FROM billing.rollup_state;
SELECT calls > 32 AS many_calls, most_at_once < 200 AS small_batches FROM prune(20);
SELECT count(*) FROM billing.usage_event_keys;

-- events are kept for ever, unless told otherwise
SHOW pg_billing.event_retention;
SELECT billing.now()::date AS today, billing.run_rollup();
SELECT billing.maintain();
SELECT * FROM days;
-- not for so short a time that events may still be added to their hours
SET pg_billing.event_retention = '35d';
SELECT billing.maintain();
SELECT count FROM days;
-- the oldest hour that may still change does so right
SET pg_billing.event_retention = '36d';
CALL use('user_seats', 3, billing.now() - interval '25 min');
CALL use('user_seats', -3, billing.now() - interval '10 min');
SELECT billing.run_rollup();
CALL travel('1 day');
SELECT billing.run_rollup();
CALL travel('33 days 23 hours');
SELECT billing.run_rollup();
SELECT billing.maintain();
SELECT * FROM days;
CALL use('user_seats', 1, billing.now() - interval '34 days 23 hours 20 min');
SELECT billing.run_rollup();
SELECT hour, quantity, peak FROM billing.usage_aggregates WHERE metric = 'user_seats';
SELECT count(*) FROM billing.usage_gauge_changes;
CREATE TABLE before AS SELECT metric, billing.get_current_usage('acme', metric, at) AS used,
       billing.get_billable_usage('acme', metric, at) AS billable
  FROM (SELECT name FROM billing.metrics) m (metric), unnest(ARRAY['2030-02-15', '2030-05-15', '2030-06-15']) at;
-- then it goes, whole days at a time; aggregates stay
CALL travel('1 day 2 hours');
SELECT billing.run_rollup();
SELECT billing.maintain();
SELECT * FROM days;
CALL travel('2 days');
SELECT billing.run_rollup();
SELECT billing.maintain();
SELECT * FROM days;
SELECT count(*) FROM billing.usage_events;
SELECT count(*) FROM billing.usage_gauge_changes;
SELECT count(*) AS differences FROM (TABLE before EXCEPT
    SELECT metric, billing.get_current_usage('acme', metric, at), billing.get_billable_usage('acme', metric, at)
      FROM (SELECT name FROM billing.metrics) m (metric), unnest(ARRAY['2030-02-15', '2030-05-15', '2030-06-15']) at) d;

-- not what is not rolled up, however old it is
SELECT use('late');
CALL travel('40 days');
SELECT billing.maintain();
SELECT tableoid::regclass, quantity FROM billing.usage_events WHERE idempotency_key = 'late';
SELECT billing.run_rollup();
SELECT billing.maintain();
SELECT count(*) FROM billing.usage_events;
CALL travel('37 days');
SELECT billing.run_rollup();
SELECT billing.maintain();
SELECT count(*) FROM billing.usage_events;

-- nor what has not reached Stripe, of which it warns once
SELECT FROM billing.create_customer('paid', 'Paid', 'p@p.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('paid', 'standard') \g /dev/null
CALL stripe();
SELECT FROM billing.record_usage('paid', 'api_calls', 7) \g /dev/null
SELECT FROM billing.record_usage('paid', 'storage_gb', 1) \g /dev/null
SELECT billing.run_rollup();
CALL travel('1 day');
SELECT billing.run_rollup();
CALL travel('37 days');
SELECT billing.run_rollup();
CALL attempt('SELECT billing.maintain()');
CALL attempt('SELECT billing.maintain()');
SELECT count(*) FROM billing.usage_events;
CALL stripe();
SELECT billing.maintain();
SELECT count(*) FROM billing.usage_events;
SELECT metric, quantity, submitted FROM billing.usage_aggregates WHERE tenant_id = 'paid';
-- what Stripe has refused for good is settled, too
SELECT FROM billing.record_usage('paid', 'api_calls', 9) \g /dev/null
SELECT billing.run_rollup();
CALL travel('1 day');
SELECT billing.run_rollup();
CALL travel('37 days');
SELECT billing.run_rollup();
CALL attempt('SELECT billing.maintain()');
UPDATE billing.usage_aggregates SET blocked = true WHERE quantity = 9;
SELECT billing.maintain();
SELECT count(*) FROM billing.usage_events;
-- a day somebody else depends on stays, and keeps nothing else from being done
SELECT FROM billing.record_usage('acme', 'api_calls', 1) \g /dev/null
SELECT relname AS day FROM pg_class WHERE oid = (SELECT max(tableoid) FROM billing.usage_events) \gset
CREATE VIEW dependent AS SELECT * FROM billing.:"day";
SELECT billing.run_rollup();
CALL travel('1 day');
SELECT billing.run_rollup();
CALL travel('37 days');
SELECT billing.run_rollup();
SELECT billing.maintain();
SELECT count(*) AS events, (SELECT count(*) FROM pg_class WHERE relname = 'usage_events_' || to_char(billing.now(), 'YYYYMMDD')) AS today
  FROM billing.usage_events;
