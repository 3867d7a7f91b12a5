#!/usr/bin/env bash
# Random queries (sqlsmith) as users of each group: no crash, no internal error, and nothing stays counted.
#
# SQLSMITH_QUERIES queries for each group, random from SQLSMITH_SEED on. Some fail, which is as good as an answer; each
# is rolled back.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/sanitizer.sh"
queries=${SQLSMITH_QUERIES:-100} seed=${SQLSMITH_SEED:-1}

# In the log: the SQLSTATE before each message, and the place in the sources after it.
cluster_start main pg_billing.database_workers=off track_functions=all autovacuum=off \
    log_min_messages=error log_error_verbosity=verbose log_line_prefix='%m [%p] %u %e '
cluster_psql >/dev/null <<'SQL'
CREATE EXTENSION pg_billing;
SELECT billing.install();
SELECT billing.create_customer(t, t, t || '@example.com', stripe => false),
       billing.create_subscription(t, 'standard'), billing.set_quota(t, 'api_calls', 50, 'hard')
  FROM unnest('{acme,globex}'::text[]) t;
SELECT billing.record_usage(t, m, 20, m)
  FROM unnest('{acme,globex}'::text[]) t, unnest('{api_calls,storage_gb}'::text[]) m;
CREATE ROLE smith_admin LOGIN IN ROLE billing_admin;
CREATE ROLE smith_app LOGIN IN ROLE billing_app;
CREATE ROLE smith_tenant LOGIN IN ROLE billing_tenant;
INSERT INTO billing.tenant_roles VALUES ('acme', 'smith_tenant');

-- sqlsmith takes what it calls from the catalogue: let that be all of ours that the user may call (the set-returning
-- ones, too, which it would leave out; not those that have nothing to be random about), and a tenth of PostgreSQL's
-- that compute with the types ours take and return.
CREATE SCHEMA smith;
CREATE VIEW smith.pg_proc AS
SELECT p.oid, pronamespace, proname, prorettype, proargtypes, prokind, proretset AND n.nspname <> 'billing' AS proretset
  FROM pg_catalog.pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
 WHERE prokind <> 'p' AND has_function_privilege(p.oid, 'EXECUTE')
   AND (n.nspname = 'billing' AND (pronargs > 0 OR provolatile = 'v')
        OR n.nspname = 'pg_catalog' AND provolatile = 'i' AND provariadic = 0 AND p.oid::int % 10 = 0
        AND p.oid NOT IN (SELECT castfunc FROM pg_cast WHERE castsource = casttarget)
        AND proargtypes::oid[] || prorettype
            <@ '{text,numeric,timestamptz,interval,jsonb,uuid,bool,int,text[]}'::regtype[]::oid[]);
-- Operators it finds past any search_path; those of shapes, networks, bits and ranges would be most of what it writes.
-- The planner looks for them once a table with such a column is analyzed, hence no autovacuum.
DELETE FROM pg_operator USING pg_type t
 WHERE t.oid IN (oprleft, oprright)
   AND (typcategory IN ('G', 'I', 'R', 'V') OR typname IN ('anyrange', 'anymultirange', 'anyenum')) AND oprname <> '=';

-- It makes up only NULLs and small integers, and takes every other value from tables: some of good values and bad ones.
CREATE TABLE smith.values_1 AS
SELECT t, n, at, i, j, gen_random_uuid() AS u, b,
       ARRAY[t, 'acme', NULL] AS ts, ARRAY[n, 1, NULL] AS ns, ARRAY[at, NULL] AS ats
  FROM unnest('{acme,acme,acme,globex,nobody,api_calls,api_calls,api_calls,storage_gb,llm_tokens}'::text[]
              || '{hard,standard,"",\x01}'::text[] || repeat('ü', 3000)) t,
       unnest('{1,2,0.5,0,-1,1e-30,9223372036854775807,1e200,NaN,Infinity,-Infinity}'::numeric[]) n,
       unnest('{now,infinity,-infinity,4713-01-01 BC,294276-12-31}'::timestamptz[]) at,
       unnest('{1 day,1 hour,0,-1 month,178000000 years}'::interval[]) i,
       unnest(ARRAY['[{"tenant_id": "acme", "metric": "api_calls", "quantity": 1}]', '[{}]', '{}', 'null']::jsonb[]) j,
       unnest('{t,f}'::bool[]) b
 ORDER BY md5(t || n::text || at::text || i::text || j::text || b::text) LIMIT 500;
SELECT format('CREATE TABLE smith.values_%s AS SELECT * FROM smith.values_1', i) FROM generate_series(2, 20) i \gexec
GRANT USAGE ON SCHEMA smith TO PUBLIC;
GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA smith TO PUBLIC;
SELECT format('ALTER ROLE smith_%s SET search_path = smith, pg_catalog', r)
  FROM unnest('{admin,app,tenant}'::text[]) r \gexec
SQL

usage() {
    sql "SELECT c.tenant_id, m.name, q.used FROM billing.billing_customers c, billing.metrics m,
                LATERAL billing.check_quota(c.tenant_id, m.name) q ORDER BY 1, 2"
}
# logged REGEX: prints what the log has of that, with the statement; fails when nothing.
logged() { grep -E -A8 "$1" "$(cluster_log)"; }
before=$(usage)
sql 'SELECT pg_stat_reset()' >/dev/null
for group in admin app tenant; do
    ok "$queries queries as a user of billing_$group" \
        sqlsmith --target="host=$PGHOST user=smith_$group dbname=postgres" --exclude-catalog \
        --seed="$seed" --max-queries="$queries"
done
ok 'no process died' not logged 'terminating any other active server processes'
ok 'no internal error' not logged ' XX[0-9A-Z]{3} '
ok 'no sanitizer and no assertion reported anything' not sanitizer_reports "$RUN"
is 'all was rolled back, in the counters, too' "$(usage)" "$before"
called() { sql "SELECT count(*) FROM pg_stat_user_functions WHERE schemaname = 'billing' AND calls > 0"; }
ok 'at least five of our functions were called' test "$(called)" -ge 5
done_testing
