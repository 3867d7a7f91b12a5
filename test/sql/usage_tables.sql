-- Events and keys are written without the executor. What a DBA adds to their tables is kept to all the same: indexes, check
-- constraints, triggers for each row. What would not be is refused, and nothing is recorded then.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'enterprise') \g /dev/null
CREATE VIEW written AS
    SELECT (SELECT count(*) FROM billing.usage_events) AS events, (SELECT count(*) FROM billing.usage_event_keys) AS keys,
           (billing.check_quota('acme', 'api_calls', 0)).used;
-- the error without what differs from run to run
CREATE PROCEDURE fail(key text, quantity numeric) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM put(key, quantity);
    RAISE INFO 'no error';
EXCEPTION WHEN OTHERS THEN
    RAISE INFO '%: %', SQLSTATE, SQLERRM;
END $$;
CREATE FUNCTION put(key text, quantity numeric DEFAULT 1, properties jsonb DEFAULT NULL) RETURNS text
LANGUAGE sql AS $$ SELECT status FROM billing.record_usage('acme', 'api_calls', quantity, key, NULL, properties) $$;

-- indexes: on an expression, with a predicate, unique
CREATE INDEX by_model ON billing.usage_events ((properties ->> 'model'));
CREATE INDEX large ON billing.usage_events (quantity) WHERE quantity > 5;
SELECT put('a', 1, '{"model": "small"}'), put('b', 10, '{"model": "large"}'), put('a', 1);
SELECT status, count(*) FROM billing.record_usage_batch(array_fill('acme'::text, '{2000}'), array_fill('api_calls'::text, '{2000}'),
           ARRAY(SELECT n % 10 FROM generate_series(1, 2000) n), ARRAY(SELECT 'n' || n FROM generate_series(1, 2000) n), NULL,
           ARRAY(SELECT jsonb_build_object('model', n % 2) FROM generate_series(1, 2000) n)) GROUP BY 1;
SET enable_seqscan = off;
SELECT count(*) FROM billing.usage_events WHERE properties ->> 'model' = '1';
SELECT count(*) FROM billing.usage_events WHERE quantity > 5;
SELECT count(*) FROM billing.usage_events WHERE tenant_id = 'acme' AND tick >= '2030-01-31';
RESET enable_seqscan;
DROP INDEX billing.by_model, billing.large;

-- a unique index of the DBA's: its violation is an error of the call
CREATE UNIQUE INDEX once ON billing.usage_events_20300131 (quantity) WHERE quantity > 1000;
SELECT put('c', 1001);
CALL attempt($$SELECT put('d', 1001)$$);
DROP INDEX billing.once;
SELECT * FROM written;

-- check constraints
ALTER TABLE billing.usage_events ADD CONSTRAINT small CHECK (quantity < 5000);
CALL fail('e', 5000);
SELECT put('e', 4999);
ALTER TABLE billing.usage_events DROP CONSTRAINT small;
SELECT * FROM written;

-- triggers for each row, before and after
CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new.properties := jsonb_build_object('model', 'marked', 'seen', (SELECT count(*) FROM billing.usage_events));
    RETURN new;
END $$;
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE INFO '% %: %', TG_WHEN, TG_OP, coalesce(to_jsonb(new) ->> 'quantity', 'a key');
    RETURN NULL;
END $$;
CREATE TRIGGER mark BEFORE INSERT ON billing.usage_events FOR EACH ROW EXECUTE FUNCTION mark();
CREATE TRIGGER tell AFTER INSERT ON billing.usage_events FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER tell AFTER INSERT ON billing.usage_event_keys FOR EACH ROW EXECUTE FUNCTION tell();
SELECT put('f', 2);
SELECT put('f', 2);
SELECT status FROM billing.record_usage_batch(ARRAY['acme', 'acme', 'acme'], ARRAY['api_calls', 'api_calls', 'api_calls'],
                                              ARRAY[3, 4, 5], ARRAY['g', 'f', 'h']);
SELECT quantity, properties FROM billing.usage_events WHERE properties ->> 'model' = 'marked' ORDER BY quantity;
DROP TRIGGER mark ON billing.usage_events;
DROP TRIGGER tell ON billing.usage_events;
DROP TRIGGER tell ON billing.usage_event_keys;
SELECT * FROM written;

-- one that moves the row elsewhere, or suppresses it, would have usage counted that nobody finds
CREATE FUNCTION wrong() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new.tick := new.tick + interval '1 day';
    RETURN CASE WHEN new.quantity = 1 THEN new END;
END $$;
CREATE TRIGGER wrong BEFORE INSERT ON billing.usage_events_20300131 FOR EACH ROW EXECUTE FUNCTION wrong();
CALL fail('i', 1);
CALL fail('i', 2);
DROP TRIGGER wrong ON billing.usage_events_20300131;

-- refused
CREATE TRIGGER statement AFTER INSERT ON billing.usage_events FOR EACH STATEMENT EXECUTE FUNCTION tell();
CALL attempt($$SELECT put('i')$$);
DROP TRIGGER statement ON billing.usage_events;
ALTER TABLE billing.usage_event_keys ADD note text DEFAULT 'none';
CALL attempt($$SELECT put('i')$$);
ALTER TABLE billing.usage_event_keys DROP note;
SELECT * FROM written;

-- columns are found by name: where one was dropped, those behind it are elsewhere than in the next partition
ALTER TABLE billing.usage_events ADD later int;
ALTER TABLE billing.usage_events DROP later;
ALTER TABLE billing.usage_events RENAME metric TO old_metric;
ALTER TABLE billing.usage_events ADD metric text;
ALTER TABLE billing.usage_events ALTER old_metric DROP NOT NULL;
SELECT put('i', 6);
SELECT old_metric, metric, quantity, idempotency_key FROM billing.usage_events WHERE quantity = 6 AND idempotency_key = 'i';
ALTER TABLE billing.usage_events DROP metric;
ALTER TABLE billing.usage_events RENAME old_metric TO metric;
CREATE TABLE billing.other (LIKE billing.usage_events INCLUDING ALL);
SELECT count(*) FROM pg_attribute WHERE attrelid = 'billing.other'::regclass AND attnum > 0 AND attisdropped;
ALTER TABLE billing.usage_events DETACH PARTITION billing.usage_events_20300131;
ALTER TABLE billing.usage_events ATTACH PARTITION billing.other FOR VALUES FROM ('2030-01-31') TO ('2030-02-01');
SELECT put('j', 7);
SELECT tableoid::regclass, metric, quantity, idempotency_key FROM billing.usage_events WHERE idempotency_key = 'j';

-- no partition
DROP TABLE billing.other, billing.usage_events_default;
CALL attempt($$SELECT put('k')$$);
