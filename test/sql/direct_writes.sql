-- Usage is written by functions only: every other statement that would write it is refused, a superuser's as well.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT status, used FROM billing.record_usage('acme', 'api_calls', 5, 'first');
SELECT billing.run_rollup();
SELECT status, used FROM billing.record_usage('acme', 'api_calls', 7, 'second');
CREATE VIEW figures AS
    SELECT (billing.check_quota('acme', 'api_calls', 0)).used AS counter, billing.get_current_usage('acme', 'api_calls') AS rows,
           (SELECT count(*) FROM billing.usage_events) AS events, (SELECT count(*) FROM billing.usage_event_keys) AS keys;
SELECT * FROM figures;
SELECT current_setting('is_superuser');

-- every kind of statement on every table
SELECT format('CALL attempt(%L)', format(s, t))
  FROM unnest(ARRAY['usage_events', 'usage_event_keys', 'usage_aggregates', 'usage_quotas', 'reservations']) t,
       unnest(ARRAY['INSERT INTO billing.%1$s SELECT * FROM billing.%1$s', 'UPDATE billing.%s SET tenant_id = ''bolt''',
                    'DELETE FROM billing.%s', 'TRUNCATE billing.%s', 'COPY billing.%s FROM ''/dev/null''']) s \gexec
-- partitions by their own names
SELECT tableoid::regclass AS events FROM billing.usage_events LIMIT 1 \gset
SELECT tableoid::regclass AS keys FROM billing.usage_event_keys LIMIT 1 \gset
CALL attempt(format('DELETE FROM %s', :'events'));
CALL attempt(format('TRUNCATE %s', :'events'));
CALL attempt(format('COPY %s FROM ''/dev/null''', :'events'));
CALL attempt(format('UPDATE %s SET tick = tick', :'keys'));
CALL attempt('INSERT INTO billing.usage_events_default SELECT * FROM billing.usage_events');
-- and by other ways round
SET client_min_messages = warning;
CALL attempt('TRUNCATE billing.metrics CASCADE');
RESET client_min_messages;
CALL attempt('WITH gone AS (DELETE FROM billing.usage_events RETURNING *) SELECT count(*) FROM gone');
CALL attempt('MERGE INTO billing.usage_quotas q USING billing.usage_events e ON e.tenant_id = q.tenant_id
              WHEN MATCHED THEN UPDATE SET used = 0');
CREATE VIEW quotas AS SELECT * FROM billing.usage_quotas;
CALL attempt('UPDATE quotas SET used = 0');
CREATE FUNCTION correct() RETURNS void LANGUAGE sql AS 'UPDATE billing.usage_quotas SET used = 0';
CALL attempt('SELECT correct()');
PREPARE correct AS UPDATE billing.usage_quotas SET used = 0;
EXECUTE correct;
BEGIN;
DELETE FROM billing.usage_events;
ROLLBACK;
SELECT * FROM figures;

-- what is no write of usage is nobody's business
BEGIN;
SELECT quantity FROM billing.usage_events ORDER BY 1 FOR UPDATE;
UPDATE billing.usage_aggregates SET submitted = quantity, blocked = false;
CALL attempt('UPDATE billing.usage_aggregates SET submitted = quantity, quantity = 0');
COPY (SELECT quantity FROM billing.usage_events ORDER BY 1) TO STDOUT;
CREATE TABLE usage_events (LIKE billing.usage_events);
INSERT INTO usage_events SELECT * FROM billing.usage_events;
DELETE FROM usage_events;
ROLLBACK;

-- functions go on
SELECT status, used FROM billing.record_usage('acme', 'api_calls', 1, 'third');
CALL travel('5 days');
SELECT billing.maintain();
SELECT billing.run_rollup();
SELECT FROM billing.set_quota('acme', 'api_calls', 100) \g /dev/null
SELECT billing.install();
SELECT * FROM figures;

-- who insists may, and so may everybody when the extension is gone
BEGIN;
SET LOCAL session_replication_role = replica;
DELETE FROM billing.usage_events;
TRUNCATE billing.usage_event_keys;
SELECT events, keys FROM figures;
ROLLBACK;
BEGIN;
DROP EXTENSION pg_billing CASCADE;
DELETE FROM billing.usage_events;
TRUNCATE billing.usage_quotas;
ROLLBACK;
CALL attempt('DELETE FROM billing.usage_events');
