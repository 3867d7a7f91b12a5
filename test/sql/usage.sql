-- record_usage, try_consume, consume and check_quota: what they store and answer, and every argument they refuse.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('other', 'Other', 'o@o.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('other', 'free') \g /dev/null

-- the answer, and the rows: one event, its key
SELECT * FROM billing.record_usage('acme', 'llm_tokens', 1200, 'req-1', billing.now() - interval '10 minutes', '{"model": "large"}');
SELECT * FROM billing.try_consume('acme', 'llm_tokens', 300, 'req-2');
SELECT * FROM billing.consume('acme', 'llm_tokens', 500);
SELECT * FROM billing.check_quota('acme', 'llm_tokens', 500);
SELECT * FROM billing.record_usage('acme', 'api_calls');
SELECT tenant_id, metric, quantity, idempotency_key, properties, period_start,
       date_trunc('minute', recorded_at - occurred_at) AS late
  FROM billing.usage_events ORDER BY metric, quantity DESC;
SELECT tenant_id, key = billing._event_key('req-1') AS of_req_1 FROM billing.usage_event_keys ORDER BY 2;

-- a known key changes nothing, whatever else is said; another tenant's keys are others
SELECT * FROM billing.record_usage('acme', 'llm_tokens', 1200, 'req-1');
SELECT status, reason, used FROM billing.record_usage('acme', 'api_calls', 77, 'req-1', billing.now() - interval '3 days');
SELECT status, reason, used FROM billing.try_consume('acme', 'llm_tokens', 1, 'req-2');
SELECT status, reason, used FROM billing.consume('acme', 'llm_tokens', 1, 'req-2');
SELECT status, reason, used FROM billing.record_usage('other', 'llm_tokens', 1200, 'req-1');
-- also where the same call would be denied if it were new
SELECT status, reason, used FROM billing.try_consume('acme', 'agent_executions', 120, 'last');
SELECT status, reason, used FROM billing.try_consume('acme', 'agent_executions', 120, 'last');
SELECT status, reason, used FROM billing.consume('acme', 'agent_executions', 120, 'last');
SELECT status, reason, used FROM billing.try_consume('acme', 'agent_executions', 120, 'next');
-- a denial does not use up its key
SELECT FROM billing.set_quota('acme', 'agent_executions', 240) \g /dev/null
SELECT status, reason, used FROM billing.try_consume('acme', 'agent_executions', 120, 'next');
UPDATE billing.subscriptions SET status = 'unpaid' WHERE tenant_id = 'acme';
SELECT status, reason, used FROM billing.try_consume('acme', 'llm_tokens', 1, 'req-2');
SELECT status, reason, used FROM billing.try_consume('acme', 'llm_tokens', 1, 'req-3');
UPDATE billing.subscriptions SET status = 'active' WHERE tenant_id = 'acme';
SELECT count(*) FROM billing.usage_events WHERE idempotency_key IN ('last', 'next', 'req-2', 'req-3');

-- nothing used is usage as well
SELECT status, reason, used FROM billing.try_consume('acme', 'agent_executions', 0);
-- gauges go up and down; others may use what is freed from the commit on, because it may yet be rolled back
SELECT status, reason, used FROM billing.record_usage('acme', 'storage_gb', 0.75);
SELECT status, reason, used FROM billing.record_usage('acme', 'storage_gb', -0.25);
SELECT status, reason, used FROM billing.check_quota('acme', 'storage_gb', 0.5);
BEGIN;
SELECT status, reason, used FROM billing.record_usage('acme', 'storage_gb', -0.125);
SELECT status, reason, used FROM billing.record_usage('acme', 'storage_gb', -0.125);
SELECT status, reason, used FROM billing.check_quota('acme', 'storage_gb', 0.75);
SELECT status, reason, used FROM billing.try_consume('acme', 'storage_gb', 0.751);
COMMIT;
SELECT status, reason, used FROM billing.try_consume('acme', 'storage_gb', 0.75);

-- late events count into the period in which they occurred, against its own usage
SELECT * FROM billing.record_usage('acme', 'llm_tokens', 11000, 'january', '2030-01-31 11:59:59.999999+00');
SELECT status, reason, used FROM billing.try_consume('acme', 'llm_tokens', 1001, NULL, '2030-01-31 11:00+00');
SELECT status, reason, used FROM billing.try_consume('acme', 'llm_tokens', 1001, NULL, '2030-01-31 12:00+00');
SELECT used FROM billing.check_quota('acme', 'llm_tokens');
SELECT metric, quantity, period_start, occurred_at FROM billing.usage_events WHERE period_start < '2030-01-31' AND metric = 'llm_tokens';
SELECT status FROM billing.record_usage('acme', 'llm_tokens', 1, NULL, billing.now() - interval '35 days' + interval '1 minute');
SELECT status FROM billing.record_usage('acme', 'llm_tokens', 1, NULL, billing.now() + interval '4 minutes');

-- what is refused
CALL attempt($$SELECT billing.record_usage(NULL, 'llm_tokens')$$);
CALL attempt($$SELECT billing.record_usage('', 'llm_tokens')$$);
CALL attempt($$SELECT billing.record_usage(repeat('x', 129), 'llm_tokens')$$);
CALL attempt($$SELECT billing.record_usage('nobody', 'llm_tokens')$$);
CALL attempt($$SELECT billing.record_usage('acme', NULL)$$);
CALL attempt($$SELECT billing.record_usage('acme', '')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'LLM_TOKENS')$$);
CALL attempt($$SELECT billing.record_usage('acme', repeat('x', 1000))$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', NULL)$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', -1)$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 'NaN')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 'Infinity')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'storage_gb', '-Infinity')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 0.5)$$);
CALL attempt($$SELECT billing.record_usage('acme', 'storage_gb', 0.1234567891)$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1e15 + 1)$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1e300)$$);
CALL attempt($$SELECT billing.record_usage('x' || repeat('ü', 60), 'llm_tokens')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, '')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, repeat('k', 256))$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, repeat('ü', 128))$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, NULL, '2029-12-27 12:29+00')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, NULL, '2030-01-31 12:41+00')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, NULL, 'infinity')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, NULL, '-infinity')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, NULL, NULL, '["large"]')$$);
CALL attempt($$SELECT billing.record_usage('acme', 'llm_tokens', 1, NULL, NULL, 'null')$$);
CALL attempt($$SELECT billing.try_consume('nobody', 'llm_tokens')$$);
CALL attempt($$SELECT billing.consume('acme', 'nothing')$$);
CALL attempt($$SELECT billing.check_quota('acme', 'llm_tokens', NULL)$$);
CALL attempt($$SELECT billing.check_quota('acme', 'llm_tokens', -1)$$);
CALL attempt($$SELECT billing.check_quota('nobody', 'llm_tokens')$$);
-- the longest key; the largest quantity; the largest counter
SELECT status FROM billing.record_usage('acme', 'llm_tokens', 1, repeat('k', 255));
SELECT FROM billing.create_customer('giant', 'Giant', 'g@g.example', stripe => false) \g /dev/null
DO $$ BEGIN FOR n IN 1 .. 9223 LOOP PERFORM billing.record_usage('giant', 'llm_tokens', 999999999999999); END LOOP; END $$;
SELECT status, used FROM billing.record_usage('giant', 'llm_tokens', 372036854785030);
CALL attempt($$SELECT billing.record_usage('giant', 'llm_tokens')$$);
SELECT status, used FROM billing.record_usage('giant', 'llm_tokens', 0);
-- nothing of all that was refused is left
SELECT status, used FROM billing.record_usage('other', 'llm_tokens', 0);
SELECT used FROM billing.check_quota('acme', 'api_calls');

