#!/usr/bin/env bash
# pg_dump and pg_restore lose nothing, keep row-level security, and a copy does not bill.
source "$(dirname "$0")/../lib/e2e.sh"

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}"
sql "CREATE EXTENSION pg_billing; SELECT billing.install()" >/dev/null
sql "SELECT billing.create_customer(t, t, t || '@example.com') FROM unnest('{acme,globex}'::text[]) t;
     SELECT billing.create_subscription(t, 'standard', 'send_invoice', 30) FROM unnest('{acme,globex}'::text[]) t" >/dev/null
sql "SELECT billing.record_usage('acme', 'llm_tokens', i, 'acme-' || i) FROM generate_series(1, 100) i;
     SELECT billing.record_usage('globex', 'api_calls', 7, 'globex')" >/dev/null
sql 'SELECT billing.run_rollup()' >/dev/null
sql "SELECT billing.record_usage('acme', 'llm_tokens', 1000, 'not rolled up yet')" >/dev/null
sql "CREATE ROLE acme LOGIN IN ROLE billing_tenant; INSERT INTO billing.tenant_roles VALUES ('acme', 'acme')"
sql 'SELECT billing.run_stripe_sync()' >/dev/null

# Every table's rows as one digest per table.
digests() {
    cluster_psql <<'SQL' | sort
SELECT format('SELECT %L, count(*), md5(string_agg(md5(t::text), %L ORDER BY md5(t::text))) FROM %s t',
              oid::regclass, '', oid::regclass)
  FROM pg_class WHERE relnamespace = 'billing'::regnamespace AND relkind = 'r' \gexec
SQL
}
# Waits for workers to be done: only then do two looks at the source see the same.
cluster_reload main pg_billing.database_workers=off
workers_idle() { [ -z "$(sql "SELECT pid FROM pg_stat_activity WHERE backend_type ~ '^pg_billing (rollup|stripe|notify)'")" ]; }
wait_until workers_idle

before=$(digests)
ok 'pg_dump' "$PG_BIN/pg_dump" --format=custom --file="$RUN/dump" postgres
sql 'CREATE DATABASE copy'
ok 'pg_restore --exit-on-error' "$PG_BIN/pg_restore" --exit-on-error --single-transaction --dbname=copy "$RUN/dump"
export PGDATABASE=copy
is 'the same rows in every table' "$(digests)" "$before"
is 'events are there, and as many as were recorded' \
    "$(sql "SELECT count(*), sum(quantity) FROM billing.usage_events WHERE tenant_id = 'acme'")" '101|6050'
is 'row-level security is enabled and forced where it was' \
    "$(sql "SELECT count(*) FROM pg_class WHERE relnamespace = 'billing'::regnamespace AND relforcerowsecurity")" \
    "$(PGDATABASE=postgres sql "SELECT count(*) FROM pg_class WHERE relnamespace = 'billing'::regnamespace AND relforcerowsecurity")"
like 'and usage is written by functions only' "$(sql 'DELETE FROM billing.usage_events' 2>&1)" "billing's functions only"
is 'a tenant sees its own rows only' \
    "$(PGUSER=acme sql "SELECT DISTINCT tenant_id FROM billing.usage_events")" acme
is 'sequences go on where they were' \
    "$(sql "SELECT nextval(pg_get_serial_sequence('billing.stripe_outbox', 'id')) > max(id) FROM billing.stripe_outbox")" t
is 'install() on the copy changes no row' "$(sql 'SELECT billing.install()' >/dev/null; digests)" "$before"

cluster_reload main pg_billing.database_workers=on
like 'submission is paused on the copy' "$(sql 'SELECT billing.run_stripe_sync()' 2>&1)" 'this database is a copy'
sent=$(sandbox GET '/_sandbox/requests?path_prefix=/v1' | jq length)
sql "SELECT billing.record_usage('acme', 'llm_tokens', 5, 'on the copy'); SELECT billing.run_rollup();
     SELECT billing._request_run('stripe', 30000)" >/dev/null
is 'and its worker asks nothing of Stripe' "$(sandbox GET '/_sandbox/requests?path_prefix=/v1' | jq length)" "$sent"
sql 'SELECT billing.adopt()' >/dev/null
ok 'until it is adopted' sql 'SELECT billing.run_stripe_sync()'
like 'then it submits' "$(sandbox GET '/_sandbox/requests?path_prefix=/v1/billing/meter_events' | jq length)" '[1-9]'
is 'with keys of its own from then on' \
    "$(sql "SELECT installation FROM billing.stripe_state" | grep -c "$(PGDATABASE=postgres sql 'SELECT installation FROM billing.stripe_state')")" 0

# DROP EXTENSION keeps what belongs to tenants.
ok 'DROP EXTENSION needs no CASCADE' sql 'DROP EXTENSION pg_billing'
is 'and keeps the rows' "$(sql "SELECT count(*) FROM billing.usage_events WHERE tenant_id = 'acme'")" 102
is 'behind their policies' "$(PGUSER=acme sql 'SELECT count(DISTINCT tenant_id) FROM billing.usage_events')" 1
ok 'CREATE EXTENSION finds them again' sql 'CREATE EXTENSION pg_billing; SELECT billing.install()'
is 'with all functions' "$(sql "SELECT billing.get_current_usage('acme', 'llm_tokens')")" 6055
done_testing
