-- enforce_quota() with a column's sum, with metrics of every kind, and made wrongly.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_subscription(t, 'free') \g /dev/null
CREATE VIEW storage AS
    SELECT t AS tenant, (billing.check_quota(t, 'storage_gb', 0)).used AS counter, billing.get_current_usage(t, 'storage_gb') AS events
      FROM unnest(ARRAY['acme', 'bolt']) t;

-- a column's sum; the free plan has one gigabyte
CREATE TABLE files (id int PRIMARY KEY, org text, gb numeric);
CREATE TRIGGER storage AFTER INSERT OR UPDATE OR DELETE ON files
    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('storage_gb', 'org', 'gb');
CREATE TRIGGER storage_truncated BEFORE TRUNCATE ON files
    EXECUTE FUNCTION billing.enforce_quota('storage_gb', 'org', 'gb');
INSERT INTO files VALUES (1, 'acme', 0.5), (2, 'acme', NULL), (3, 'acme', 0), (4, 'bolt', 0.25), (5, NULL, 7);
SELECT * FROM storage;
UPDATE files SET gb = 0.25 WHERE id = 2;
UPDATE files SET gb = 0.375 WHERE id = 1;
CALL attempt($$UPDATE files SET gb = 0.75000001 WHERE id = 1$$);
SELECT * FROM storage;
UPDATE files SET org = 'bolt', gb = gb * 2 WHERE id = 1;
SELECT * FROM storage;
SELECT tenant_id, quantity FROM billing.usage_events ORDER BY tick, ctid;
UPDATE files SET gb = NULL WHERE id = 1;
CALL attempt($$INSERT INTO files VALUES (6, 'acme', 0.7500000001)$$);
CALL attempt($$INSERT INTO files VALUES (6, 'acme', 'NaN')$$);
CALL attempt($$INSERT INTO files VALUES (6, 'acme', 'infinity')$$);
CALL attempt($$INSERT INTO files VALUES (6, 'acme', -0.1)$$);
CALL attempt($$INSERT INTO files VALUES (6, 'acme', 1e20)$$);
-- what could not be counted can be changed and deleted
SET session_replication_role = replica;
INSERT INTO files VALUES (7, 'acme', 0.1234567891), (8, 'acme', 'NaN'), (9, 'acme', 'infinity'), (10, 'bolt', 1e20),
    (11, 'bolt', '-infinity'), (12, 'acme', -7);
RESET session_replication_role;
DELETE FROM files WHERE id = 7;
SELECT * FROM storage;
UPDATE files SET gb = 0.0625 WHERE id = 12;
DELETE FROM files WHERE id IN (8, 11);
SELECT * FROM storage;
TRUNCATE files;
SELECT * FROM storage;
DROP TABLE files;

-- any type of number; a generated column counts only what is to be counted
CREATE DOMAIN megabytes AS bigint;
CREATE TABLE files (org varchar, small smallint, whole int, big megabytes, exact numeric(8, 2), single real, double double precision,
                    live boolean DEFAULT true, label text,
                    counted double precision GENERATED ALWAYS AS (CASE WHEN live THEN double END) STORED);
CREATE PROCEDURE count_by(name text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER storage AFTER INSERT OR UPDATE OR DELETE ON files
                    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota(''storage_gb'', ''org'', %L)', name);
END $$;
SELECT FROM billing.set_quota('acme', 'storage_gb', 1000) \g /dev/null
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['small', 'whole', 'big', 'exact', 'single', 'double'] LOOP
        CALL count_by(name);
        EXECUTE format('INSERT INTO files (org, %I) VALUES (''acme'', 1.5)', name);
        DELETE FROM files;
    END LOOP;
END $$;
SELECT DISTINCT quantity FROM billing.usage_events WHERE abs(quantity) >= 1 ORDER BY 1;
CALL count_by('single');
INSERT INTO files (org, single) VALUES ('acme', 0.1);
CALL count_by('counted');
INSERT INTO files (org, double) VALUES ('acme', 0.2);
UPDATE files SET live = false WHERE double = 0.2;
INSERT INTO files (org, double, live) VALUES ('acme', 0.2, false);
SELECT * FROM storage;
DROP TABLE files;

-- counters only grow: what is added counts when it is added, and nothing is given back
CREATE TABLE calls (id int, org text, n int);
CREATE TRIGGER calls AFTER INSERT OR UPDATE OR DELETE ON calls
    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('api_calls', 'org', 'n');
CREATE TRIGGER calls_truncated BEFORE TRUNCATE ON calls EXECUTE FUNCTION billing.enforce_quota('api_calls', 'org', 'n');
INSERT INTO calls VALUES (1, 'acme', 10), (2, 'acme', 5);
UPDATE calls SET n = 12 WHERE id = 1;
UPDATE calls SET n = 1 WHERE id = 1;
UPDATE calls SET org = 'bolt' WHERE id = 2;
DELETE FROM calls WHERE id = 2;
TRUNCATE calls;
SELECT t, billing.get_current_usage(t, 'api_calls') FROM unnest(ARRAY['acme', 'bolt']) t;
CALL attempt($$INSERT INTO calls VALUES (3, 'acme', 1200)$$);
-- a metric that counts events has one for each row; one that has no sum cannot be capped
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name)
VALUES ('jobs', 'Jobs', 'counter', 'jobs', 'count', 0, 'jobs'), ('peak', 'Peak', 'counter', 'peak', 'max', 0, 'peak');
SELECT FROM unnest(ARRAY['jobs', 'peak']) m, billing.set_quota('acme', m, 2) \g /dev/null
CREATE TABLE jobs (org text, n int);
CREATE TRIGGER jobs AFTER INSERT OR DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('jobs', 'org');
INSERT INTO jobs VALUES ('acme'), ('acme');
DELETE FROM jobs;
CALL attempt($$INSERT INTO jobs VALUES ('acme')$$);
SELECT FROM billing.clear_quota('acme', 'jobs') \g /dev/null
CREATE OR REPLACE TRIGGER jobs AFTER INSERT OR DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('jobs', 'org', 'n');
CALL attempt($$INSERT INTO jobs VALUES ('acme', 2)$$);
CREATE OR REPLACE TRIGGER jobs AFTER INSERT OR DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('peak', 'org');
CALL attempt($$INSERT INTO jobs VALUES ('acme')$$);
DROP TRIGGER jobs ON jobs;
CREATE TRIGGER jobs AFTER INSERT ON jobs REFERENCING NEW TABLE AS added EXECUTE FUNCTION billing.enforce_quota('jobs', 'org');
CALL attempt($$INSERT INTO jobs VALUES ('acme')$$);
DROP TABLE jobs;

