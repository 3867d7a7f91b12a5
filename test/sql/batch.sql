-- record_usage_batch: a result for every event, in the order given, whatever the others are.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('other', 'Other', 'o@o.example', stripe => false) \g /dev/null
SELECT status FROM billing.record_usage('acme', 'api_calls', 1, 'known');
SELECT * FROM billing.record_usage_batch('[
    {"tenant_id": "other", "metric": "api_calls", "idempotency_key": "z"},
    {"tenant_id": "acme", "metric": "llm_tokens", "quantity": 1500, "idempotency_key": "b",
     "occurred_at": "2030-01-31T12:10:00Z", "properties": {"model": "large"}},
    {"tenant_id": "acme", "metric": "storage_gb", "quantity": "0.25", "idempotency_key": "a", "properties": null},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": 5, "idempotency_key": "known"},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": 5, "idempotency_key": "twice"},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": 6, "idempotency_key": "twice"},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": 2000},
    {"tenant_id": "acme", "metric": "nothing", "idempotency_key": "c"},
    {"tenant_id": "nobody", "metric": "api_calls", "idempotency_key": "d"},
    {"metric": "api_calls"},
    {"tenant_id": "acme"},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": -1},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": "many"},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": null, "idempotency_key": "e"},
    {"tenant_id": "acme", "metric": "api_calls", "occurred_at": "yesteryear"},
    {"tenant_id": "acme", "metric": "api_calls", "occurred_at": "2031-01-31T12:10:00Z"},
    {"tenant_id": "acme", "metric": "api_calls", "properties": []},
    {"tenant_id": "acme", "metric": "api_calls", "idempotency_key": ""},
    {"tenant_id": "acme", "metric": "api_calls", "quality": 1},
    "event", 7, null, [], {}
]');
SELECT tenant_id, metric, quantity, idempotency_key, properties FROM billing.usage_events ORDER BY 1, 2, 3;
SELECT used FROM billing.check_quota('acme', 'api_calls');
-- once more: what was recorded is known, what was rejected may be mended
SELECT status, count(*) FROM billing.record_usage_batch('[
    {"tenant_id": "other", "metric": "api_calls", "idempotency_key": "z"},
    {"tenant_id": "acme", "metric": "llm_tokens", "quantity": 1500, "idempotency_key": "b"},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": 5, "idempotency_key": "c"}
]') GROUP BY 1 ORDER BY 1;
SELECT * FROM billing.record_usage_batch('[]');
CALL attempt($$SELECT * FROM billing.record_usage_batch('{"tenant_id": "acme", "metric": "api_calls"}')$$);
CALL attempt($$SELECT * FROM billing.record_usage_batch('null')$$);
CALL attempt($$SELECT * FROM billing.record_usage_batch(NULL)$$);
-- a bound session records for its tenant only
SET pg_billing.tenant_id = 'acme';
SELECT status, reason FROM billing.record_usage_batch('[{"tenant_id": "acme", "metric": "api_calls"}, {"tenant_id": "other", "metric": "api_calls"}]');
RESET pg_billing.tenant_id;
-- an error of another kind is no verdict on the event: it fails the call, and nothing is left
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk on fire' USING ERRCODE = '58030'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON billing.usage_events FOR EACH ROW WHEN (new.quantity = 13) EXECUTE FUNCTION refuse();
CALL attempt($$SELECT * FROM billing.record_usage_batch('[{"tenant_id": "acme", "metric": "api_calls", "quantity": 12},
                                                          {"tenant_id": "acme", "metric": "api_calls", "quantity": 13}]')$$);
SELECT used FROM billing.check_quota('acme', 'api_calls');
-- a thousand
SELECT status, count(*), min(ordinal), max(ordinal)
  FROM billing.record_usage_batch((SELECT jsonb_agg(jsonb_build_object('tenant_id', 'acme', 'metric', 'user_seats',
                                              'idempotency_key', n % 900)) FROM generate_series(1, 1000) n))
 GROUP BY 1 ORDER BY 1;
SELECT used FROM billing.check_quota('acme', 'user_seats');

-- the form with arrays: an element for each event, null for the default
SELECT * FROM billing.record_usage_batch(
    ARRAY['other', 'acme', 'acme', NULL, 'acme', 'acme', 'nobody'],
    ARRAY['api_calls', 'api_calls', 'api_calls', 'api_calls', NULL, 'api_calls', 'api_calls'],
    ARRAY[3, NULL, 2, 1, 1, 'NaN'::numeric, 1],
    ARRAY['arr-1', NULL, 'arr-3', 'arr-4', 'arr-5', 'arr-6', 'arr-7'],
    ARRAY['2030-01-31 12:00+00', NULL, '2030-01-31 12:01+00', NULL, NULL, NULL, NULL]::timestamptz[],
    ARRAY['{"model": "small"}', NULL, NULL, NULL, NULL, NULL, NULL]::jsonb[]);
SELECT tenant_id, quantity, idempotency_key, occurred_at = billing.now() AS now, properties
  FROM billing.usage_events WHERE tick = (SELECT max(tick) FROM billing.usage_events) AND idempotency_key LIKE 'arr%' ORDER BY 3;
SELECT status, count(*) FROM billing.record_usage_batch(ARRAY['acme', 'acme'], ARRAY['api_calls', 'api_calls']) GROUP BY 1;
SELECT status FROM billing.record_usage_batch(ARRAY['acme'], ARRAY['api_calls'], idempotency_keys => ARRAY['arr-3']);
SELECT status, reason FROM billing.record_usage_batch(ARRAY['acme', 'acme'], ARRAY['api_calls', 'api_calls'],
                                                      properties => ARRAY['[]', 'null']::jsonb[]);
SELECT * FROM billing.record_usage_batch('{}', '{}');
CALL attempt($$SELECT * FROM billing.record_usage_batch(ARRAY['acme'], ARRAY['api_calls', 'api_calls'])$$);
CALL attempt($$SELECT * FROM billing.record_usage_batch(ARRAY['acme'], ARRAY['api_calls'], occurred_ats => '{}')$$);
CALL attempt($$SELECT * FROM billing.record_usage_batch(ARRAY['acme'], ARRAY[['api_calls']])$$);
CALL attempt($$SELECT * FROM billing.record_usage_batch(NULL, ARRAY['api_calls'])$$);
CALL attempt($$SELECT * FROM billing.record_usage_batch(ARRAY['acme'], NULL)$$);

-- whoever reads one row of the result has recorded all the same; within the caller's transaction
SELECT FROM billing.create_subscription('other', 'free') \g /dev/null
SELECT used FROM billing.check_quota('other', 'llm_tokens');
SELECT status FROM billing.record_usage_batch(array_fill('other'::text, ARRAY[5]), array_fill('llm_tokens'::text, ARRAY[5])) LIMIT 1;
SELECT (billing.record_usage_batch(ARRAY['other'], ARRAY['llm_tokens'])).status;
BEGIN;
SELECT count(*) FROM billing.record_usage_batch(ARRAY['other'], ARRAY['llm_tokens'], ARRAY[100], ARRAY['in-transaction']);
SAVEPOINT s;
SELECT count(*) FROM billing.record_usage_batch(ARRAY['other'], ARRAY['llm_tokens'], ARRAY[1000], ARRAY['in-savepoint']);
SELECT used FROM billing.check_quota('other', 'llm_tokens');
ROLLBACK TO s;
SELECT used FROM billing.check_quota('other', 'llm_tokens');
ROLLBACK;
SELECT used FROM billing.check_quota('other', 'llm_tokens');
SELECT status FROM billing.record_usage_batch(ARRAY['other', 'other'], ARRAY['llm_tokens', 'llm_tokens'], ARRAY[0, 0],
                                              ARRAY['in-transaction', 'in-savepoint']);
BEGIN READ ONLY;
CALL attempt($$SELECT * FROM billing.record_usage_batch(ARRAY['acme'], ARRAY['api_calls'])$$);
ROLLBACK;

-- of two events with one key the first that is right counts
SELECT * FROM billing.record_usage_batch('[
    {"tenant_id": "acme", "metric": "nothing", "idempotency_key": "k"},
    {"tenant_id": "acme", "metric": "api_calls", "idempotency_key": "k"},
    {"tenant_id": "acme", "metric": "llm_tokens", "idempotency_key": "k"},
    {"tenant_id": "other", "metric": "api_calls", "idempotency_key": "k"}]');

-- times as programs and as people write them are those that a cast makes; a number is no time
CREATE TABLE times (n serial, written text);
INSERT INTO times (written) VALUES ('2030-01-31T12:00:00Z'), ('2030-01-31 12:00:00.5+00'), ('2030-01-31T14:00:00.123456+02:00'),
    ('2030-01-31T08:15:30.0001-0400'), ('2030-01-30T23:59:59.999999-05:30'), ('2030-01-31T12:00:00.1234567Z'), ('2030-01-31T12:00Z'),
    ('2030-01-31 12:00:00'), ('20300131T120000Z'), ('Jan 31 2030 7:00 EST'), ('2030-01-31t12:00:00z'), ('2030-01-31T12:00:00+00:00:30'),
    ('2030-02-30T12:00:00Z'), ('2030-01-31T24:00:01Z'), ('2030-01-31T12:60:00Z'), ('2030-01-31T11:59:60Z'), ('2030-01-31T12:00:00+25:00'),
    ('2030-01-31T12:00:00Zulu'), ('2030-01-31T12:00:00.Z'), ('2030-1-31T12:00:00Z'), ('2030-01-31T12:00:00'), (''), ('infinity'), ('7');
CREATE FUNCTION cast_of(written text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE WHEN isfinite(written::timestamptz) THEN written::timestamptz END;
EXCEPTION WHEN data_exception THEN
    RETURN SQLSTATE || ': ' || SQLERRM;
END $$;
CREATE TABLE results AS
SELECT * FROM billing.record_usage_batch((SELECT jsonb_agg(jsonb_build_object('tenant_id', 'other', 'metric', 'api_calls', 'quantity', 0,
                                                 'occurred_at', t.written, 'idempotency_key', 'time-' || t.n) ORDER BY t.n) FROM times t));
SELECT t.written, coalesce(e.occurred_at::text, r.reason) AS read, cast_of(t.written) = coalesce(e.occurred_at::text, r.reason) AS as_cast
  FROM times t JOIN results r ON t.n = r.ordinal
  LEFT JOIN billing.usage_events e ON e.tenant_id = 'other' AND e.idempotency_key = r.idempotency_key ORDER BY t.n;
-- values of other types are read as ->> shows them
SELECT status, reason FROM billing.record_usage_batch('[
    {"tenant_id": true, "metric": "api_calls"}, {"tenant_id": 7, "metric": "api_calls"}, {"tenant_id": "acme", "metric": {"a": [1]}},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": true}, {"tenant_id": "acme", "metric": "api_calls", "quantity": [1]},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": "1e2", "idempotency_key": 1700},
    {"tenant_id": "acme", "metric": "api_calls", "occurred_at": 7}, {"tenant_id": "acme", "metric": "api_calls", "occurred_at": null},
    {"tenant_id": "acme", "metric": "api_calls", "quantity": "NaN"}, {"tenant_id": "acme", "metric": "api_calls", "quantity": "1e400000"}]');
SELECT quantity, idempotency_key FROM billing.usage_events WHERE idempotency_key = '1700';

-- an event counts into the period in which it occurred, and into its hour; a gauge goes up and down; a count counts
SELECT FROM billing.create_customer('late', 'Late', 'l@l.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('late', 'standard') \g /dev/null
SELECT billing.set_quota('late', 'api_calls', 10, per => 'hour') \g /dev/null
CALL travel('40 days');
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name) VALUES
    ('logins', 'Logins', 'counter', 'login', 'count', 0, 'logins'), ('peak', 'Peak', 'counter', 'unit', 'max', 0, 'peak'),
    ('tiny', 'Tiny', 'counter', 'unit', 'sum', 6, 'tiny');
SELECT billing.set_quota('late', m, 100) FROM unnest(ARRAY['logins', 'tiny']) m \g /dev/null
SELECT r.ordinal, r.status, r.reason FROM billing.record_usage_batch(
    array_fill('late'::text, ARRAY[8]),
    ARRAY['api_calls', 'api_calls', 'api_calls', 'storage_gb', 'storage_gb', 'logins', 'logins', 'peak'],
    ARRAY[1, 2, 4, 10, -2.5, 3, 5, 9],
    NULL,
    ARRAY[billing.now(), billing.now() - interval '1 hour', billing.now() - interval '30 days', NULL, NULL, NULL, NULL, NULL]) r;
SELECT metric, period_start, sum(quantity) FROM billing.usage_events WHERE tenant_id = 'late' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT (billing.check_quota('late', 'api_calls')).used AS period, (billing.check_quota('late', 'storage_gb')).used AS storage,
       (billing.check_quota('late', 'logins')).used AS logins, billing.get_current_usage('late', 'api_calls', 'previous') AS before;
SELECT reason, used, quota FROM billing.check_quota('late', 'api_calls', 10);
-- what a counter cannot hold is rejected, not before
SELECT status, reason, count(*), min(ordinal), max(ordinal)
  FROM billing.record_usage_batch(array_fill('late'::text, ARRAY[9230]), array_fill('tiny'::text, ARRAY[9230]),
                                  array_fill(999999999.999999, ARRAY[9230]))
 GROUP BY 1, 2 ORDER BY 1;
SELECT used FROM billing.check_quota('late', 'tiny', 0);
