-- Gauges: a level that is raised, lowered and stated; never below zero.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
CREATE FUNCTION answer(d billing.decision) RETURNS text LANGUAGE sql AS
    'SELECT concat_ws('' '', d.status, d.reason, d.used, ''of'', d.quota, d.cap, d.warning)';
CREATE VIEW level AS
    SELECT (billing.check_quota('acme', 'user_seats', 0)).used AS counter, billing.get_current_usage('acme', 'user_seats') AS rows,
           (SELECT count(*) FROM billing.usage_events) AS events;

-- stated: recorded as the difference; past the cap, too, for it is so
SELECT * FROM billing.set_usage('acme', 'user_seats', 2);
SELECT answer(billing.set_usage('acme', 'user_seats', 5, 'count-1', billing.now() - interval '1 hour', '{"by": "census"}'));
SELECT answer(billing.set_usage('acme', 'user_seats', 1));
SELECT answer(billing.set_usage('acme', 'user_seats', 1));
SELECT metric, quantity, idempotency_key, occurred_at < recorded_at AS late, properties, period_start FROM billing.usage_events ORDER BY tick, recorded_at;
TABLE level;
-- a known key changes nothing
SELECT answer(billing.set_usage('acme', 'user_seats', 3, 'count-1'));
SELECT answer(billing.record_usage('acme', 'user_seats', 3, 'count-1'));
TABLE level;
-- what is held is not used
SELECT status, used FROM billing.reserve('acme', 'user_seats', 1);
SELECT answer(billing.set_usage('acme', 'user_seats', 2));
TABLE level;
-- what the transaction did itself is part of the level
BEGIN;
SELECT answer(billing.record_usage('acme', 'user_seats', 4));
SELECT answer(billing.record_usage('acme', 'user_seats', -1));
SAVEPOINT s;
SELECT answer(billing.set_usage('acme', 'user_seats', 0));
SELECT answer(billing.set_usage('acme', 'user_seats', 7));
ROLLBACK TO s;
SELECT answer(billing.set_usage('acme', 'user_seats', 1));
SELECT answer(billing.set_usage('acme', 'user_seats', 3));
COMMIT;
TABLE level;
BEGIN;
SELECT answer(billing.set_usage('acme', 'user_seats', 0));
ROLLBACK;
TABLE level;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory';

-- never below zero
CALL attempt($$SELECT billing.record_usage('acme', 'user_seats', -4)$$);
CALL attempt($$SELECT billing.try_consume('acme', 'user_seats', -4)$$);
CALL attempt($$SELECT billing.consume('acme', 'user_seats', -4)$$);
CALL attempt($$SELECT billing.check_quota('acme', 'user_seats', -4)$$);
SELECT answer(billing.check_quota('acme', 'user_seats', -3));
SELECT answer(billing.record_usage('acme', 'user_seats', -3));
CALL attempt($$SELECT billing.record_usage('acme', 'user_seats', -1)$$);
CALL attempt($$SELECT billing.record_usage('acme', 'storage_gb', -0.000000001)$$);
TABLE level;
-- counting what the transaction itself raised and lowered, and got back
BEGIN;
SELECT answer(billing.record_usage('acme', 'user_seats', 2));
SELECT answer(billing.record_usage('acme', 'user_seats', -1));
CALL attempt($$SELECT billing.record_usage('acme', 'user_seats', -2)$$);
SELECT answer(billing.check_quota('acme', 'user_seats', -1));
CALL attempt($$SELECT billing.check_quota('acme', 'user_seats', -2)$$);
SAVEPOINT s;
SELECT answer(billing.record_usage('acme', 'user_seats', 5));
SELECT answer(billing.record_usage('acme', 'user_seats', -4));
ROLLBACK TO s;
SAVEPOINT s;
SELECT answer(billing.record_usage('acme', 'user_seats', -1));
CALL attempt($$SELECT billing.record_usage('acme', 'user_seats', -1)$$);
ROLLBACK TO s;
SELECT answer(billing.record_usage('acme', 'user_seats', -1));
CALL attempt($$SELECT billing.record_usage('acme', 'user_seats', -1)$$);
COMMIT;
TABLE level;
-- a known key lowers nothing, and is no reason to refuse more than it would be otherwise
SELECT answer(billing.record_usage('acme', 'user_seats', 2, 'two'));
SELECT answer(billing.record_usage('acme', 'user_seats', -2, 'two'));
SELECT answer(billing.record_usage('acme', 'user_seats', -2));
TABLE level;
-- in a batch each event is as if it came alone, in the order given; a key that is rejected is not used up
CREATE FUNCTION batch(VARIADIC e text[]) RETURNS TABLE (ordinal int, idempotency_key text, status text, reason text) LANGUAGE sql AS $$
    SELECT b.* FROM (SELECT jsonb_agg(jsonb_build_object('tenant_id', 'acme', 'metric', 'user_seats',
                                                         'idempotency_key', split_part(x, ' ', 1), 'quantity', split_part(x, ' ', 2)::int) ORDER BY n) AS events
                       FROM unnest(e) WITH ORDINALITY u (x, n)) j, billing.record_usage_batch(j.events) b