-- made wrongly
CREATE TABLE wrong (org text, n text);
CREATE PROCEDURE attempt_trigger(kind text, arguments text, statement text DEFAULT 'INSERT INTO wrong VALUES (''acme'', 1)')
LANGUAGE plpgsql AS $$
BEGIN
    RAISE INFO '% (%)', kind, arguments;
    DROP TRIGGER IF EXISTS wrong ON wrong;
    EXECUTE format('CREATE TRIGGER wrong %s EXECUTE FUNCTION billing.enforce_quota(%s)', kind, arguments);
    CALL attempt(statement);
END $$;
SET client_min_messages = warning;
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', '');
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats'$$);
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats', 'org', 'n', 'm'$$);
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'nothing', 'org'$$);
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats', 'tenant'$$);
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats', 'ctid'$$);
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats', 'org', 'size'$$);
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats', 'org', 'n'$$);
CALL attempt_trigger('BEFORE INSERT ON wrong FOR EACH ROW', $$'user_seats', 'org'$$);
CALL attempt_trigger('BEFORE INSERT ON wrong', $$'user_seats', 'org'$$);
CALL attempt_trigger('AFTER INSERT ON wrong', $$'user_seats', 'org'$$);
CALL attempt_trigger('AFTER UPDATE ON wrong REFERENCING NEW TABLE AS added', $$'user_seats', 'org'$$, 'UPDATE wrong SET n = 1');
CALL attempt_trigger('AFTER UPDATE ON wrong REFERENCING OLD TABLE AS removed', $$'user_seats', 'org'$$, 'UPDATE wrong SET n = 1');
CALL attempt_trigger('AFTER DELETE ON wrong', $$'user_seats', 'org'$$, 'DELETE FROM wrong');
CALL attempt_trigger('AFTER TRUNCATE ON wrong', $$'user_seats', 'org'$$, 'TRUNCATE wrong');
DROP TRIGGER wrong ON wrong;
CREATE VIEW wrong_view AS SELECT * FROM wrong;
CREATE TRIGGER wrong INSTEAD OF INSERT ON wrong_view FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
CALL attempt($$INSERT INTO wrong_view VALUES ('acme')$$);
CALL attempt('SELECT billing.enforce_quota()');
DROP VIEW wrong_view;
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats', 'org'$$, 'INSERT INTO wrong VALUES (''nobody'')');
CALL attempt_trigger('AFTER INSERT ON wrong FOR EACH ROW', $$'user_seats', 'org'$$, 'INSERT INTO wrong VALUES ('''')');
CALL attempt_trigger('AFTER INSERT OR DELETE ON wrong FOR EACH ROW', $$'user_seats', 'org'$$, 'INSERT INTO wrong VALUES (repeat(''x'', 129))');
SET session_replication_role = replica;
INSERT INTO wrong VALUES (''), (repeat('x', 129));
RESET session_replication_role;
DELETE FROM wrong;
INSERT INTO wrong VALUES ('nobody');
ALTER TABLE wrong RENAME COLUMN org TO tenant;
INSERT INTO wrong VALUES ('acme');
-- the extension does not go unnoticed while a table counts on it
DROP TABLE calls;
DROP VIEW storage;
DROP EXTENSION pg_billing;
