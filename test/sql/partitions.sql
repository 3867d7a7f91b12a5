-- Partitions of usage_events: one per UTC day, made ahead, closed to everybody.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
CREATE VIEW days AS
    SELECT c.oid, c.relname, pg_get_expr(c.relpartbound, c.oid) AS bound
      FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
     WHERE i.inhparent = 'billing.usage_events'::regclass AND c.relname <> 'usage_events_default';
-- today and 3 ahead
SELECT count(*), min(relname), max(relname) FROM days;
SELECT bound FROM days WHERE relname = 'usage_events_20300131';
SELECT billing.maintain();
SELECT count(*) FROM days;

-- rows find the day they were recorded in, whenever they occurred; the index of the tenant is on each
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT status FROM billing.record_usage('acme', 'api_calls', 1, NULL, '2030-01-30 23:59:59.999999+00');
SELECT status FROM billing.record_usage('acme', 'api_calls', 2, NULL, '2030-01-31 00:00+00');
SELECT tableoid::regclass, quantity, occurred_at FROM billing.usage_events ORDER BY quantity;
SELECT count(*) FROM days d JOIN pg_index i ON i.indrelid = d.oid
  JOIN pg_inherits h ON h.inhrelid = i.indexrelid AND h.inhparent = 'billing.usage_events_tenant'::regclass;
SELECT DISTINCT c.reloptions FROM days d JOIN pg_index i ON i.indrelid = d.oid JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_inherits h ON h.inhrelid = i.indexrelid AND h.inhparent = 'billing.usage_events_tick'::regclass;

-- every partition has forced row-level security without a policy, and no rights
SELECT c.relrowsecurity, c.relforcerowsecurity, count(*)
  FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
 WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind = 'r' GROUP BY 1, 2;
SELECT c.relname, p.polname, a.grantee::regrole, a.privilege_type
  FROM pg_class c
  LEFT JOIN pg_policy p ON p.polrelid = c.oid
  LEFT JOIN aclexplode(c.relacl) a ON a.grantee <> c.relowner
 WHERE c.relispartition AND c.relkind = 'r' AND c.relnamespace = 'billing'::regnamespace
   AND (p.oid IS NOT NULL OR a.grantee IS NOT NULL);

-- a worker that was down for a week: events wait in the default partition, and are moved when their days are made
CALL travel('7 days');
SELECT billing.run_rollup();
SELECT status FROM billing.record_usage('acme', 'api_calls', 4, 'waiting');
SELECT status FROM billing.record_usage('acme', 'api_calls', 8, NULL, billing.now() - interval '1 day');
SELECT tableoid::regclass, quantity FROM billing.usage_events WHERE quantity > 2 ORDER BY 2;
-- whatever the session's ways with dates
SET timezone = 'Asia/Kolkata';
SET datestyle = 'SQL, DMY';
SELECT billing.maintain();
RESET datestyle;
RESET timezone;
SELECT tableoid::regclass, quantity, tick::date FROM billing.usage_events ORDER BY 2;
SELECT count(*) FROM billing.usage_events_default;
SELECT count(*), max(relname) FROM days;
SELECT relname, bound FROM days WHERE relname > 'usage_events_20300205' ORDER BY 1;
SELECT relrowsecurity, relforcerowsecurity, relacl::text LIKE '%=%' AS granted FROM pg_class WHERE relname = 'usage_events_20300210';
SELECT status, used FROM billing.record_usage('acme', 'api_calls', 4, 'waiting');
