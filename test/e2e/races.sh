#!/usr/bin/env bash
# Races that need a server of their own: counters are evicted while usage of theirs is in flight or its commit half
# done, all are taken, loads fail, backends are terminated under load, the server stops in the middle.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/sessions.sh"
source "$TOP/test/border/module.sh"

server_directory "$RUN"
ok 'the module builds without a warning' border_module stall
# With sixteen counters any of them is evicted at will. With a standby that never comes, a commit of a session that has
# set synchronous_commit = on is durable, and visible to nobody, until it is cancelled.
cluster_start main pg_billing.database_workers=off pg_billing.max_counters=16 max_prepared_transactions=2 \
    synchronous_standby_names=nobody synchronous_commit=local
cluster_psql <<SQL >/dev/null
CREATE EXTENSION pg_billing;
SELECT billing.install();
SELECT billing.create_customer(t, t, 't@example.com', stripe => false), billing.set_quota(t, 'user_seats', 3)
  FROM (SELECT 't' || i FROM generate_series(1, 60) i UNION ALL VALUES ('acme'), ('busy')) tenants (t);
INSERT INTO billing.metrics (name, display_name, kind, aggregation, unit, scale, stripe_event_name)
VALUES ('peak', 'Peak', 'counter', 'max', 'requests', 0, 'peak');    -- of which there are no counters
SELECT billing.set_quota('busy', 'api_calls', 400), billing.set_quota('busy', 'llm_tokens', NULL);
CREATE FUNCTION stall(file text) RETURNS void LANGUAGE c AS '$RUN/stall.so';
-- How many counters one transaction can have: fewer than before if one was left pinned.
CREATE FUNCTION room() RETURNS int LANGUAGE plpgsql AS \$\$
BEGIN
    FOR i IN 1 .. 60 LOOP
        BEGIN
            PERFORM billing.record_usage('t' || i, 'api_calls');
        EXCEPTION WHEN SQLSTATE 'UB051' THEN
            RETURN i - 1;
        END;
    END LOOP;
    RETURN 60;
END \$\$;
-- Writes what no counter notices: with raised rights, as only the extension's own functions do.
CREATE FUNCTION past_it(seats int) RETURNS void LANGUAGE sql SECURITY DEFINER AS
    \$\$UPDATE billing.usage_quotas SET used = used + seats WHERE tenant_id = 'acme' AND metric = 'user_seats'\$\$;
-- What was used: on the counter, by the events, and by what is rolled up of them with what is not.
CREATE FUNCTION used(tenant_id text DEFAULT 'acme', metric text DEFAULT 'user_seats') RETURNS text LANGUAGE sql AS \$\$
    SELECT concat_ws(' ', (billing.check_quota(\$1, \$2, 0)).used,
                     (SELECT coalesce(sum(e.quantity), 0) FROM billing.usage_events e
                       WHERE e.tenant_id = \$1 AND e.metric = \$2),
                     billing.get_current_usage(\$1, \$2))
\$\$;
SQL
used() { sql "SELECT used('${1:-acme}', '${2:-user_seats}')"; }
take() { sql "SELECT status, used FROM billing.try_consume('${2:-acme}', 'user_seats', $1)"; }
record() { sql "SELECT status, used FROM billing.record_usage('$1', '$2', $3)"; }
room() { sql 'BEGIN; SELECT room(); ROLLBACK'; }
past_it() { sql "SELECT past_it($1)" >/dev/null; }
# Whoever takes all counters there are has every other one evicted that is not pinned.
evict() { room >/dev/null; }

pid_of() { sql "SELECT pid FROM pg_stat_activity WHERE application_name = '$1'"; }
waits_for() { [ "$(sql "SELECT wait_event FROM pg_stat_activity WHERE application_name = '$1'")" = "$2" ]; }

## Two databases with the same tenants, and even the same OIDs
take 1 >/dev/null
sql 'CREATE DATABASE copy TEMPLATE postgres'
is 'a tenant takes what is left' "$(take 2)" 'recorded|3'
is 'its namesake in another database has as much left' \
    "$(PGDATABASE=copy used) $(PGDATABASE=copy take 2) $(PGDATABASE=copy take 1)" '1 1 1 recorded|3 denied|3'
is 'neither notices the other' "$(used)" '3 3 3'

rm -f "$RUN/stall"
session one
session two
room_at_first=$(room)
ok "one transaction can have $room_at_first counters" test "$room_at_first" -ge 16

## A counter is evicted
is 'a counter is loaded' "$(used)" '3 3 3'
past_it -1
is 'a counter knows nothing of rows written past it' "$(used | cut -d' ' -f1)" 3
evict
is 'until it is evicted and loaded again' "$(used | cut -d' ' -f1)" 2
past_it 1
evict

