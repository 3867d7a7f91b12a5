-- reserve, settle, release and expiry: what they hold, answer, store and refuse.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('other', 'Other', 'o@o.example', stripe => false) \g /dev/null
SELECT FROM billing.set_quota('acme', 'agent_executions', 10) \g /dev/null
CREATE FUNCTION answer(d billing.decision) RETURNS text LANGUAGE sql AS
    'SELECT concat_ws('' '', d.status, d.reason, d.used, ''of'', d.quota, d.cap, d.warning)';
-- a reservation's decision, and its id as n
CREATE TEMP TABLE ids (n text PRIMARY KEY, id uuid);
GRANT ALL ON ids TO PUBLIC;
CREATE FUNCTION answer(n text, r billing.reservation) RETURNS text LANGUAGE sql AS $$
    INSERT INTO ids SELECT n, r.reservation_id ON CONFLICT DO NOTHING;
    SELECT concat_ws(' ', r.status, r.reason, r.used, 'of', r.quota, r.cap, r.warning, CASE WHEN r.reservation_id IS NULL THEN 'without id' END)
$$;
CREATE FUNCTION id(n text) RETURNS uuid LANGUAGE sql STABLE AS 'SELECT i.id FROM ids i WHERE i.n = $1';
-- attempt() for a statement with a reservation's id, which is not the same twice
CREATE PROCEDURE attempt(statement text, n text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(statement, id(n));
    RAISE INFO 'no error';
EXCEPTION WHEN OTHERS THEN
    RAISE INFO '%: %', SQLSTATE, regexp_replace(replace(SQLERRM, id(n)::text, n), '\d{4}-\S* \S*', 'TIME');
END $$;
CREATE VIEW state AS
    SELECT (billing.check_quota('acme', 'agent_executions', 0)).used AS counter,
           billing.get_current_usage('acme', 'agent_executions') AS usage,
           billing._held('acme', 'agent_executions', (SELECT period_start FROM billing.usage_quotas WHERE tenant_id = 'acme' AND metric = 'agent_executions')) AS held;

-- held: it counts against the cap and is no usage
CREATE TEMP TABLE first AS SELECT * FROM billing.reserve('acme', 'agent_executions', 4);
INSERT INTO ids SELECT 'first', reservation_id FROM first;
SELECT reservation_id IS NOT NULL AS id, status, allowed, reason, used, quota, remaining, cap, resets_at, warning FROM first;
SELECT tenant_id, metric, quantity, state, period_start, expires_at - reserved_at AS lives, settled_quantity, idempotency_key FROM billing.reservations;
TABLE state;
SELECT answer(billing.try_consume('acme', 'agent_executions', 7));
SELECT answer('none', billing.reserve('acme', 'agent_executions', 7));
SELECT answer('second', billing.reserve('acme', 'agent_executions', 6));
SELECT answer(billing.check_quota('acme', 'agent_executions', 1));
SELECT count(*) FROM billing.reservations;

-- settled with less, which is given back; the event has the reservation's id as its key
SELECT answer(billing.settle(id('first'), 1, '{"model": "large"}'));
SELECT e.metric, e.quantity, e.idempotency_key = id('first')::text AS id_is_key, e.properties, e.occurred_at = r.reserved_at AS when_reserved, e.period_start = r.period_start AS same_period, r.state, r.settled_quantity
  FROM billing.usage_events e, billing.reservations r WHERE r.id = id('first');
TABLE state;
-- once
SELECT answer(billing.settle(id('first'), 3));
SELECT state, settled_quantity FROM billing.reservations WHERE id = id('first');
CALL attempt('SELECT billing.release(%L)', 'first');
TABLE state;
-- with more than was held, past the cap: the work has happened
SELECT answer(billing.settle(id('second'), 11));
TABLE state;
-- with exactly what was held; with nothing
SELECT FROM billing.set_quota('acme', 'agent_executions', 20) \g /dev/null
SELECT answer('exact', billing.reserve('acme', 'agent_executions', 2));
SELECT answer(billing.settle(id('exact'), 2));
SELECT answer('zero', billing.reserve('acme', 'agent_executions', 2));
SELECT answer(billing.settle(id('zero'), 0));
SELECT count(*), sum(quantity) FROM billing.usage_events;
TABLE state;

-- released: given back; again: a duplicate; it cannot be settled then
SELECT answer('third', billing.reserve('acme', 'agent_executions', 5));
SELECT answer(billing.release(id('third')));
SELECT answer(billing.release(id('third')));
CALL attempt('SELECT billing.settle(%L, 1)', 'third');
SELECT answer(billing.settle(id('zero'), 7));
CALL attempt('SELECT billing.release(%L)', 'zero');
CALL attempt($$SELECT billing.settle('00000000-0000-4000-8000-000000000001', 1)$$);
TABLE state;

-- an idempotency key: the same reservation, held once, and never denied
SELECT answer('keyed', billing.reserve('acme', 'agent_executions', 3, idempotency_key => 'job-1'));
SELECT answer('again', billing.reserve('acme', 'agent_executions', 3, idempotency_key => 'job-1'));
SELECT id('keyed') = id('again') AS same;
SELECT answer('again', billing.reserve('acme', 'agent_executions', 500, idempotency_key => 'job-1'));
SELECT answer('denied', billing.reserve('acme', 'agent_executions', 500, idempotency_key => 'job-2'));
-- a denial does not use up its key; another tenant's keys are others
SELECT answer('not denied', billing.reserve('acme', 'agent_executions', 1, idempotency_key => 'job-2'));
SELECT answer('other', billing.reserve('other', 'agent_executions', 1, idempotency_key => 'job-1'));
SELECT FROM billing.set_quota('other', 'agent_executions', 10) \g /dev/null
SELECT answer('other 2', billing.reserve('other', 'agent_executions', 1, idempotency_key => 'job-1'));
SELECT FROM billing.clear_quota('other', 'agent_executions') \g /dev/null
SELECT answer('other 3', billing.reserve('other', 'agent_executions', 1, idempotency_key => 'job-1'));
SELECT id('other 3') = id('other 2') AS same;
-- it is the key of the event, so what is recorded another way meanwhile counts once
SELECT answer(billing.settle(id('keyed'), 2));
SELECT answer(billing.record_usage('acme', 'agent_executions', 2, 'job-1'));
SELECT answer(billing.record_usage('acme', 'agent_executions', 1, 'job-2'));
TABLE state;
SELECT answer(billing.settle(id('not denied'), 1));
TABLE state;
SELECT answer('keyed', billing.reserve('acme', 'agent_executions', 3, idempotency_key => 'job-1'));

-- rollback, savepoint, exception: hold, settling and release are undone with their rows
SELECT answer('kept', billing.reserve('acme', 'agent_executions', 2));
BEGIN;
SELECT answer('undone', billing.reserve('acme', 'agent_executions', 1));
SAVEPOINT s;
SELECT answer(billing.settle(id('kept'), 1));
SELECT answer(billing.release(id('undone')));
ROLLBACK TO s;
TABLE state;
SELECT answer(billing.settle(id('kept'), 5));
ROLLBACK;
TABLE state;
BEGIN;
SELECT answer(billing.release(id('kept')));
-- what a transaction frees it may use at once
SELECT answer('reused', billing.reserve('acme', 'agent_executions', 2));
ROLLBACK;
TABLE state;
SELECT answer(billing.release(id('kept')));
BEGIN;
SELECT answer('prepared', billing.reserve('acme', 'agent_executions', 1));
PREPARE TRANSACTION 'hold';

-- expiry: it holds until somebody marks it
SELECT answer('soon', billing.reserve('acme', 'agent_executions', 1, '1 minute'));
SELECT answer('late', billing.reserve('acme', 'agent_executions', 1, '1 day'));
SELECT billing.expire_reservations();
CALL travel('2 minutes');
TABLE state;
BEGIN;
SELECT billing.expire_reservations();
ROLLBACK;
TABLE state;
SELECT billing.expire_reservations();
SELECT billing.expire_reservations();
TABLE state;
SELECT state FROM billing.reservations WHERE id IN (id('soon'), id('late')) ORDER BY expires_at;
SELECT answer(billing.release(id('soon')));
-- the work happened all the same
SELECT answer(billing.settle(id('soon'), 2));
SELECT answer(billing.settle(id('soon'), 2));
SELECT answer(billing.settle(id('late'), 1));
TABLE state;
-- what has expired makes room for who needs it, and only then
SELECT FROM billing.set_quota('acme', 'agent_executions', 25) \g /dev/null
SELECT answer('x1', billing.reserve('acme', 'agent_executions', 2, '1 minute'));
SELECT answer('x2', billing.reserve('acme', 'agent_executions', 2, '1 minute'));
SELECT answer('x3', billing.reserve('acme', 'agent_executions', 1, '1 hour'));
CALL travel('2 minutes');
SELECT answer(billing.check_quota('acme', 'agent_executions', 3));
SELECT answer(billing.check_quota('acme', 'agent_executions', 10));
TABLE state;
BEGIN;
SELECT answer(billing.try_consume('acme', 'agent_executions', 3));
SELECT n, state FROM billing.reservations r JOIN ids i ON i.id = r.id AND n LIKE 'x_' ORDER BY 1;
-- what is left of it the transaction may use, too
SELECT answer(billing.check_quota('acme', 'agent_executions', 1));
SELECT answer(billing.try_consume('acme', 'agent_executions', 1));
SELECT answer(billing.try_consume('acme', 'agent_executions', 1));
ROLLBACK;
TABLE state;
BEGIN;
SAVEPOINT s;
SELECT answer(billing.try_consume('acme', 'agent_executions', 3));
ROLLBACK TO s;
SELECT answer('x4', billing.reserve('acme', 'agent_executions', 4));
COMMIT;
TABLE state;
SELECT answer(billing.consume('acme', 'agent_executions', 0));
CALL attempt($$SELECT billing.consume('acme', 'agent_executions', 1)$$);
SELECT answer(billing.release(id('x4')));
TABLE state;

-- on an hour's and a day's limit, too
INSERT INTO billing.plan_window_limits VALUES ('free', 'api_calls', 'hour', 10), ('free', 'api_calls', 'day', 15);
CALL travel('1 day');
SELECT answer('h1', billing.reserve('acme', 'api_calls', 6, '1 minute'));
SELECT answer('h2', billing.reserve('acme', 'api_calls', 5));
SELECT answer(billing.try_consume('acme', 'api_calls', 4));
SELECT answer(billing.try_consume('acme', 'api_calls', 1));
CALL travel('2 minutes');
SELECT answer(billing.check_quota('acme', 'api_calls', 6));
SELECT answer(billing.try_consume('acme', 'api_calls', 6));
-- loaded anew, what is held included (another scale is another counter)
SELECT answer('h3', billing.reserve('acme', 'api_calls', 0));
CALL travel('1 hour');
SELECT answer('h4', billing.reserve('acme', 'api_calls', 4));
UPDATE billing.metrics SET scale = 1 WHERE name = 'api_calls';
SELECT answer('h5', billing.reserve('acme', 'api_calls', 2));
SELECT answer(billing.check_quota('acme', 'api_calls', 1));
CALL travel('1 hour');
SELECT answer(billing.check_quota('acme', 'api_calls', 2));
-- settled into its own hour: this one's has room for all of it then
SELECT answer(billing.settle(id('h4'), 0.5));
SELECT answer(billing.check_quota('acme', 'api_calls', 4.5));
SELECT answer(billing.check_quota('acme', 'api_calls', 4.6));
-- loaded with reservations that have expired
SELECT answer('h6', billing.reserve('acme', 'api_calls', 4.5, '1 minute'));
CALL travel('2 minutes');
UPDATE billing.metrics SET scale = 2 WHERE name = 'api_calls';
SELECT answer(billing.try_consume('acme', 'api_calls', 4.5));
SELECT answer(billing.try_consume('acme', 'api_calls', 4.5));

-- a metric that counts events: one, whatever its quantity
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name) VALUES
    ('jobs', 'Jobs', 'counter', 'jobs', 'count', 2, 'jobs'), ('agents', 'Agents', 'counter', 'agents', 'sum', 0, 'agents'), ('peak', 'Peak', 'counter', 'mb', 'max', 0, 'peak');
