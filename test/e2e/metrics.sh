#!/usr/bin/env bash
# /metrics: Prometheus takes them, they tell what happened, and nobody reads them without the key of a service; alerts and
# dashboard ask for nothing that is not there.
source "$(dirname "$0")/../lib/e2e.sh"

sandbox_start
redis_start
cluster_start main "${STRIPE_SETTINGS[@]}" "pg_billing.redis_url=$REDIS_URL" pg_billing.cache_interval=1s pg_billing.rollup_interval=1s
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
sql 'CREATE ROLE shim LOGIN IN ROLE billing_app'
sql "SELECT billing.create_customer('acme', 'Acme', 'a@example.com'), billing.create_subscription('acme', 'standard', 'send_invoice', 30)" >/dev/null
ok 'a subscription is made' sql "SELECT billing.run_stripe_sync('60 s')"
PGUSER=shim shim_start
wait_until curl -sf "$SHIM_URL/readyz" >/dev/null
KEY=$(sql "SELECT billing.create_api_key(scopes => '{metrics:read}')")
metrics() { curl -s -H "Authorization: Bearer $KEY" "$SHIM_URL/metrics"; }
value() { metrics | sed -n "s/^pg_billing_$1 //p"; }
status_with() { curl -s -o "$RUN/answer" -w '%{http_code}' ${1:+-H "Authorization: Bearer $1"} "$SHIM_URL/metrics"; }

cluster_psql >/dev/null <<'SQL'
SELECT billing.record_usage('acme', 'api_calls', 3, 'k'), billing.record_usage('acme', 'api_calls', 3, 'k'),
       billing.try_consume('acme', 'user_seats', 1), billing.check_quota('acme', 'api_calls', 1e9);
SQL
rolled_up() { [ "$(value rollup_events_total)" = 2 ]; }
ok 'what was recorded is rolled up' wait_until rolled_up
cached() { metrics | grep -q '^pg_billing_quota_cache_staleness_seconds '; }
ok 'the cache is written' wait_until cached
metrics >"$RUN/metrics"
ok 'promtool takes them' promtool check metrics <"$RUN/metrics"
is 'as text, in the version that Prometheus knows' "$(curl -s -o /dev/null -w '%{content_type}' -H "Authorization: Bearer $KEY" "$SHIM_URL/metrics")" \
    'text/plain; version=0.0.4; charset=utf-8'
is 'recorded once, and once a duplicate' \
    "$(sed -nE 's/^pg_billing_decisions_total\{metric="api_calls",status="(recorded|duplicate)".*\} /\1 /p' "$RUN/metrics" | sort | xargs)" 'duplicate 1 recorded 1'
is 'Stripe was asked, and refused nothing' \
    "$([ "$(value 'stripe_settled_last_hour{state="delivered"}')" -gt 0 ] && value stripe_dead_letters) $(value stripe_paused)" '0 0'
is 'no label names a tenant' "$(grep -c acme "$RUN/metrics")" 0

# missing FILE: the metrics that a file of docs/ asks for and nobody has.
missing() {
    grep -oE 'pg_billing_[a-z_]+' "$1" | sort -u | grep -vxFf <(sql "SELECT 'pg_billing_' || name FROM billing._metric_families()") || true
}
is 'the alerts ask for nothing else' "$(missing "$TOP/docs/monitoring/alerts.yml")" ''
is 'nor does the dashboard' "$(missing "$TOP/docs/monitoring/grafana.json")" ''
ok 'their rules are well-formed' promtool check rules "$TOP/docs/monitoring/alerts.yml"
ok 'and so is the dashboard' jq -e '.panels | length > 0 and all(.[]; .targets | length > 0)' "$TOP/docs/monitoring/grafana.json"

is 'nobody reads them without a key' "$(status_with '')" 401
is 'nor with one for something else' "$(status_with "$(sql 'SELECT billing.create_api_key()')")" 403
is "nor a tenant" "$(status_with "$(sql "SELECT billing.create_api_key('acme', '{metrics:read}')")") $(jq -r .code "$RUN/answer")" '403 tenant_not_permitted'
sql "SELECT billing._stripe_pause('the key is refused')" >/dev/null
is 'a pause shows' "$(value stripe_paused)" 1
cluster_crash main
is 'without the database it says so' "$(status_with "$KEY")" 503

done_testing