ask one 'BEGIN; SELECT FROM billing.record_usage($$acme$$, $$user_seats$$, -2)' >/dev/null
ask two 'BEGIN; SELECT FROM billing.record_usage($$acme$$, $$user_seats$$, 2)' >/dev/null
evict
is 'not while a transaction has usage on it' "$(used) $(take 1)" '5 3 3 denied|5'
ask two ROLLBACK
evict
is 'nor while another one has' "$(used)" '3 3 3'
ask one COMMIT
is 'and what is committed or rolled back then, it knows' "$(used)" '1 1 1'
evict
is 'as the rows do' "$(used)" '1 1 1'

ask two 'SELECT used FROM billing.check_quota($$acme$$, $$user_seats$$)' >/dev/null
evict
is 'a session that knew it before does not take another counter in its place for it' \
    "$(ask two 'SELECT used FROM billing.check_quota($$acme$$, $$user_seats$$)')" 1
evict
is 'nor counts on that' \
    "$(ask two 'SELECT status, used FROM billing.try_consume($$acme$$, $$user_seats$$, 3)')" 'denied|1'

## A commit that is durable and not visible yet
ask one 'SET synchronous_commit = on' >/dev/null
tell one 'SELECT status FROM billing.try_consume($$acme$$, $$user_seats$$, 2)'
ok 'a commit waits for a standby' wait_until waits_for one SyncRep
evict
is 'what it will show is taken already' "$(used) $(take 1)" '3 1 1 denied|3'
sql 'SELECT billing.run_rollup()' >/dev/null
sql "SELECT pg_cancel_backend($(pid_of one))" >/dev/null
like 'the commit goes on' "$(answer one)" 'recorded$'
is 'and is counted once' "$(used)" '3 3 3'
evict
is 'by the rows, too' "$(used)" '3 3 3'
sql 'SELECT billing.run_rollup()' >/dev/null
evict
is 'and by the rollup' "$(used)" '3 3 3'

ask two 'SELECT quota FROM billing.check_quota($$acme$$, $$user_seats$$)' >/dev/null
tell one 'SELECT FROM billing.set_quota($$acme$$, $$user_seats$$, 2)'
ok 'a change of quota waits for a standby' wait_until waits_for one SyncRep
is 'nobody knows of it' "$(ask two 'SELECT quota FROM billing.check_quota($$acme$$, $$user_seats$$)')" 3
sql "SELECT pg_cancel_backend($(pid_of one))" >/dev/null
answer one >/dev/null
is 'and everybody once it is committed' "$(ask two 'SELECT quota FROM billing.check_quota($$acme$$, $$user_seats$$)')" 2
sql "SELECT billing.set_quota('acme', 'user_seats', 3)" >/dev/null
ask one 'RESET synchronous_commit'

## A commit that is visible and has not told the counter yet
touch "$RUN/stall"
tell one "SELECT stall('$RUN/stall'), status FROM billing.record_usage('acme', 'user_seats', -2)"
visible() { [ "$(used | cut -d' ' -f2)" = 1 ]; }
ok 'a commit stops half way' wait_until visible
evict
is 'what it frees is not free yet' "$(used) $(take 1)" '3 1 1 denied|3'
sql 'SELECT billing.run_rollup()' >/dev/null
rm "$RUN/stall"
is 'the commit goes on' "$(answer one)" '|recorded'
is 'and is counted once' "$(used)" '1 1 1'
evict
is 'by the rows, too' "$(used) $(take 2) $(take 1)" '1 1 1 recorded|3 denied|3'

## All counters are taken
ask one "BEGIN; SELECT room()" >/dev/null
like 'while one transaction has them all, another tenant is refused' \
    "$(take 1 t60 2>&1)" 'no room for another quota counter'
is 'one of its own tenants is not' "$(record t1 api_calls 1)" 'recorded|2'
ask one ROLLBACK
is 'and all of them again when it ends' "$(take 1 t60) $(record t1 api_calls 0)" 'recorded|1 recorded|1'

## Loads fail
ask one 'BEGIN; ALTER FUNCTION billing._used RENAME TO _used_no_more' >/dev/null
is 'a load that fails is an error' "$(ask one "DO \$\$
    DECLARE
        failed int := 0;
    BEGIN
        FOR i IN 1 .. 60 LOOP
            BEGIN
                PERFORM billing.record_usage('t' || i, 'llm_tokens');
            EXCEPTION WHEN undefined_function THEN
                failed := failed + 1;
            END;
        END LOOP;
        RAISE INFO '%', failed;
    END \$\$")" 'INFO:  60'
