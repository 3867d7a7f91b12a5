#!/usr/bin/env bash
# Usage that leaves as files: whatever is killed, readers find each line once and come to what the ledger has; Stripe bills
# the rest.
source "$(dirname "$0")/../lib/e2e.sh"

DIR=$RUN/export
# lines [FILTER]: what a reader has read, as one array.
lines() { cat "$DIR"/usage-*.ndjson 2>/dev/null | jq -s "${1:-.}"; }
export_now() { sql "SELECT billing._request_run('rollup', 60000)" >/dev/null; }
# use N: so many events of three tenants and two metrics in hours that are over, one in three taken back.
use() {
    sql "SELECT count(billing.record_usage('t' || 1 + n % 3, (ARRAY['api_calls', 'agent_executions'])[1 + n / 3 % 2], 1 + n % 7, 'k$((++used))-' || n,
                      timestamptz '$OVER' - interval '1 minute' * (1 + n * 7 % 300)))
           FROM generate_series(1, $1) n;
         SELECT count(billing.void_usage('t' || 1 + n % 3, 'k$used-' || n, 'test')) FROM generate_series(1, $1, 3) n" >/dev/null
}
used=0
in_ledger() {
    sql "SELECT e.tenant_id, e.metric, to_char(date_trunc('hour', e.occurred_at), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), sum(e.quantity)
           FROM billing.usage_events e WHERE e.occurred_at < '$OVER' AND e.metric <> 'llm_tokens' GROUP BY 1, 2, 3" | LC_ALL=C sort
}
# A reader that keeps the latest total of an hour, and one that adds up differences.
latest() {
    lines 'group_by([.tenant, .metric, .hour, .period_start]) | map(max_by(.seq)) | .[] | [.tenant, .metric, .hour, .total] | join("|")' |
        jq -r . | LC_ALL=C sort
}
added_up() {
    lines 'group_by([.tenant, .metric, .hour]) | map(first + {sum: (map((.total | tonumber) - (.previous // "0" | tonumber)) | add)})
           | .[] | [.tenant, .metric, .hour, "\(.sum)"] | join("|")' | jq -r . | LC_ALL=C sort
}
agree() {
    is "$1: the latest totals are the ledger's" "$(latest)" "$(in_ledger)"
    is 'and so are the differences, added up' "$(added_up)" "$(in_ledger)"
    is 'each line is there once, in order' "$(lines 'map(.seq) == [range(1; length + 1)]')" true
}
all_written() {
    [ "$(sql "SELECT (SELECT count(*) FROM billing.export_files WHERE written_at IS NULL)
                   + (SELECT count(*) FROM billing.export_hours WHERE due AND hour < '$OVER')")" = 0 ]
}

sandbox_start
rm -rf "$DIR"
server_directory "$DIR"
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600 "pg_billing.export_directory=$DIR"
sql "CREATE EXTENSION pg_billing; SELECT billing.install();
     UPDATE billing.metrics SET export = 'file' WHERE name IN ('api_calls', 'agent_executions')" >/dev/null
sql "SELECT billing.create_customer(t, t, t || '@example.com'), billing.create_subscription(t, 'standard', 'send_invoice', 30)
       FROM unnest('{t1,t2,t3}'::text[]) t" >/dev/null
OVER=$(sql "SELECT date_trunc('hour', now())")

# What others bill, Stripe does not hear of.
is 'the plans are at Stripe' "$(sql "SELECT count(*) FROM billing.sync_plans('60 s') WHERE action = 'failed'")" 0
is 'without meters of what is exported' "$(sandbox GET /v1/billing/meters | jq -c '[.data[].event_name] | sort')" '["llm_tokens","storage_gb","user_seats"]'
is 'nor prices' "$(sandbox GET '/v1/prices?limit=100' | jq '[.data[].lookup_key | select(test("api_calls|agent"))] | length')" 0
is 'subscriptions are made without them' "$(sandbox GET /v1/subscriptions | jq -c '[.data[].items.data | length] | unique')" '[4]'
sql "SELECT billing.record_usage('t1', 'llm_tokens', 5), billing.record_usage('t1', 'api_calls', 5); SELECT billing.run_rollup()" >/dev/null
sql "SELECT billing.run_stripe_sync('60 s')" >/dev/null
is 'the rest is billed as ever' "$(sandbox GET /_sandbox/state | jq -c '.meters | map_values(.total) | {llm_tokens, api_calls}')" '{"llm_tokens":"5","api_calls":null}'
is 'nothing is missed there' "$(sql 'SELECT count(*) FROM billing.stripe_unsubmitted')|$(sql 'SELECT count(*) FROM billing.stripe_dead_letter')" '0|0'

use 40
export_now
agree 'a first file'
is 'it is readable by its group' "$(stat -c %a "$DIR"/usage-*.ndjson | sort -u)" 640
is 'an hour that goes on is not in it' "$(lines "map(select(.hour >= \"$(sql "SELECT to_char(timestamptz '$OVER', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")\")) | length")" 0
export_now
is 'nothing new, no new file' "$(ls "$DIR" | wc -l)" 1
use 30
export_now
agree 'corrections'
is 'they tell what was said before' "$(lines 'map(select(.previous)) | length > 0')" true

# A directory that cannot be written to holds up no rollup, and loses nothing.
chmod 500 "$DIR"
use 20
export_now
like 'the reason is logged' "$(cat "$(cluster_log)")" 'usage cannot be exported to usage-.*: cannot create the file: Permission denied'
is 'and in the file'"'"'s row' "$(sql 'SELECT count(*) FROM billing.export_files WHERE written_at IS NULL AND error LIKE $$cannot create the file%$$')" 1
is 'usage is rolled up all the same' "$(sql 'SELECT count(*) FROM billing.usage_events e, billing.rollup_state s WHERE e.tick >= s.folded_before')" 0
cluster_crash main
cluster_up main
use 5
chmod 700 "$DIR"
export_now
wait_until all_written
agree 'after it is mended, and a crash'

# Workers and the server are killed at any moment. A server whose worker was killed still answers until it has noticed.
exporting() { pid=$(sql "SELECT pid FROM billing.stat_workers WHERE job = 'rollup' AND pid IS NOT NULL"); [ -n "$pid" ]; }
for round in 1 2 3 4; do
    wait_until use 60
    wait_until sql "SELECT billing._wake_worker('rollup')"
    wait_until exporting
    kill -KILL "$pid" 2>/dev/null || true
done
for round in 1 2; do
    wait_until use 60
    wait_until sql "SELECT billing._wake_worker('rollup')"
    cluster_crash main
    cluster_up main
done
use 10
export_now
wait_until all_written
agree 'after they were killed'
is 'no draft is left' "$(find "$DIR" -type f ! -name 'usage-*.ndjson' | wc -l)" 0

# The same files again, byte for byte: as after a crash before a file is noted, or when they are lost.
before=$(cd "$DIR" && md5sum ./*)
rm "$(ls "$DIR"/usage-*.ndjson | head -n 1)"
sql 'SELECT billing.rewrite_export_files()' >/dev/null
export_now
wait_until all_written
is 'files are written again as they were' "$(cd "$DIR" && md5sum ./*)" "$before"

sql "SELECT billing.reconcile()" >/dev/null
ok 'reconciliation is done' sql "SELECT billing.run_stripe_sync('60 s')"
is 'and finds nothing' "$(sql 'SELECT count(*) FROM billing.stripe_drift')" 0

done_testing
