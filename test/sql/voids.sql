-- void_usage: usage taken back, once, by an event of the negated quantity.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('other', 'Other', 'o@o.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('other', 'free') \g /dev/null
CREATE FUNCTION answer(d billing.decision) RETURNS text LANGUAGE sql AS
    'SELECT concat_ws('' '', d.status, d.reason, d.used, ''of'', d.quota, d.cap, d.warning)';
CREATE VIEW used AS
    SELECT m AS metric, (billing.check_quota('acme', m, 0)).used AS counter, billing.get_current_usage('acme', m) AS rows
      FROM unnest(ARRAY['llm_tokens', 'user_seats']) m;

SELECT answer(billing.record_usage('acme', 'llm_tokens', 9000, 'a', billing.now() - interval '10 minutes', '{"model": "large"}'));
SELECT answer(billing.record_usage('acme', 'llm_tokens', 500, 'b'));
SELECT answer(billing.record_usage('other', 'llm_tokens', 700, 'a'));
SELECT * FROM billing.void_usage('acme', 'a', 'the model returned nothing');
SELECT e.metric, e.quantity, e.idempotency_key, e.properties, e.void_reason, e.occurred_at = o.occurred_at AND e.period_start = o.period_start AS same_time
  FROM billing.usage_events e, billing.usage_events o WHERE e.tenant_id = 'acme' AND o.tenant_id = 'acme' AND o.idempotency_key = 'a' AND o.void_reason IS NULL ORDER BY e.tick, e.recorded_at;
SELECT count(*) FILTER (WHERE voided_at IS NOT NULL) AS voided, count(*) FROM billing.usage_event_keys;
TABLE used;
SELECT billing.get_current_usage('other', 'llm_tokens');
-- once; and the key stays known
SELECT answer(billing.void_usage('acme', 'a', 'the model returned nothing'));
SELECT answer(billing.record_usage('acme', 'llm_tokens', 9000, 'a'));
TABLE used;
-- rolled up before, between or after
SELECT billing.run_rollup();
SELECT answer(billing.void_usage('acme', 'b', 'a test'));
SELECT answer(billing.record_usage('acme', 'llm_tokens', 40, 'c'));
TABLE used;
SELECT billing.run_rollup();
TABLE used;
SELECT hour, quantity, events FROM billing.usage_aggregates WHERE tenant_id = 'acme' AND metric = 'llm_tokens' ORDER BY 1;
SELECT used FROM billing.usage_quotas WHERE tenant_id = 'acme' AND metric = 'llm_tokens';

-- the room is there from the commit on, and for the transaction itself at once
SELECT FROM billing.set_quota('acme', 'agent_executions', 5) \g /dev/null
SELECT answer(billing.try_consume('acme', 'agent_executions', 5, 'full'));
BEGIN;
SELECT answer(billing.void_usage('acme', 'full', 'wrong'));
SELECT answer(billing.try_consume('acme', 'agent_executions', 4, 'less'));
ROLLBACK;
SELECT answer(billing.try_consume('acme', 'agent_executions', 1));
BEGIN;
SAVEPOINT s;
SELECT answer(billing.void_usage('acme', 'full', 'wrong'));
ROLLBACK TO s;
SELECT answer(billing.try_consume('acme', 'agent_executions', 1));
SELECT answer(billing.void_usage('acme', 'full', 'wrong'));
SELECT answer(billing.void_usage('acme', 'full', 'wrong'));
COMMIT;
SELECT answer(billing.try_consume('acme', 'agent_executions', 5));
-- what the same transaction recorded
BEGIN;
SELECT answer(billing.record_usage('acme', 'api_calls', 10, 'now'));
SELECT answer(billing.void_usage('acme', 'now', 'changed my mind'));
COMMIT;
SELECT answer(billing.check_quota('acme', 'api_calls', 0)), billing.get_current_usage('acme', 'api_calls');

-- a gauge: its level goes back, but not below zero
SELECT answer(billing.record_usage('acme', 'user_seats', 3, 'three'));
SELECT answer(billing.record_usage('acme', 'user_seats', -1, 'one'));
CALL attempt($$SELECT billing.void_usage('acme', 'three', 'never hired')$$);
SELECT answer(billing.void_usage('acme', 'one', 'never left'));
SELECT answer(billing.void_usage('acme', 'three', 'never hired'));
TABLE used;
-- an hour's and a day's limit, of the hour and the day in which it was used
INSERT INTO billing.plan_window_limits VALUES ('free', 'api_calls', 'hour', 10), ('free', 'api_calls', 'day', 15);
CALL travel('1 day');
SELECT answer(billing.try_consume('acme', 'api_calls', 10, 'h1'));
CALL travel('1 hour');
SELECT answer(billing.try_consume('acme', 'api_calls', 5, 'h2'));
SELECT answer(billing.void_usage('acme', 'h1', 'wrong hour'));
SELECT answer(billing.check_quota('acme', 'api_calls', 5)), answer(billing.check_quota('acme', 'api_calls', 6));
SELECT answer(billing.try_consume('acme', 'api_calls', 10, NULL, billing.now() - interval '1 hour'));
SELECT answer(billing.void_usage('acme', 'h2', 'late'));
SELECT answer(billing.try_consume('acme', 'api_calls', 6));
-- one event of a metric that counts them
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name) VALUES
    ('jobs', 'Jobs', 'counter', 'jobs', 'count', 0, 'jobs'), ('peak', 'Peak', 'counter', 'mb', 'max', 0, 'peak');