ask one 'ALTER FUNCTION billing._used_no_more RENAME TO _used' >/dev/null
is 'and takes no room' "$(ask one 'SELECT room()')" "$room_at_first"
ask one ROLLBACK
is 'the counters are loaded by whoever comes next' "$(record t60 llm_tokens 1)" 'recorded|1'

## Two-phase commit
prepare() { sql "BEGIN; $1; PREPARE TRANSACTION 'it'" 2>&1; }
for usage in "record_usage('acme', 'user_seats', -1)" "record_usage('acme', 'llm_tokens', 0)" \
    "try_consume('busy', 'api_calls')" "record_usage('busy', 'peak', 7)"; do
    like "$usage cannot be prepared" "$(prepare "SELECT FROM billing.$usage")" \
        'ERROR:  cannot prepare a transaction that has usage pending'
done
is 'and is given back' "$(used) $(used busy api_calls)" '3 3 3 0 0 0'
prepare "SELECT billing.check_quota('acme', 'user_seats', 1)" >/dev/null
is 'a check can, and holds no counter' "$(room)" "$room_at_first"
ok 'so it commits' sql "COMMIT PREPARED 'it'"
like 'a changed quota cannot be prepared' "$(prepare "SELECT billing.set_quota('acme', 'user_seats', 4)")" \
    'ERROR:  cannot prepare a transaction that has changed quotas'
is 'and stays what it was' "$(sql "SELECT quota FROM billing.check_quota('acme', 'user_seats')")" 3

## Backends are terminated under load, more tenants in use than there are counters
cat >"$RUN/load.sql" <<'SQL'
\set t random(1, 60)
\set fate random(1, 4)
BEGIN;
SELECT billing.try_consume('busy', 'api_calls');
SAVEPOINT s;
SELECT billing.try_consume('t' || :t, 'user_seats');
\if :fate = 1
ROLLBACK TO s;
COMMIT;
\elif :fate = 2
ROLLBACK;
\else
COMMIT;
\endif
SQL
load() { PGAPPNAME=load "$PG_BIN/pgbench" -n -c 6 -j 2 -t "$1" -f "$RUN/load.sql" >"$RUN/load.log" 2>&1; }
events() { sql "SELECT count(*) FROM billing.usage_events WHERE tenant_id = 'busy' AND metric = '$1'"; }
reached() { [ "$(events "$1")" -ge "$2" ]; }
# Tenants whose counter (there is none without a quota), events and total differ, or whose cap was passed.
wrong() {
    sql "SELECT count(*) FROM billing.billing_customers c, unnest('{user_seats,api_calls,llm_tokens}'::text[]) m,
                LATERAL billing.check_quota(c.tenant_id, m, 0) q
          WHERE used(c.tenant_id, m) !~ '^(\S+)( \1)*\$' OR q.used > q.quota"
}
# One backend after the other, in the middle of a transaction, until no client is left.
terminate_all() {
    sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE application_name = 'load' AND state <> 'idle' LIMIT 1" >/dev/null
    not kill -0 $client 2>/dev/null
}
load 1000000 &
client=$!
wait_until reached api_calls 20
ok 'backends are terminated' wait_until terminate_all
is 'no counter differs from its rows' "$(wrong)" 0
ok 'others take what is left' load 150
is 'and the cap is reached exactly' "$(used busy api_calls) $(wrong)" '400 400 400 0'
is 'no counter is left pinned, after all of that' "$(room)" "$room_at_first"

## The server stops in the middle, its latest commits not on disk
# Usage that is in flight for ever, and a rollup by a clock that is ahead.
ask one "BEGIN; SELECT FROM billing.record_usage('busy', 'llm_tokens', 1000000)" >/dev/null
echo "SELECT billing.record_usage('busy', 'llm_tokens', 1);" >"$RUN/async.sql"
PGOPTIONS='-c synchronous_commit=off' "$PG_BIN/pgbench" -n -c 6 -j 2 -t 100000 -f "$RUN/async.sql" \
    >"$RUN/load.log" 2>&1 &
client=$!
wait_until reached llm_tokens 200
sql "SET pg_billing.time_shift = '1 h'; SELECT billing.run_rollup()" >/dev/null
wait_until reached llm_tokens 1000
cluster_crash main
wait $client || true
cluster_up main
ok 'much is left' reached llm_tokens 200
is 'counters have what the tables have' "$(wrong)" 0
sql "SELECT billing.record_usage(t, 'api_calls', 1) FROM unnest('{acme,t1,t2}'::text[]) t;
     SELECT billing.run_rollup()" >/dev/null
is 'and the rollup goes on where it was' "$(wrong) $(sql 'SELECT count(*) FROM billing.usage_events WHERE billing._in_batch(tick, billing._tail())')" '0 0'
done_testing
