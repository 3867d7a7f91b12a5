\set ECHO none
-- What a regression test begins with: the extension, installed in an empty database whose clock starts at
-- 2030-01-31 12:30 UTC, so that periods can be printed; attempt(), which shows an error whole; travel().
--
--     \getenv tests PG_ABS_SRCDIR
--     \set begin :tests /lib/regress.sql
--     \i :begin
SET client_min_messages = warning;
SELECT ceil(extract(epoch FROM timestamptz '2030-01-31 12:30+00' - clock_timestamp()))::bigint AS shift \gset
ALTER DATABASE :"DBNAME" SET pg_billing.time_shift = :shift;
ALTER DATABASE :"DBNAME" SET timezone = 'UTC';
ALTER DATABASE :"DBNAME" SET pg_billing.missed_events_interval = -1;
\setenv PGTZ
\setenv PGDATESTYLE ISO
\c -
SET intervalstyle = postgres;
CREATE EXTENSION pg_billing;
SELECT FROM billing.install() \g /dev/null

-- Runs a statement and undoes it if it fails, showing the error with SQLSTATE, DETAIL and HINT.
CREATE PROCEDURE attempt(statement text) LANGUAGE plpgsql AS $$
DECLARE
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RAISE INFO 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RAISE INFO USING MESSAGE = concat(SQLSTATE, ': ', SQLERRM, E'\n  DETAIL  ' || nullif(detail, ''),
                                      E'\n  HINT    ' || nullif(hint, ''));
END $$;

-- Sets the session's clock forward.
CREATE PROCEDURE travel(distance interval) LANGUAGE sql AS $$
    SELECT set_config('pg_billing.time_shift',
                      extract(epoch FROM current_setting('pg_billing.time_shift')::interval + distance)::bigint::text, false)
$$;
\set ECHO all