SELECT billing.set_quota('acme', m, 2) FROM unnest(ARRAY['jobs', 'peak']) m \g /dev/null
SELECT answer(billing.try_consume('acme', 'jobs', 7, 'j1'));
SELECT answer(billing.try_consume('acme', 'jobs', 7, 'j2'));
SELECT answer(billing.void_usage('acme', 'j1', 'failed'));
SELECT answer(billing.try_consume('acme', 'jobs', 7, 'j3'));
SELECT answer(billing.try_consume('acme', 'jobs', 7, 'j4'));
-- the same when it is loaded anew (another scale is another counter), from what is rolled up and what is not
UPDATE billing.metrics SET scale = 1 WHERE name = 'jobs';
SELECT answer(billing.check_quota('acme', 'jobs', 0)), billing.get_current_usage('acme', 'jobs');
SELECT billing.run_rollup() > 0 AS rolled_up;
SELECT answer(billing.void_usage('acme', 'j2', 'failed'));
UPDATE billing.metrics SET scale = 2 WHERE name = 'jobs';
SELECT answer(billing.check_quota('acme', 'jobs', 0)), billing.get_current_usage('acme', 'jobs');
SELECT billing.run_rollup() > 0 AS rolled_up;
UPDATE billing.metrics SET scale = 3 WHERE name = 'jobs';
SELECT answer(billing.check_quota('acme', 'jobs', 0)), billing.get_current_usage('acme', 'jobs');
-- a settled reservation, by its id
SELECT reservation_id AS id FROM billing.reserve('acme', 'llm_tokens', 100) \gset
SELECT answer(billing.settle(:'id', 60));
SELECT answer(billing.void_usage('acme', :'id', 'failed'));
-- late usage, in its period
SELECT answer(billing.record_usage('acme', 'llm_tokens', 11000, 'january', '2030-01-31 11:59:59.999999+00'));
SELECT answer(billing.void_usage('acme', 'january', 'not theirs'));
SELECT quantity, period_start, occurred_at FROM billing.usage_events WHERE idempotency_key = 'january' ORDER BY quantity;

-- what is refused
CALL attempt($$SELECT billing.void_usage('acme', 'nothing', 'why')$$);
CALL attempt($$SELECT billing.void_usage('other', 'b', 'why')$$);
CALL attempt($$SELECT billing.void_usage('acme', NULL, 'why')$$);
CALL attempt($$SELECT billing.void_usage('acme', '', 'why')$$);
CALL attempt($$SELECT billing.void_usage(NULL, 'c', 'why')$$);
CALL attempt($$SELECT billing.void_usage('', 'c', 'why')$$);
CALL attempt($$SELECT billing.void_usage('nobody', 'c', 'why')$$);
CALL attempt($$SELECT billing.void_usage('acme', 'c', NULL)$$);
CALL attempt($$SELECT billing.void_usage('acme', 'c', '')$$);
CALL attempt($$SELECT billing.void_usage('acme', 'c', repeat('x', 1001))$$);
SELECT answer(billing.record_usage('acme', 'peak', 7, 'p1'));
CALL attempt($$SELECT billing.void_usage('acme', 'p1', 'why')$$);
BEGIN READ ONLY;
CALL attempt($$SELECT billing.void_usage('acme', 'c', 'why')$$);
COMMIT;
-- not kept any more
SELECT answer(billing.record_usage('acme', 'llm_tokens', 1, 'gone'));
BEGIN;
SET LOCAL session_replication_role = replica;
DELETE FROM billing.usage_events WHERE idempotency_key = 'gone';
CALL attempt($$SELECT billing.void_usage('acme', 'gone', 'why')$$);
ROLLBACK;
SET pg_billing.tenant_id = 'other';
CALL attempt($$SELECT billing.void_usage('acme', 'c', 'why')$$);
RESET pg_billing.tenant_id;
CREATE ROLE voids_tenant LOGIN IN ROLE billing_tenant;
SET ROLE voids_tenant;
CALL attempt($$SELECT billing.void_usage('acme', 'c', 'why')$$);
RESET ROLE;
DROP ROLE voids_tenant;
TABLE used;
