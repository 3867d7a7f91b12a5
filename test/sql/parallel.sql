-- Parallel query: usage is counted by the session itself, never by its parallel workers, however much the planner wants
-- them.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'enterprise') \g /dev/null
CREATE TABLE work AS SELECT n FROM generate_series(1, 1000) n;
ANALYZE work;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
-- named differently before PostgreSQL 16
SELECT FROM pg_settings, set_config(name, 'on', false)
 WHERE name IN ('force_parallel_mode', 'debug_parallel_query') \g /dev/null
CREATE FUNCTION parallel(statement text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN ' || statement LOOP
        IF line LIKE '%Gather%' THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END $$;
CREATE VIEW used AS
    SELECT (billing.check_quota('acme', 'api_calls', 0)).used AS counter,
           billing.get_current_usage('acme', 'api_calls') AS rows;

SELECT count(*) FROM pg_proc WHERE pronamespace = 'billing'::regnamespace AND provolatile = 'v' AND proparallel <> 'u';
SELECT parallel('SELECT count(*) FROM work WHERE n % 2 = 0');
SELECT verb, parallel(format('SELECT count((billing.%s(''acme'', ''api_calls'', n)).used) FROM work', verb))
  FROM unnest('{check_quota,record_usage,try_consume,consume}'::text[]) verb;
SELECT parallel('SELECT count(*) FROM work WHERE (billing.check_quota(''acme'', ''api_calls'', n)).allowed');
SELECT count(*) FROM work WHERE (billing.check_quota('acme', 'api_calls', n)).allowed;
SELECT d.status, count(*) FROM work, billing.record_usage('acme', 'api_calls', 1, 'n' || n % 10) d
 GROUP BY 1 ORDER BY 1;
SELECT * FROM used;
-- said to be safe by somebody who is wrong: refused, and nothing is kept
CREATE FUNCTION take(n int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
    RETURN (billing.try_consume('acme', 'api_calls', n)).status;
END $$;
SELECT parallel('SELECT count(take(n)) FROM work');
DO $$
BEGIN
    PERFORM count(take(n)) FROM work;
    RAISE INFO 'not refused';
EXCEPTION WHEN OTHERS THEN
    RAISE INFO 'refused';
END $$;
SELECT * FROM used;