SELECT billing.set_quota('acme', m, 2) FROM unnest(ARRAY['jobs', 'agents', 'peak']) m \g /dev/null
SELECT answer('j1', billing.reserve('acme', 'jobs', 70));
SELECT answer('j2', billing.reserve('acme', 'jobs', 0.25));
SELECT answer('j3', billing.reserve('acme', 'jobs', 1));
SELECT answer(billing.settle(id('j1'), 35));
SELECT answer(billing.release(id('j2')));
SELECT metric, quantity FROM billing.usage_events WHERE metric = 'jobs';
-- a gauge: held is not used
SELECT answer('seat', billing.reserve('acme', 'user_seats', 2));
SELECT answer(billing.try_consume('acme', 'user_seats', 2));
SELECT answer(billing.settle(id('seat'), 1));
SELECT answer(billing.check_quota('acme', 'user_seats', 2)), billing.get_current_usage('acme', 'user_seats');

-- a new subscription has other periods: the reservation stays in its own
SELECT FROM billing.create_customer('moving', 'Moving', 'm@m.example', stripe => false) \g /dev/null
SELECT FROM billing.set_quota('moving', 'llm_tokens', 100) \g /dev/null
SELECT answer('m1', billing.reserve('moving', 'llm_tokens', 60));
SELECT answer('m2', billing.reserve('moving', 'llm_tokens', 30));
SELECT FROM billing.create_subscription('moving', 'free') \g /dev/null
SELECT answer(billing.check_quota('moving', 'llm_tokens', 100));
SELECT answer(billing.settle(id('m1'), 50));
SELECT answer(billing.release(id('m2')));
SELECT answer(billing.check_quota('moving', 'llm_tokens', 100));
SELECT e.quantity, e.period_start FROM billing.usage_events e WHERE e.tenant_id = 'moving';

