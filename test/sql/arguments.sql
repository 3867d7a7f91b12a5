-- Every public function answers whatever it is given, ordinary or extreme, by a result or by an error of its own.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set ECHO none
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT FROM billing.create_customer('free', 'Not subscribed yet', 'f@f.example', stripe => false) \g /dev/null
SELECT FROM billing.record_usage('acme', 'api_calls', 7, 'before') \g /dev/null

-- What a parameter is given: by its name values that are often good, by its type those that are often not.
CREATE TABLE pool (name text, value text);
SELECT string_agg(md5(i::text), '') AS long FROM generate_series(1, 400) i \gset
INSERT INTO pool
SELECT name, unnest(v) FROM (VALUES
    ('tenant_id', '{acme,acme,acme,acme,free,nobody}'::text[]),
    ('metric', '{api_calls,llm_tokens,storage_gb,nothing}'),
    ('quantity', '{1,2,1000}'),
    ('idempotency_key', '{before,one,NULL}'),
    ('occurred_at', '{2030-01-31 12:29+00,2030-01-31 12:30+00,NULL}'),
    ('properties', '{"{\"model\": \"large\"}",NULL}'),
    ('events', ARRAY['[{"tenant_id": "acme", "metric": "api_calls", "quantity": 1, "idempotency_key": "one"}]']),
    ('tenant_ids[]', '{"{acme}","{acme,acme,nobody}"}'),
    ('metrics[]', '{"{api_calls}","{api_calls,storage_gb,llm_tokens}"}'),
    ('quantities[]', '{"{3}","{1,2,3}",NULL}'), ('idempotency_keys[]', '{"{before}","{one,two,one}",NULL}'),
    ('level', '{0,5}'), ('ttl', '{1 minute,1 hour}'),
    ('quota', '{0,100,NULL}'), ('cap', '{hard,soft,none,NULL}'), ('grace', '{1,1.5,NULL}'),
    ('grace_period', '{1 day,NULL}'), ('per', '{hour,day,NULL}'), ('period', '{current,previous}'),
    ('plan', '{free,enterprise}'), ('days_until_due', '{30,NULL}'),
    ('collection_method', '{charge_automatically,send_invoice}'), ('stripe_test_clock', '{NULL}'),
    ('name', '{A tenant}'), ('email', '{a@a.example}'), ('timezone', '{UTC,Europe/Berlin}'),
    ('since', '{2030-01-30,2029-06-01,NULL}'), ('until', '{2030-01-31 12:00+00,NULL}'), ('invoice', '{in_1,NULL}'),
    ('scopes[]', '{"{usage:read}"}'),
    ('payload', ARRAY['{"id": "evt_1", "type": "t", "livemode": false, "data": {"object": {"id": "sub_1"}}}',
                      '{"id": "evt_2", "type": "t", "livemode": "x"}', '{"id": [1], "type": {}, "data": []}',
                      '{"id": "\u0000", "type": "t"}',
                      json_build_object('id', :'long', 'type', 't')::text]),
    ('text', ARRAY['', ' ', E'\x01', repeat('ü', 65), :'long', 'acme', '{', '''', NULL]),
    ('numeric', '{0,-1,1e-30,9223372036854775807,9223372036854775808,1e200,NaN,Infinity,-Infinity,NULL}'),
    ('timestamp with time zone', '{now,infinity,-infinity,4713-01-01 BC,294276-12-31,NULL}'),
    ('interval', '{1 day,0,-1 month,178000000 years,NULL}'),
    ('integer', '{0,1,-1,30,2147483647,-2147483648,NULL}'),
    ('bigint', '{0,1,-1,9223372036854775807,-9223372036854775808,NULL}'),
    ('boolean', '{t,f,NULL}'),
    ('bytea', ARRAY['', '\x00', '\xff80', NULL]),
    ('uuid', '{00000000-0000-0000-0000-000000000000,NULL}'),
    ('jsonb', ARRAY['{}', '[]', 'null', '"x"', '[1]', '[[]]', '[null]', '[{}]', '{"a": {"b": 1}}', NULL,
                    '[{"tenant_id": 1, "metric": {}, "quantity": "x"}]',
                    '[{"tenant_id": "acme", "metric": "api_calls", "quantity": 1e400}]',
                    '[{"tenant_id": "acme", "metric": "api_calls", "quantity": 1, "occurred_at": "never"}]']),
    ('text[]', '{"{}","{acme}","{NULL}","{{acme,b},{c,d}}","[5:6]={acme,acme}",NULL}'),
    ('numeric[]', '{"{}","{1}","{NULL}","{NaN}","{{1,2},{3,4}}","[5:6]={1,2}",NULL}'),
    ('timestamp with time zone[]', '{"{}","{now}","{NULL}","{infinity}","[5:6]={now,now}",NULL}'),
    ('integer[]', '{"{}","{1}","{1,2}","{NULL}","{0,-1}","[5:6]={1,2}",NULL}'),
    ('bytea[]', ARRAY['{}', '{"\\\\x00"}', '{NULL}', '[5:5]={"\\\\x00"}', NULL]),
    ('jsonb[]', ARRAY['{}', '{NULL}', '{null}', '{1,"[]"}', '{"{}",NULL,"{\"a\": {}}"}', NULL])) p(name, v);

CREATE TABLE answers (call text, state text, message text);
CREATE FUNCTION pg_temp.argument(parameter text, type regtype) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    named text := parameter || CASE WHEN type::text LIKE '%[]' THEN '[]' ELSE '' END;
    wanted text := CASE WHEN random() < 0.9 AND named IN (SELECT name FROM pool) THEN named ELSE type::text END;
BEGIN
    RETURN coalesce((SELECT format('%L::%s', value, type) FROM pool WHERE name = wanted ORDER BY random() LIMIT 1),
                    'the pool has no ' || wanted);
END $$;
SELECT setseed(0.5) \g /dev/null
DO $$
DECLARE
    f record;
    call text;
    answer jsonb;
BEGIN
    FOR f IN
        SELECT proname, proargnames, proargtypes::oid[] AS types, pronargs, oid::regprocedure::text AS signature
          FROM pg_proc
         WHERE pronamespace = 'billing'::regnamespace AND proname NOT LIKE '\_%' AND pronargs > 0
         ORDER BY signature
    LOOP
        FOR i IN 1..100 LOOP
            SELECT format('SELECT to_jsonb(r) FROM billing.%I(%s) r', f.proname,
                          string_agg(pg_temp.argument(f.proargnames[n], f.types[n - 1]), ', ' ORDER BY n))
              INTO call FROM generate_series(1, f.pronargs) n;
            BEGIN
                FOR answer IN EXECUTE call LOOP
                    -- of a batch, a refused event's reason is its error; what is no number or time is 22P02, 22007
                    IF answer ->> 'status' = 'rejected' AND answer ->> 'reason' !~ '^(UB|22P02|22007)' THEN
                        RAISE EXCEPTION '%', answer ->> 'reason';
                    END IF;
                END LOOP;
                RAISE SQLSTATE '00UND';
            EXCEPTION WHEN OTHERS THEN
                INSERT INTO answers VALUES (call, SQLSTATE, SQLERRM);
            END;
        END LOOP;
    END LOOP;
END $$;
\set ECHO all
-- errors that are not ours
SELECT DISTINCT ON (split_part(call, '(', 2), state) left(call, 100) AS call, state, left(message, 100) AS message
  FROM answers WHERE state NOT LIKE 'UB%' AND state <> '00UND';
-- the results were many, and are undone
SELECT count(*) > 300 AS many FROM answers WHERE state = '00UND';
SELECT used FROM billing.check_quota('acme', 'api_calls', 1);
SELECT count(*) FROM billing.usage_events;