-- a session bound to a tenant
SET pg_billing.tenant_id = 'acme';
SELECT status FROM billing.record_usage('acme', 'api_calls');
CALL attempt($$SELECT billing.record_usage('other', 'api_calls')$$);
CALL attempt($$SELECT billing.check_quota('other', 'api_calls')$$);
RESET pg_billing.tenant_id;
-- where nothing may be written
BEGIN READ ONLY;
SELECT status, used FROM billing.check_quota('acme', 'api_calls');
CALL attempt($$SELECT billing.record_usage('acme', 'api_calls', 100)$$);
SELECT status, used FROM billing.check_quota('acme', 'api_calls');
COMMIT;
BEGIN;
SELECT status FROM billing.record_usage('acme', 'api_calls', 100);
PREPARE TRANSACTION 'usage';
-- also where no counter is involved
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, stripe_event_name)
VALUES ('peak', 'Peak', 'counter', 'requests', 'max', 'peak');
BEGIN;
SELECT status, reason, used FROM billing.record_usage('acme', 'peak', 100);
PREPARE TRANSACTION 'usage';
-- a maximum is not held against a quota; and what has usage keeps its aggregation
CALL attempt($$SELECT billing.check_quota('acme', 'peak')$$);
CALL attempt($$SELECT billing.try_consume('acme', 'peak')$$);
CALL attempt($$UPDATE billing.metrics SET aggregation = 'max' WHERE name = 'llm_tokens'$$);
UPDATE billing.metrics SET aggregation = 'last' WHERE name = 'peak';
BEGIN;
UPDATE billing.metrics SET unit = 'requests' WHERE name = 'api_calls';
PREPARE TRANSACTION 'quota';
SELECT used FROM billing.check_quota('acme', 'api_calls');

-- a metric's usage stays what it is when the metric keeps more decimals
UPDATE billing.metrics SET scale = 3 WHERE name = 'api_calls';
SELECT used FROM billing.check_quota('acme', 'api_calls');
SELECT status, used FROM billing.record_usage('acme', 'api_calls', 0.125);
