#!/usr/bin/env bash
# Reservations outlive crashes and evictions of their counter; the worker frees what has expired and forgets what is old.
source "$(dirname "$0")/../lib/e2e.sh"

cluster_start main pg_billing.rollup_interval=1s pg_billing.max_counters=16
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false), billing.set_quota(t, 'agent_executions', 10)
       FROM unnest('{acme,bolt}'::text[]) t" >/dev/null
used() { sql "SELECT used FROM billing.check_quota('$1', 'agent_executions', 0)"; }
is_in_state() { [ "$(state "$1")" = "$2" ]; }
state() { sql "SELECT state FROM billing.reservations WHERE id = '$1'"; }
reserve() { sql "SELECT reservation_id FROM billing.reserve('$1', 'agent_executions', $2, '$3')"; }

long=$(reserve acme 4 '1 hour')
sql "SELECT billing.record_usage('acme', 'agent_executions', 3)" >/dev/null
is 'held and used' "$(used acme)" 7
# More tenants than there are counters, one transaction each.
sql "SELECT billing.create_customer('t' || i, 'T', 'a@example.com', stripe => false),
            billing.set_quota('t' || i, 'api_calls', 10) FROM generate_series(1, 60) i" >/dev/null
for i in $(seq 60); do echo "SELECT FROM billing.record_usage('t$i', 'api_calls');"; done >"$RUN/many.sql"
evictions() { sql 'SELECT evictions FROM billing.stat_counters'; }
before=$(evictions)
cluster_psql -f "$RUN/many.sql" >/dev/null
ok 'counters are evicted' test "$(evictions)" -gt $((before + 16))
is 'the same after the counter was evicted' "$(used acme)" 7
cluster_crash main
cluster_up main
is 'and after a crash' "$(used acme)" 7
is 'so that the cap holds' \
    "$(sql "SELECT status FROM billing.try_consume('acme', 'agent_executions', 4)")" denied
is 'and it can be settled' "$(sql "SELECT status, used FROM billing.settle('$long', 5)")" 'recorded|8'

short=$(reserve bolt 6 '1 second')
ok 'the worker marks what has expired' wait_until is_in_state "$short" expired
is 'and frees what it held' "$(used bolt)" 0
sql "SELECT billing.release('$short')" >/dev/null
sql "ALTER DATABASE postgres SET pg_billing.time_shift = '40d'"
ok 'and forgets what is long over' wait_until is_in_state "$short" ''
done_testing
