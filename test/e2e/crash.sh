#!/usr/bin/env bash
# kill -9 of a backend under load, and an immediate stop of the server in the middle of a submission to a Stripe that
# drops answers: afterwards events, aggregates, counters and Stripe agree.
source "$(dirname "$0")/../lib/e2e.sh"

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_concurrency=4
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null

## A backend dies under load
sql "SELECT billing.create_customer('busy', 'Busy', 'busy@example.com', stripe => false);
     SELECT billing.set_quota('busy', 'api_calls', 3000, 'hard'), billing.set_quota('busy', 'llm_tokens', NULL)" >/dev/null
cat >"$RUN/load.sql" <<'SQL'
\set i :i + 1
SELECT billing.try_consume('busy', 'api_calls', 1, 'call-' || :client_id || '-' || :i);
SELECT billing.record_usage('busy', 'llm_tokens', 10, 'tokens-' || :client_id || '-' || :i);
SQL
load() { PGAPPNAME=load "$PG_BIN/pgbench" -n -c 8 -j 2 -t 500 -D i=0 -f "$RUN/load.sql" >"$RUN/load.log" 2>&1; }
recorded() { [ "$(sql "SELECT count(*) FROM billing.usage_events WHERE tenant_id = 'busy'")" -ge "$1" ]; }

load &
client=$!
wait_until recorded 500
kill -9 "$(sql "SELECT pid FROM pg_stat_activity WHERE application_name = 'load' LIMIT 1")"
ok 'a killed backend ends the load' not wait $client
ok 'the server recovers' wait_until sql 'SELECT 1'
survived=$(sql "SELECT count(*) FROM billing.usage_events WHERE tenant_id = 'busy' AND metric = 'api_calls'")
is 'the counter is loaded anew with what is in the tables' \
    "$(sql "SELECT used FROM billing.check_quota('busy', 'api_calls')")" "$survived"
# Whatever was acknowledged is a duplicate now, whatever was not is recorded.
ok 'the clients send everything again' load
is 'every event counts once' \
    "$(sql "SELECT count(*), count(DISTINCT idempotency_key), sum(quantity) FROM billing.usage_events
            WHERE tenant_id = 'busy' AND metric = 'llm_tokens'")" '4000|4000|40000'
is 'the cap holds exactly' \
    "$(sql "SELECT sum(quantity) FROM billing.usage_events WHERE tenant_id = 'busy' AND metric = 'api_calls'")" 3000
sql 'SELECT billing.run_rollup()' >/dev/null
is 'aggregates have the same totals' \
    "$(sql "SELECT billing.get_current_usage('busy', 'llm_tokens'), billing.get_current_usage('busy', 'api_calls')")" \
    '40000|3000'

## The server stops in the middle of a submission
# Subscribed three days ago, so that there are many hours to submit.
sql "ALTER DATABASE postgres SET pg_billing.time_shift = '-3 d'"
sql "SELECT billing.create_customer('t' || i, 'Tenant ' || i, i || '@example.com') FROM generate_series(1, 6) i;
     SELECT billing.create_subscription('t' || i, 'standard', 'send_invoice', 30) FROM generate_series(1, 6) i" >/dev/null
sql "ALTER DATABASE postgres RESET pg_billing.time_shift"
sql "SELECT billing.run_stripe_sync('60 s')" >/dev/null
sql "SELECT count(billing.record_usage('t' || t, m, h + t, m || h, billing.now() - h * interval '1 hour'))
       FROM generate_series(1, 6) t, generate_series(1, 40) h, unnest('{llm_tokens,api_calls}'::text[]) m;
     SELECT billing.run_rollup()" >/dev/null
# Some answers are lost after their effect, some requests before it; some are refused for now.
for fault in drop_after drop_before 500 429; do
    sandbox POST /_sandbox/faults -H 'Content-Type: application/json' \
        -d '{"method": "POST", "path_prefix": "/v1/billing/meter_events", "fault": "'$fault'", "probability": 0.05}' >/dev/null
done
sql "SELECT billing.run_stripe_sync('2 min')" >/dev/null 2>&1 &
client=$!
meter_events() { sandbox GET '/_sandbox/requests?path_prefix=/v1/billing/meter_events' | jq length; }
arrived() { [ "$(meter_events)" -ge "$1" ]; }
wait_until arrived 60
cluster_crash main
wait $client || true
sent=$(meter_events)
ok 'the stop came in the middle' test "$sent" -lt 480
cluster_up main
ok 'after the restart the rest is submitted' sql "SELECT billing.run_stripe_sync('3 min')"
stripe_total() { sandbox GET /_sandbox/state | jq -r ".meters.$1.total"; }
ledger_total() {
    sql "SELECT sum(quantity) FROM billing.usage_events WHERE metric = '$1' AND tenant_id ~ '^t[0-9]'"
}
for metric in llm_tokens api_calls; do
    is "$metric: Stripe has what was recorded" "$(stripe_total $metric)" "$(ledger_total $metric)"
done
is 'each hour, too' \
    "$(sandbox GET /_sandbox/state | jq -r '.meters.llm_tokens.customers | to_entries[] | .key as $c | .value.hours | to_entries[] |
        "\($c) \(.key) \(.value)"' | sort | md5sum)" \
    "$(sql "SELECT c.stripe_customer_id || ' ' || to_char(a.hour AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00:00\"Z\"') || ' ' || a.quantity
              FROM billing.usage_aggregates a JOIN billing.billing_customers c USING (tenant_id)
             WHERE a.metric = 'llm_tokens' AND c.stripe" | LC_ALL=C sort | md5sum)"
is 'nothing is left to send, nothing failed' \
    "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE state <> 'delivered'")" 0
is 'never two calls at once for one customer and meter' "$(sandbox GET /_sandbox/state | jq .overlapping_meter_calls)" 0

# More usage in an hour that was sent already: its new total replaces the old one.
sql "SELECT billing.record_usage('t1', 'llm_tokens', 1000, 'late', billing.now() - interval '40 hours');
     SELECT billing.run_rollup()" >/dev/null
ok 'late usage is submitted' sql "SELECT billing.run_stripe_sync('2 min')"
is 'and overwrites that hour at Stripe' "$(stripe_total llm_tokens)" "$(ledger_total llm_tokens)"
done_testing
