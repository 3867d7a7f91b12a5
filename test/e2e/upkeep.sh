#!/usr/bin/env bash
# What the rollup worker does beside rolling up: it forgets old keys, a part of them at a time.
source "$(dirname "$0")/../lib/e2e.sh"

keys() {
    sql "SELECT count(*) FROM billing.usage_events e JOIN billing.usage_event_keys k
             ON k.tenant_id = e.tenant_id AND k.key = billing._event_key(e.idempotency_key)
          WHERE e.idempotency_key LIKE '$1 %'"
}
fewer_old() { [ "$(keys old)" -lt "$1" ]; }
rolled_up() { [ "$(sql 'SELECT sum(quantity) FROM billing.usage_aggregates')" = "$1" ]; }
# record PREFIX N: N events with keys; prints how many of them are new.
record() {
    sql "SELECT count(*) FILTER (WHERE (d).status = 'recorded')
           FROM (SELECT billing.record_usage('acme', 'api_calls', 1, '$1 ' || n) AS d FROM generate_series(1, $2) n) r"
}

cluster_start main pg_billing.rollup_interval=1 pg_billing.database_workers=off
sql "CREATE EXTENSION pg_billing; SELECT billing.install();
     SELECT billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false)" >/dev/null
record old 2000 >/dev/null
cluster_reload main pg_billing.database_workers=on
ok 'the worker rolls up' wait_until rolled_up 2000
record new 100 >/dev/null
ok 'again and again' wait_until rolled_up 2100
is 'and forgets no young key' "$(keys old) $(keys new)" '2000 100'
cluster_reload main pg_billing.dedup_window=1s
ok 'keys that have come of age it forgets' wait_until fewer_old 2000
left=$(keys old)
ok 'not all at once' [ "$left" -gt 1000 ]
cluster_reload main pg_billing.dedup_window=1s
ok 'the next upkeep goes on where the last one stopped' wait_until fewer_old "$left"
is 'younger ones stay' "$(keys new)" 100
left=$(keys old)
is 'what was forgotten counts again, once' "$(record old 2000) $(record old 2000)" "$((2000 - left)) 0"
done_testing
