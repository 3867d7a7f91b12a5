#!/usr/bin/env bash
# Background workers against a Stripe that hangs, refuses or is not who it should be, and against everything an
# administrator or a crash does to a server meanwhile.
source "$(dirname "$0")/../lib/e2e.sh"

# mark, then logged REGEX: whether the server's log has such a line since.
mark() { MARK=$(($(wc -l <"$(cluster_log)") + 1)); }
logged() { tail -n "+$MARK" "$(cluster_log)" | grep -qE "$1"; }

# worker_pid TYPE: the process of that type for the database in use, or of the launcher.
worker_pid() {
    cluster_psql -d postgres -c "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_billing $1'
        AND (datname = '$PGDATABASE' OR '$1' = 'launcher')"
}
runs() { [ -n "$(worker_pid "$1")" ]; }
replaced() { runs "$1" && [ "$(worker_pid "$1")" != "$2" ]; }
true_in_sql() { [ "$(sql "SELECT $1")" = t ]; }

fault() { sandbox POST /_sandbox/faults -d "$1" >/dev/null; }
hang() { fault '{"path_prefix": "/v1/", "fault": "timeout", "times": -1}'; }
heal() { sandbox DELETE /_sandbox/faults >/dev/null; }

TENANTS=0
add_tenant() {
    TENANTS=$((TENANTS + 1))
    sql "SELECT billing.create_customer('t$TENANTS', 'Tenant $TENANTS', 't$TENANTS@example.com');
         SELECT billing.create_subscription('t$TENANTS', 'standard', 'send_invoice', 30)" >/dev/null
}
use() { add_tenant && sql "SELECT billing.record_usage('t$TENANTS', 'llm_tokens', 1000, 'first')" >/dev/null; }

# Hangs Stripe and returns when the worker waits for it.
hanging_worker() {
    hang
    add_tenant
    sql "SELECT billing._wake_worker('stripe')" >/dev/null
    wait_until true_in_sql "EXISTS (SELECT FROM billing.stripe_outbox WHERE state = 'sending')"
    HANGING=$(worker_pid stripe)
}

# With a timeout far beyond any limit below, nothing here passes by waiting for it.
sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=120 pg_billing.rollup_interval=3600
ok 'the launcher runs' wait_until runs launcher
sql 'CREATE DATABASE shop'
export PGDATABASE=shop

## Life with and without the extension
mark
sql 'CREATE EXTENSION pg_billing'
is 'a run without billing.install() has nothing to do' "$(sql "SELECT billing._request_run('rollup', 20000)")" t
ok 'and logs nothing' not logged 'ERROR|WARNING|FATAL'
sql 'SELECT billing.install()' >/dev/null
use
sql "SELECT billing.run_stripe_sync('60 s')" >/dev/null
is 'a subscription wished for in SQL exists at Stripe' \
    "$(sql "SELECT status FROM billing.get_subscription('t1')")" active

## A Stripe that never answers
hanging_worker
is 'no transaction is open while Stripe is waited for' \
    "$(cluster_psql -c "SELECT xact_start IS NULL AND backend_xmin IS NULL FROM pg_stat_activity WHERE pid = $HANGING")" t
is 'the worker can be told by its application name' \
    "$(cluster_psql -c "SELECT application_name FROM pg_stat_activity WHERE pid = $HANGING")" 'pg_billing stripe'
