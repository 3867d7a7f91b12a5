-- What has been decided and done since the server started, from shared memory, and what is under way. Times are in
-- milliseconds, as in PostgreSQL's own statistics.

CREATE FUNCTION billing._stat_outcomes(OUT metric text, OUT status text, OUT reason text, OUT decisions bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_stat_outcomes';

CREATE FUNCTION billing._stat_counters(OUT capacity bigint, OUT in_use bigint, OUT pinned bigint, OUT loads bigint,
                                       OUT evictions bigint, OUT refused bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_stat_counters';

CREATE FUNCTION billing._stat_rollups(OUT runs bigint, OUT events bigint, OUT total_time double precision,
                                      OUT last_run_at timestamptz, OUT last_events bigint, OUT last_time double precision)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_stat_rollups';

CREATE FUNCTION billing._stat_reports(OUT pid int, OUT datid oid, OUT command text, OUT phase text,
                                      OUT started_at timestamptz, OUT done bigint, OUT total bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_stat_reports';

CREATE FUNCTION billing._stat_reset_at() RETURNS timestamptz
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_stat_reset_at';

CREATE FUNCTION billing.stat_reset() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_stat_reset';
COMMENT ON FUNCTION billing.stat_reset() IS
    'sets the numbers of billing''s stat_ views back to zero: this database''s, and those of the counters, which all databases share';

-- Says how far this backend is with a long command; ends with its transaction.
CREATE FUNCTION billing._report_progress(command text, phase text, done bigint, total bigint) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_report_progress';

CREATE FUNCTION billing._note_rollup(events bigint, began timestamptz) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_note_rollup';

CREATE VIEW billing.stat_metrics AS
    SELECT o.metric,
           coalesce(sum(o.decisions) FILTER (WHERE o.status = 'recorded'), 0)::bigint AS recorded,
           coalesce(sum(o.decisions) FILTER (WHERE o.status = 'duplicate'), 0)::bigint AS duplicates,
           coalesce(sum(o.decisions) FILTER (WHERE o.status = 'allowed'), 0)::bigint AS checks_allowed,
           coalesce(sum(o.decisions) FILTER (WHERE o.status = 'denied'), 0)::bigint AS denied,
           billing._stat_reset_at() AS stats_reset
      FROM billing._stat_outcomes() o GROUP BY o.metric;
COMMENT ON VIEW billing.stat_metrics IS
    'decisions per metric since stats_reset, rolled back ones included: recorded, duplicates, checks_allowed, denied';

CREATE VIEW billing.stat_denials AS
    SELECT o.metric, o.reason, o.decisions AS denied FROM billing._stat_outcomes() o WHERE o.status = 'denied';
COMMENT ON VIEW billing.stat_denials IS 'denials per metric and reason';

CREATE VIEW billing.stat_counters AS SELECT * FROM billing._stat_counters();
COMMENT ON VIEW billing.stat_counters IS
    'quota counters in shared memory, of all databases: capacity, in_use, pinned by open transactions; loads from tables, evictions, and calls refused for lack of room';

-- How far the rollup is behind: the age of the oldest tick that is not folded; null before the first rollup.
CREATE FUNCTION billing._rollup_lag() RETURNS interval
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT greatest(billing.now() - s.tail, interval '0') FROM billing.rollup_state s WHERE isfinite(s.tail)
$$;

CREATE VIEW billing.stat_rollup AS SELECT r.*, billing._rollup_lag() AS lag FROM billing._stat_rollups() r;
COMMENT ON VIEW billing.stat_rollup IS
    'rollups of this database: runs, events folded and total_time (ms), the same of the last one, and lag, the age of the oldest usage that may not be rolled up';

CREATE VIEW billing.stat_progress AS
    SELECT r.pid, d.datname, r.command, r.phase, r.started_at, r.done, r.total
      FROM billing._stat_reports() r JOIN pg_database d ON d.oid = r.datid;
COMMENT ON VIEW billing.stat_progress IS
    'long commands under way in the server: command, phase, how much of it is done, and of how much (null: not known)';

CREATE FUNCTION billing._job_state(job text, OUT pid int, OUT failed_runs int, OUT next_run_at timestamptz)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_job_state';

CREATE VIEW billing.stat_workers AS
    SELECT j.job, s.pid, s.failed_runs, s.next_run_at FROM unnest(ARRAY['rollup', 'stripe', 'notify', 'cache']) j (job), billing._job_state(j.job) s;
COMMENT ON VIEW billing.stat_workers IS
    'the jobs of this database''s background workers: pid while one runs, how many runs in a row have failed (of stripe: Stripe does not answer, and is tried later and later), and when the next one is due in machine time';