-- what the tenant's plan refuses altogether
UPDATE billing.subscriptions SET status = 'unpaid' WHERE tenant_id = 'acme';
SELECT answer('unpaid', billing.reserve('acme', 'llm_tokens', 1));
SELECT answer('unpaid', billing.reserve('acme', 'llm_tokens', 1, idempotency_key => 'job-1'));
UPDATE billing.subscriptions SET status = 'active' WHERE tenant_id = 'acme';

-- what is refused
CALL attempt($$SELECT billing.reserve('nobody', 'llm_tokens')$$);
CALL attempt($$SELECT billing.reserve('acme', 'nothing')$$);
CALL attempt($$SELECT billing.reserve('acme', 'peak')$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', -1)$$);
CALL attempt($$SELECT billing.reserve('acme', 'user_seats', -1)$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', NULL)$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', 0.5)$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', 1, '0')$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', 1, '-1 minute')$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', 1, '7 days 1 second')$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', 1, '100000 years')$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', 1, NULL)$$);
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens', 1, '1 minute', '')$$);
SELECT answer('week', billing.reserve('acme', 'llm_tokens', 1, '7 days', repeat('k', 255)));
CALL attempt($$SELECT billing.settle(NULL, 1)$$);
CALL attempt($$SELECT billing.release(NULL)$$);
CALL attempt($$SELECT billing.settle(id('week'), NULL)$$);
CALL attempt($$SELECT billing.settle(id('week'), -1)$$);
CALL attempt($$SELECT billing.settle(id('week'), 'NaN')$$);
CALL attempt($$SELECT billing.settle(id('week'), 0.5)$$);
CALL attempt($$SELECT billing.settle(id('week'), 1, '[]')$$);
CALL attempt($$SELECT billing.settle(id('seat'), -1)$$);
BEGIN READ ONLY;
CALL attempt($$SELECT billing.reserve('acme', 'llm_tokens')$$);
CALL attempt($$SELECT billing.settle(id('week'), 1)$$);
CALL attempt($$SELECT billing.release(id('week'))$$);
CALL attempt($$SELECT billing.expire_reservations()$$);
COMMIT;
-- expired too long ago to be recorded; while it is held it can be settled
CALL travel('20 days');
SELECT billing.expire_reservations() > 0 AS expired;
CALL travel('15 days 1 minute');
CALL attempt('SELECT billing.settle(%L, 1)', 'week');
SELECT answer('long', billing.reserve('acme', 'llm_tokens', 1));
CALL travel('36 days');
SELECT answer(billing.settle(id('long'), 1));
-- forgotten when nothing of that time can be recorded any more; what is held is not
SELECT n, state FROM ids JOIN billing.reservations r USING (id) WHERE n IN ('week', 'long', 'forgotten') ORDER BY n;
SELECT answer('forgotten', billing.reserve('acme', 'llm_tokens', 1));
SELECT answer(billing.settle(id('forgotten'), 1));
CALL travel('35 days');
SELECT answer('held', billing.reserve('acme', 'llm_tokens', 1));
SELECT billing.expire_reservations() > 0 AS some;
SELECT n, state FROM ids JOIN billing.reservations r USING (id) ORDER BY n;
CALL travel('11 minutes');
SELECT billing.expire_reservations();
SELECT billing.expire_reservations();
SELECT n, state FROM ids JOIN billing.reservations r USING (id) ORDER BY n;
CALL attempt('SELECT billing.settle(%L, 1)', 'forgotten');
-- another tenant's reservation is as good as none
SELECT answer('keeps', billing.reserve('acme', 'agents', 1));
SELECT FROM billing.set_quota('other', 'agents', 2) \g /dev/null
SELECT answer('theirs', billing.reserve('other', 'agents', 2));
SET pg_billing.tenant_id = 'other';
CALL attempt('SELECT billing.settle(%L, 1)', 'keeps');
CALL attempt('SELECT billing.release(%L)', 'keeps');
SELECT answer(billing.release(id('theirs')));
RESET pg_billing.tenant_id;
-- a metric with reservations keeps its kind
CALL attempt($$UPDATE billing.metrics SET aggregation = 'max' WHERE name = 'agents'$$);