sql "SELECT billing.record_usage('t$TENANTS', 'api_calls', 1, 'meanwhile')" >/dev/null
is 'usage is rolled up meanwhile' "$(sql "SELECT billing._request_run('rollup', 5000)")" t
export PGOPTIONS='-c statement_timeout=30s'
ok 'an unrelated database is dropped at once' cluster_psql -d postgres -c 'CREATE DATABASE other' -c 'DROP DATABASE other'
is 'which does not disturb the worker' "$(worker_pid stripe)" "$HANGING"
cluster_psql -d postgres -c 'CREATE ROLE nobody_special LOGIN CREATEDB' -c 'CREATE DATABASE theirs OWNER nobody_special'
ok 'who does not own the database cannot drop it' not cluster_psql -d postgres -U nobody_special -c 'DROP DATABASE shop'
is 'nor stop its worker' "$(worker_pid stripe)" "$HANGING"
ok 'the database serves as a template' cluster_psql -d postgres -c 'CREATE DATABASE copied TEMPLATE shop'
mark
PGDATABASE=copied ok 'which ends the worker; the copy never submits' wait_until logged 'submission to Stripe is paused.*copy'
PGDATABASE=copied sql "SELECT billing.record_usage('t1', 'llm_tokens', 5, 'in the copy')" >/dev/null
cluster_reload main pg_billing.rollup_interval=1
PGDATABASE=copied ok 'but is rolled up as soon as a reload says so' wait_until true_in_sql \
    "EXISTS (SELECT FROM billing.usage_aggregates WHERE tenant_id = 't1' HAVING sum(quantity) = 1005)"
ok 'the original goes on after its hold' wait_until -t 60 runs stripe
ok 'the database is renamed' cluster_psql -d postgres -c 'ALTER DATABASE shop RENAME TO store'
PGDATABASE=store
ok 'and goes on under its new name' wait_until -t 60 runs stripe
PGDATABASE=copied sql 'SELECT billing.adopt()' >/dev/null
PGDATABASE=copied wait_until runs stripe
ok 'a database is dropped while its worker waits for Stripe' cluster_psql -d postgres -c 'DROP DATABASE copied'

export PGOPTIONS=

## DROP EXTENSION
ok 'the extension is dropped under a waiting worker' sql "SET statement_timeout = '30s'; DROP EXTENSION pg_billing"
ok 'which then ends' wait_until not runs stripe
is 'and nothing is lost with it' "$(sql 'SELECT count(*) FROM billing.billing_customers')" "$TENANTS"
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
ok 'created again, the extension is served again' wait_until true_in_sql "EXISTS (SELECT FROM billing.stripe_outbox o
    JOIN pg_stat_activity a ON a.pid = o.sender WHERE o.state = 'sending' AND a.backend_type = 'pg_billing stripe')"
heal
sql "SELECT pg_terminate_backend($(worker_pid stripe))" >/dev/null
ok 'and what waited is carried out' sql "SELECT billing.run_stripe_sync('60 s')"
mark
version=$(sql "SELECT extversion FROM pg_extension WHERE extname = 'pg_billing'")
sql "UPDATE pg_extension SET extversion = '0.0.1' WHERE extname = 'pg_billing'"
ok 'a library of another version refuses to work' wait_until logged 'has version 0.0.1 but its library has version'
sql "UPDATE pg_extension SET extversion = '$version' WHERE extname = 'pg_billing'"

## Settings
cluster_reload main pg_billing.database_workers=off
ok 'switched off, a run cannot be had' wait_until not sql "SELECT billing._request_run('rollup', 60000)"
cluster_reload main pg_billing.database_workers=on
ok 'switched on again, it can' wait_until sql "SELECT billing._request_run('rollup', 60000)"
key=$RUN/bad.key
echo 'sk_test_never_shown' >"$key" && chmod 644 "$key" && { [ "$(id -u)" != 0 ] || chown postgres "$key"; }
mark
cluster_reload main "pg_billing.stripe_api_key_file=$key"
sql "SELECT billing._wake_worker('stripe')" >/dev/null
ok 'a key file that others can read is refused by name' wait_until logged "cannot use Stripe API key file .*bad.key.*others"
ok 'and its content appears nowhere' not grep -q never_shown "$(cluster_log)"
add_tenant
cluster_reload main "${STRIPE_SETTINGS[@]}"
ok 'a reload with the cause mended ends the backoff' wait_until true_in_sql \
    "(SELECT status = 'active' FROM billing.get_subscription('t$TENANTS'))"

## Whom the key is sent to
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1 \
    -addext 'subjectAltName=IP:127.0.0.1' -keyout "$RUN/tls.key" -out "$RUN/tls.crt" 2>/dev/null
