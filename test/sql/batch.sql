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