-- tenants may read their own, and call none of it
CREATE ROLE reservations_tenant LOGIN IN ROLE billing_tenant;
SET ROLE reservations_tenant;
SET pg_billing.tenant_id = 'other';
SELECT tenant_id, metric, quantity, state FROM billing.reservations;
CALL attempt($$SELECT billing.reserve('other', 'agent_executions')$$);
CALL attempt($$SELECT billing.settle('00000000-0000-4000-8000-000000000001', 1)$$);
CALL attempt($$SELECT billing.release('00000000-0000-4000-8000-000000000001')$$);
CALL attempt($$SELECT billing.expire_reservations()$$);
RESET ROLE;
DROP ROLE reservations_tenant;

-- a counter that is loaded only when reservations expire has their quantity to give back, once
RESET ROLE;
RESET pg_billing.tenant_id;
SELECT FROM billing.create_customer('late', 'Late', 'l@l.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('late', 'free') \g /dev/null
SELECT status, used FROM billing.reserve('late', 'agent_executions', 5, '1 minute');
SELECT FROM billing.record_usage('late', 'agent_executions', 2) \g /dev/null
CALL travel('1 hour');
UPDATE billing.metrics SET scale = 1 WHERE name = 'agent_executions';
SELECT billing.expire_reservations() > 0 AS expired;
SELECT used FROM billing.check_quota('late', 'agent_executions');