chmod 644 "$RUN/tls.key" "$RUN/tls.crt"
# It answers each line with the line reversed: no HTTP, but an answer only who trusts it gets to see.
tls_port=$(free_port)
service_start tls openssl s_server -accept "127.0.0.1:$tls_port" -cert "$RUN/tls.crt" -key "$RUN/tls.key" -rev
service_ready tls grep -q ACCEPT "$RUN/tls.log"
mark
cluster_reload main "pg_billing.stripe_api_base=https://127.0.0.1:$tls_port"
add_tenant
ok 'a server whose certificate nobody vouches for is refused' wait_until logged 'cannot reach Stripe.*certificate'
mark
cluster_reload main "pg_billing.stripe_ca_file=$RUN/tls.crt"
ok 'one that stripe_ca_file vouches for is not' wait_until logged 'cannot reach Stripe.*HTTP/0.9'
mark
cluster_reload main pg_billing.stripe_api_base=http://192.0.2.1
ok 'plain http to another machine is refused' wait_until logged 'stripe_api_base.*must use https'
cluster_reload main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_ca_file=
fault '{"path_prefix": "/v1/", "fault": "429", "times": 1, "retry_after": 1}'
ok 'a Stripe that is busy is asked again' sql "SELECT billing.run_stripe_sync('60 s')"

## Crashes
launcher=$(worker_pid launcher)
cluster_psql -d postgres -c "SELECT pg_terminate_backend($launcher)" >/dev/null
ok 'a launcher that ends is replaced' wait_until replaced launcher "$launcher"
ok 'and serves requests' sql "SELECT billing._request_run('rollup', 60000)"
for victim in stripe launcher; do
    hanging_worker
    launcher=$(worker_pid launcher)
    kill -9 "$(worker_pid $victim)"
    ok "after kill -9 of the $victim process the launcher is back" wait_until replaced launcher "$launcher"
    heal
    ok "and what was under way is carried out" wait_until sql "SELECT billing.run_stripe_sync('60 s')"
done

hanging_worker
started=$SECONDS
cluster_stop main
is 'a shutdown does not wait for Stripe' "$((SECONDS - started < 10))" 1
cluster_up main
heal

# A server that stops dead after Stripe acted and before it answered: totals agree afterwards, at Stripe too.
fault '{"method": "POST", "path_prefix": "/v1/billing/meter_events", "fault": "timeout", "effect": true, "times": 3}'
for _ in 1 2 3 4 5 6; do use; done
sql "SELECT billing.run_rollup(); SELECT billing._wake_worker('stripe')" >/dev/null
wait_until true_in_sql "EXISTS (SELECT FROM billing.stripe_outbox WHERE state = 'sending')"
cluster_crash main
cluster_up main
heal
sql "SELECT billing.run_stripe_sync('90 s')" >/dev/null
is 'after an immediate stop amid submission nothing waits' \
    "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending', 'failed')")" 0
is 'all usage is at Stripe, once' \
    "$(sandbox GET /_sandbox/state | jq -r "[.meters | to_entries[] | select(.key | test(\"llm_tokens\")).value.total | tonumber] | add")" \
    "$(sql "SELECT trim_scale(sum(quantity)) FROM billing.usage_aggregates WHERE metric = 'llm_tokens'")"

## A standby
as_server_user "$PG_BIN/pg_basebackup" -h "$PGHOST" -U postgres -D "$RUN/standby.data" -R -c fast --no-sync
cluster_init standby
rm -rf "$RUN/standby/data"
mv "$RUN/standby.data" "$RUN/standby/data"
cluster_configure standby "primary_conninfo=host=$PGHOST user=postgres"
cluster_up standby
ok 'a standby serves queries' true_in_sql 'pg_is_in_recovery()'
ok 'without a launcher' not runs launcher
cluster_stop main
sql 'SELECT pg_promote()' >/dev/null
ok 'promoted, it has one at once' wait_until runs launcher
use
sql "SELECT billing.run_rollup()" >/dev/null
ok 'and submits' sql "SELECT billing.run_stripe_sync('60 s')"
ok 'nothing was logged that should not be' not grep -qE 'PANIC|TRAP|terminated by signal 11' "$(cluster_log main)" "$(cluster_log)"

done_testing
