#!/usr/bin/env bash
# A standby answers from the tables, changes nothing and keeps nothing; promoted under load, it enforces exactly.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/sessions.sh"

cluster_start main pg_billing.database_workers=off
cluster_psql <<'SQL' >/dev/null
CREATE EXTENSION pg_billing;
SELECT billing.install();
SELECT billing.create_customer(t, t, 't@example.com', stripe => false) FROM unnest('{acme,busy}'::text[]) t;
SELECT billing.set_quota('acme', 'user_seats', 10), billing.set_quota('busy', 'api_calls', 1000);
SELECT billing.try_consume('acme', 'user_seats', 2), billing.try_consume('busy', 'api_calls', 100);
SELECT billing.run_rollup();
SQL
server_directory "$RUN/standby"
chmod 700 "$RUN/standby"
rm -rf "$RUN/standby/data"
ok 'a standby is made' as_server_user \
    "$PG_BIN/pg_basebackup" --pgdata "$RUN/standby/data" --write-recovery-conf --checkpoint fast
cluster_up standby
session reader

on() { cluster_use "$1"; shift; "$@"; }
used() { sql "SELECT status, used, quota FROM billing.check_quota('acme', 'user_seats', ${1:-0})"; }
seats() { sql "SELECT sum(quantity) FROM billing.usage_events WHERE tenant_id = 'acme'"; }
standby_has() { [ "$(on standby seats)" = "$1" ]; }
seat() { sql "SELECT status, used FROM billing.try_consume('acme', 'user_seats', $1)"; }
quota_is() { [ "$(on standby sql "SELECT quota FROM billing.check_quota('acme', 'user_seats')")" = "$1" ]; }

ok 'it follows' wait_until standby_has 2
is 'and checks quotas' "$(on standby used) $(on standby used 8) $(on standby used 9)" \
    'allowed|2|10 allowed|2|10 denied|2|10'
is 'in every isolation level' \
    "$(on standby sql "BEGIN ISOLATION LEVEL REPEATABLE READ;
                       SELECT used FROM billing.check_quota('acme', 'user_seats')")" 2
for statement in "record_usage('acme', 'user_seats')" "try_consume('acme', 'user_seats')" \
    "consume('acme', 'user_seats')" "record_usage_batch('[{\"tenant_id\": \"acme\", \"metric\": \"user_seats\"}]')" \
    "set_quota('acme', 'user_seats', 1)"; do
    like "$statement is refused" "$(on standby cluster_psql -v VERBOSITY=verbose -c "SELECT billing.$statement" 2>&1)" \
        '^ERROR:  25006: cannot execute [A-Za-z ]+ in a read-only transaction'
done
is 'which changes nothing' "$(on standby used)" 'allowed|2|10'

quota_to_reader() { ask reader 'SELECT quota FROM billing.check_quota($$acme$$, $$user_seats$$)'; }
is 'a session that stays sees the quota' "$(quota_to_reader)" 10
# What the standby was asked before must not be what it believes after its promotion.
on main sql "SELECT billing.try_consume('acme', 'user_seats', 5)" >/dev/null
ok 'usage recorded since' wait_until standby_has 7
is 'is seen by checks' "$(on standby used)" 'allowed|7|10'
on main sql "SELECT billing.set_quota('acme', 'user_seats', 9)" >/dev/null
ok 'a quota that changes, too' wait_until quota_is 9
is 'by a session that has seen the old one, too' "$(quota_to_reader)" 9

# Checks and attempts to consume under way while it is promoted: the attempts fail until it is.
cat >"$RUN/check.sql" <<'SQL'
SELECT billing.check_quota('busy', 'api_calls');
SQL
cat >"$RUN/take.sql" <<'SQL'
SELECT billing.try_consume('busy', 'api_calls');
SQL
cluster_use standby
"$PG_BIN/pgbench" -n -c 4 -t 2000 -f "$RUN/check.sql" >"$RUN/check.log" 2>&1 &
checks=$!
take() { "$PG_BIN/pgbench" -n -c 4 -j 2 -t 250 -f "$RUN/take.sql" >"$RUN/take.log" 2>&1; }
sql 'SELECT pg_promote(false)' >/dev/null
ok 'consuming fails until the standby is promoted, and then does not' wait_until take
ok 'checks go on throughout' wait $checks
ok 'more is asked for than there is' take
is 'the cap is reached exactly' \
    "$(sql "SELECT status, used, (SELECT sum(quantity) FROM billing.usage_events WHERE tenant_id = 'busy')
              FROM billing.check_quota('busy', 'api_calls')")" 'denied|1000|1000'
is 'a counter begins with what was replicated' "$(used) $(seat 3)" \
    'allowed|7|9 denied|7'
is 'for that session, too' "$(ask reader 'SELECT used FROM billing.check_quota($$acme$$, $$user_seats$$)')" 7
is 'and takes what is left' "$(seat 2)" 'recorded|9'
is 'the rollup goes on' "$(sql 'SELECT billing.run_rollup() > 0')" t
is 'and knows everything' \
    "$(sql "SELECT billing.get_current_usage('acme', 'user_seats'),
                   billing.get_current_usage('busy', 'api_calls')")" '9|1000'
done_testing
