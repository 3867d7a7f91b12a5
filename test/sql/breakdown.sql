-- get_usage_breakdown: usage by the dimensions a metric declares, before and after the rollup.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\set truth :tests /lib/truth.sql
\i :begin
\i :truth
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT FROM billing.create_customer('other', 'Other', 'o@o.example', stripe => false) \g /dev/null
CREATE PROCEDURE use(quantity numeric, properties jsonb, at text DEFAULT '12:10') LANGUAGE sql AS $$
    SELECT billing.record_usage('acme', 'llm_tokens', quantity, NULL, ('2030-01-31 ' || at || '+00')::timestamptz, properties)
$$;

-- what was rolled up before a dimension was declared is in no breakdown
CALL use(1000, '{"model": "large"}');
SELECT billing.run_rollup();
CALL attempt($$SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model')$$);
UPDATE billing.metrics SET dimensions = '{model,region}' WHERE name = 'llm_tokens';
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model');
-- every event once, whatever of it is rolled up; a property that is absent, or null, is null
CALL use(100, '{"model": "large", "region": "eu", "user": "ann"}');
CALL use(20, '{"model": "small", "region": "eu"}');
CALL use(3, '{"model": "large"}');
CALL use(5, '{"model": null, "region": "us"}');
CALL use(6, NULL);
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model');
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'region');
SELECT billing.run_rollup();
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model');
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'region');
SELECT hour, dimensions, quantity, events FROM billing.usage_breakdown ORDER BY 1, 2;
CALL use(7, '{"region": "eu", "model": "large"}');
CALL use(1, '{"model": 4, "region": {"of": ["eu"]}}');
SELECT billing.run_rollup();
CALL use(2, '{"model": "4"}');
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model');
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'region');
-- what is voided is out
SELECT FROM billing.record_usage('acme', 'llm_tokens', 500, 'voided', NULL, '{"model": "large"}') \g /dev/null
SELECT billing.run_rollup();
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model') LIMIT 1;
SELECT FROM billing.void_usage('acme', 'voided', 'test') \g /dev/null
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model') LIMIT 1;
SELECT billing.run_rollup();
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model') LIMIT 1;
-- by billing period
CALL use(50, '{"model": "old"}', '11:59');
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model', 'previous');
SELECT billing.run_rollup();
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model', 'previous');
SELECT * FROM billing.get_usage_breakdown('acme', 'llm_tokens', 'model', '2029-06-01');
SELECT * FROM billing.get_usage_breakdown('other', 'llm_tokens', 'model');
-- long values are cut, so that the longest of all fit
UPDATE billing.metrics SET dimensions = ARRAY['a', 'b', 'c', 'd', repeat('ä', 123)] WHERE name = 'api_calls';
SELECT FROM billing.record_usage('acme', 'api_calls', 1, NULL, NULL,
    (SELECT jsonb_object_agg(n, (SELECT string_agg(chr(65536 + (i * 7919) % 60000), '') FROM generate_series(1, 2000) i))
       FROM billing.metrics m, unnest(m.dimensions) n WHERE m.name = 'api_calls')) \g /dev/null
SELECT FROM billing.record_usage('acme', 'api_calls', 1, NULL, NULL, jsonb_build_object('a', repeat('x', 101))) \g /dev/null
SELECT length(value), quantity FROM billing.get_usage_breakdown('acme', 'api_calls', 'a') ORDER BY value;
SELECT billing.run_rollup();
SELECT length(value), quantity FROM billing.get_usage_breakdown('acme', 'api_calls', 'a') ORDER BY value;
-- a gauge: its level, of all time
UPDATE billing.metrics SET dimensions = '{bucket}' WHERE name = 'storage_gb';
SELECT FROM billing.record_usage('acme', 'storage_gb', 5, NULL, '2030-01-20', '{"bucket": "b1"}') \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 3, NULL, NULL, '{"bucket": "b2"}') \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', -1, NULL, NULL, '{"bucket": "b1"}') \g /dev/null
SELECT billing.run_rollup();
SELECT * FROM billing.get_usage_breakdown('acme', 'storage_gb', 'bucket');

CALL attempt($$SELECT billing.get_usage_breakdown('acme', 'llm_tokens', 'user')$$);
CALL attempt($$SELECT billing.get_usage_breakdown('acme', 'llm_tokens', NULL)$$);
CALL attempt($$SELECT billing.get_usage_breakdown('acme', 'nothing', 'model')$$);
CALL attempt($$SELECT billing.get_usage_breakdown('nobody', 'llm_tokens', 'model')$$);
CALL attempt($$SELECT billing.get_usage_breakdown('acme', 'llm_tokens', 'model', 'last')$$);
SET pg_billing.tenant_id = 'other';
CALL attempt($$SELECT billing.get_usage_breakdown('acme', 'llm_tokens', 'model')$$);
RESET pg_billing.tenant_id;
-- what may be declared; terse: whatever columns the table has
\set VERBOSITY terse
UPDATE billing.metrics SET dimensions = '{a,b,c,d,e,f}' WHERE name = 'llm_tokens';
UPDATE billing.metrics SET dimensions = ARRAY['a', NULL] WHERE name = 'llm_tokens';
UPDATE billing.metrics SET dimensions = ARRAY[repeat('a', 251)] WHERE name = 'llm_tokens';
UPDATE billing.metrics SET aggregation = 'max', dimensions = '{a}' WHERE name = 'agent_executions';
UPDATE billing.metrics SET aggregation = 'unique_count' WHERE name = 'agent_executions';
UPDATE billing.metrics SET unique_property = 'user' WHERE name = 'agent_executions';
