#!/usr/bin/env bash
# make demo [TRACE=file.csv]: an hour of real traffic of 60 tenants, metered, billed by the sandbox Stripe, and proven.
# Leaves everything up; `demo.sh --stop` (make demo-stop) takes it down.
set -euo pipefail
case ${1:-} in '' | --stop | /*) ;; *) set -- "$PWD/$1" ;; esac
cd "$(dirname "$0")/../.."

started=$SECONDS
step() { printf '%3d s  %s\n' $((SECONDS - started)) "$*"; }

[ "${1:-}" = --stop ] || { step "setting up" && test/setup.sh; }
source test/lib/cluster.sh
source test/lib/services.sh
source test/lib/clock.sh
source test/lib/build.sh

stop_demo() {
    service_stop_all
    cluster_end main
}
if [ "${1:-}" = --stop ]; then
    stop_demo
    exit 0
fi

trace=${1:-../shared/data/azure_llm_inference_trace_conv.csv}
[ $# -eq 0 ] || [ -r "$trace" ] || die "cannot read the trace $trace"

step "building"
build_step extension build_extension
build_step programs build_programs stripe_sandbox pg_billing_shim demo_replay
replay=$BUILD/cmake/demo_replay
if [ ! -r "$trace" ]; then
    trace=$BUILD/generated_trace.csv
    "$replay" --generate --trace "$trace"
fi

summary=$("$replay" --summary --trace "$trace") || exit 1
{ read -r first_time && read -r last_time && read -r requests && read -r tokens; } <<<"$summary"
# Subscriptions begin with their hour, so the demo does early in the trace's first hour.
begins=$(($(date -u -d "${first_time%.*}" +%s) / 3600 * 3600 + 60))
ends=$(($(date -u -d "${last_time%.*}" +%s) + 61))
stop_demo

step "starting PostgreSQL, Redis, the sandbox Stripe and the shim"
redis_start
sandbox_start
cluster_start main fsync=on full_page_writes=on "${STRIPE_SETTINGS[@]}"
sql 'CREATE DATABASE demo'
export PGDATABASE=demo
cluster_psql -f test/demo/setup.sql
PGUSER=demo_app shim_start
clock_to "$begins"
sql 'SELECT billing.maintain()' >/dev/null

step "creating 60 tenants and their subscriptions, here and at Stripe"
sql "SELECT count(demo.create_tenant(n, '$STRIPE_CLOCK')) FROM generate_series(1, 60) n" >/dev/null
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"

key=$RUN/api.key
(umask 077 && sql 'SELECT billing.create_api_key()' >"$key")
clock_to "$ends"
step "replaying $(basename "$trace"), every event through SQL and through HTTP"
"$replay" --trace "$trace" --database "host=$PGHOST dbname=demo user=demo_app" --url "$SHIM_URL" --key-file "$key"

step "rolling up and submitting to Stripe"
sql 'SELECT billing.run_rollup()' >/dev/null
sync_stripe

# The invoices as they are told before there are any.
period_end=$(sql 'SELECT extract(epoch FROM max(current_period_end))::bigint FROM billing.subscriptions')
clock_to $((period_end - 60))
sql 'CREATE TABLE demo.upcoming AS
     SELECT s.tenant_id, u.* FROM billing.subscriptions s, billing.get_upcoming_invoice(s.tenant_id) u' >/dev/null

# Stripe closes the period, drafts the invoices, and finalizes them an hour later; its webhooks bring them back.
step "ending the billing period"
clock_to $((period_end + 7200))
sql 'SELECT billing.run_rollup()' >/dev/null
sync_until "SELECT count(*) = 60 FROM billing.invoices
            WHERE billing_reason = 'subscription_cycle' AND status IN ('open', 'paid')"

echo
sandbox GET /_sandbox/state >"$RUN/stripe_state.json"
proven=0
"$PG_BIN/psql" -XqP pager=off -v ON_ERROR_STOP=1 -v stripe_state="$RUN/stripe_state.json" \
    -v trace_requests="$requests" -v trace_tokens="$tokens" -f test/demo/report.sql || proven=1
step "done"
cat <<END

Everything is still up:
  psql -h $PGHOST -U postgres demo     (\\dt billing.*, SELECT * FROM billing.get_usage_summary('tenant-01'))
  $SANDBOX_URL/_sandbox/state          what the sandbox Stripe holds
  curl -H 'Authorization: Bearer $(<"$key")' -H 'X-Tenant-Id: tenant-01' $SHIM_URL/api/billing/usage
  make demo-stop                       takes it down
END
exit $proven