$$;
SELECT * FROM batch('b9 2', 'b8 -3', 'b7 -1', 'b6 -5', 'b6 1', 'b6 1', 'b5 -2', 'b4 -1', 'b9 -7');
TABLE level;
SELECT * FROM batch('b8 1', 'b4 -1', 'b6 -1', 'b3 -1');
TABLE level;
-- loaded anew from what is rolled up and what is not (another scale is another counter)
SELECT answer(billing.set_usage('acme', 'user_seats', 2));
SELECT billing.run_rollup() > 0 AS rolled_up;
SELECT answer(billing.record_usage('acme', 'user_seats', 1));
UPDATE billing.metrics SET scale = 1 WHERE name = 'user_seats';
CALL attempt($$SELECT billing.record_usage('acme', 'user_seats', -3.1)$$);
SELECT answer(billing.record_usage('acme', 'user_seats', -3));
SELECT answer(billing.set_usage('acme', 'user_seats', 0.5));
TABLE level;
-- one that was left below zero by somebody else can be raised and stated
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name)
VALUES ('disks', 'Disks', 'gauge', 'disks', 'max', 0, 'disks');
SELECT FROM billing.set_quota('acme', 'disks', 3) \g /dev/null
SET session_replication_role = replica;
INSERT INTO billing.usage_events (tick, occurred_at, recorded_at, period_start, tenant_id, metric, quantity)
VALUES (billing.now(), billing.now(), billing.now(), '-infinity', 'acme', 'disks', -2);
RESET session_replication_role;
CALL attempt($$SELECT billing.record_usage('acme', 'disks', -1)$$);
SELECT answer(billing.try_consume('acme', 'disks', 1));
CALL attempt($$SELECT billing.record_usage('acme', 'disks', -1)$$);
SELECT answer(billing.set_usage('acme', 'disks', 1));
SELECT answer(billing.try_consume('acme', 'disks', -1));

-- what is refused
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', -1)$$);
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', NULL)$$);
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 'NaN')$$);
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 0.05)$$);
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 1e15)$$);
CALL attempt($$SELECT billing.set_usage('acme', 'api_calls', 1)$$);
CALL attempt($$SELECT billing.set_usage('acme', 'nothing', 1)$$);
CALL attempt($$SELECT billing.set_usage('nobody', 'user_seats', 1)$$);
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 1, '')$$);
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 1, NULL, '2020-01-01')$$);
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 1, NULL, NULL, '[]')$$);
BEGIN READ ONLY;
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 1)$$);
COMMIT;
TABLE level;
SET pg_billing.tenant_id = 'other';
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 1)$$);
RESET pg_billing.tenant_id;
CREATE ROLE gauges_tenant LOGIN IN ROLE billing_tenant;
SET ROLE gauges_tenant;
CALL attempt($$SELECT billing.set_usage('acme', 'user_seats', 1)$$);
RESET ROLE;
DROP ROLE gauges_tenant;

-- what lowered a gauge and is sent again is known, whatever is left to lower
SELECT FROM billing.create_customer('twice', 'Twice', 't@t.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('twice', 'free') \g /dev/null
SELECT status, used FROM billing.record_usage('twice', 'user_seats', 2, 'up');
SELECT status, used FROM billing.try_consume('twice', 'user_seats', -2, 'down');
SELECT status, used FROM billing.try_consume('twice', 'user_seats', -2, 'down');
SELECT status, used FROM billing.record_usage('twice', 'user_seats', -2, 'down');
CALL attempt($$SELECT billing.record_usage('twice', 'user_seats', -2, 'further')$$);
