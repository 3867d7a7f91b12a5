#!/usr/bin/env bash
# Sixteen clients against one hard cap, a fifth of their transactions rolled back: exactly the cap is committed.
source "$(dirname "$0")/../lib/e2e.sh"

cluster_start main
sql "CREATE EXTENSION pg_billing; SELECT billing.install()" >/dev/null
sql "SELECT billing.create_customer('capped', 'Capped', 'capped@example.com');
     SELECT billing.set_quota('capped', 'api_calls', 1000, 'hard');
     SELECT billing.set_quota('capped', 'llm_tokens', 1000, 'hard')" >/dev/null

# Rolled back at the top, in a savepoint and in a PL/pgSQL exception block, besides committed.
cat >"$RUN/consume.sql" <<'SQL'
\set fate random(1, 10)
BEGIN;
SELECT billing.try_consume('capped', 'api_calls');
\if :fate = 1
ROLLBACK;
\elif :fate = 2
SAVEPOINT s;
SELECT billing.try_consume('capped', 'llm_tokens');
ROLLBACK TO s;
COMMIT;
\elif :fate = 3
DO $$ BEGIN PERFORM billing.try_consume('capped', 'llm_tokens'); RAISE 'no'; EXCEPTION WHEN raise_exception THEN END $$;
COMMIT;
\else
SELECT billing.try_consume('capped', 'llm_tokens');
COMMIT;
\endif
SQL
ok 'pgbench runs 5,008 transactions of 16 clients' \
    "$PG_BIN/pgbench" --no-vacuum --client 16 --jobs 2 --transactions 313 --file "$RUN/consume.sql"

for metric in api_calls llm_tokens; do
    is "$metric: the events are the cap, exactly" \
        "$(sql "SELECT sum(quantity) FROM billing.usage_events WHERE metric = '$metric'")" 1000
    is "$metric: get_current_usage() says so" "$(sql "SELECT billing.get_current_usage('capped', '$metric')")" 1000
    is "$metric: the counter says so, and denies" \
        "$(sql "SELECT used, allowed, reason FROM billing.check_quota('capped', '$metric')")" '1000|f|hard_cap'
done
sql 'SELECT billing.run_rollup()' >/dev/null
is 'after the rollup, too' "$(sql "SELECT billing.get_current_usage('capped', 'api_calls')")" 1000
cluster_restart main
is 'a counter loaded anew has the same number' \
    "$(sql "SELECT used, allowed FROM billing.check_quota('capped', 'api_calls')")" '1000|f'
is 'a raised quota admits the difference' \
    "$(sql "SELECT billing.set_quota('capped', 'api_calls', 1001, 'hard')" >/dev/null
       sql "SELECT allowed FROM billing.try_consume('capped', 'api_calls')
            UNION ALL SELECT allowed FROM billing.try_consume('capped', 'api_calls')" | paste -sd' ')" 't f'

# More tenants in one transaction than there are counters: refused, never let through; room again afterwards.
cluster_configure main pg_billing.max_counters=16
cluster_restart main
sql "SELECT billing.create_customer('t' || i, 'T', 't@example.com') FROM generate_series(1, 60) i;
     SELECT billing.set_quota('t' || i, 'api_calls', 5, 'hard') FROM generate_series(1, 60) i" >/dev/null
like 'a transaction that holds more counters than there are is refused' \
    "$(sql "SELECT billing.try_consume('t' || i, 'api_calls', 5) FROM generate_series(1, 60) i" 2>&1)" \
    'no room for another quota counter'
for _ in 1 2 3; do
    for i in $(seq 60); do
        echo "SELECT billing.try_consume('t$i', 'api_calls', 5);"
    done
done >"$RUN/many.sql"
ok 'one after the other, evicted counters are loaded again' cluster_psql -f "$RUN/many.sql"
is 'and no cap was passed' \
    "$(sql "SELECT count(*), max(used), min(used) FROM (SELECT sum(quantity) AS used FROM billing.usage_events
            WHERE tenant_id LIKE 't%' GROUP BY tenant_id) u")" '60|5|5'
done_testing
