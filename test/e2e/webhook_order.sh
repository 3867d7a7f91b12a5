#!/usr/bin/env bash
# The events of months of subscriptions, delivered in order while they happen, and then to a copy of the database all at
# once: shuffled, each one to three times, thin notifications among them. Both end in the same state.
# WEBHOOKS=10000 is the long form.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

DELIVERIES=${WEBHOOKS:-2000} SEED=${SEED:-$RANDOM}
TENANTS=$((DELIVERIES / 150)) MONTHS=10

processed() { [ "$(sql "SELECT count(*) FROM billing.webhook_events WHERE processed_at IS NULL")" = 0 ]; }
# What Stripe has told, without the times at which it was heard.
state() {
    sql "SELECT 'customer', tenant_id, stripe_customer_id, stripe_deleted_at IS NULL FROM billing.billing_customers ORDER BY 2;
         SELECT 'subscription', tenant_id, plan, status, current_period_start, current_period_end, cancel_at_period_end, ended_at,
                past_due_since IS NULL, stripe_subscription_id, stripe_status, stripe_plan, stripe_item_id, stripe_cancels
           FROM billing.subscriptions ORDER BY 2;
         SELECT 'item', tenant_id, metric, stripe_item_id, stripe_price_id FROM billing.subscription_items ORDER BY 2, 3;
         SELECT to_jsonb(i) - 'fetched_at' FROM billing.invoices i ORDER BY tenant_id, stripe_invoice_id;
         SELECT to_jsonb(l) FROM billing.invoice_lines l ORDER BY tenant_id, stripe_invoice_id, stripe_line_id;
         SELECT 'meter', name, stripe_meter_active FROM billing.metrics ORDER BY 2;
         SELECT 'drift', object_type, object_id, note FROM billing.catalog_drift ORDER BY 2, 3"
}
stripe_id() { sql "SELECT stripe_subscription_id FROM billing.subscriptions WHERE tenant_id = 't$1'"; }
customer_id() { sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = 't$1'"; }
price_of() { sandbox GET "/v1/prices?lookup_keys%5B0%5D=$1" | jq -er '.data[0].id'; }
quietly() { sandbox "$@" >/dev/null; }

echo "# seed $SEED"
sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_rate=10000 pg_billing.rollup_interval=3600 \
    pg_billing.submit_interval=3600 pg_billing.missed_events_interval=-1
sql 'CREATE DATABASE ordered'
export PGDATABASE=ordered
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
sql 'CREATE ROLE shim LOGIN IN ROLE billing_app'
sql "DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'agent_executions');
     DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'agent_executions')"
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
sql "SELECT billing.create_customer('t' || n, 't' || n, 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK'),
            billing.create_subscription('t' || n, 'standard') FROM generate_series(1, $TENANTS) n" >/dev/null
sync_until "SELECT bool_and(stripe_subscription_id IS NOT NULL) FROM billing.subscriptions"
sql 'CREATE DATABASE shuffled TEMPLATE ordered'
SECRET=whsec_none
SANDBOX_URL='' PGUSER=shim shim_start    # deliveries are ours here, not the sandbox's
wait_until curl -sf "$SHIM_URL/readyz"
HOOK=$SHIM_URL/api/billing/webhooks/stripe

# events_since ID: what happened at Stripe after that event, the oldest first.
events_since() {
    local page more=true cursor=${1:+&ending_before=$1} first=
    : >"$RUN/pages"
    if [ -n "$1" ]; then
        first=$1
        while [ "$more" = true ]; do
            page=$(sandbox GET "/v1/events?limit=100&ending_before=$first")
            jq -c '.data | reverse[]' <<<"$page" >>"$RUN/pages"
            more=$(jq -r .has_more <<<"$page")
            first=$(jq -r --arg old "$first" '.data[0].id // $old' <<<"$page")
        done
    else
        sandbox GET '/v1/events?limit=1' | jq -c '.data[]' >>"$RUN/pages"
    fi
    jq -sc . "$RUN/pages"
}
LAST=$(events_since '' | jq -r '.[0].id')
: >"$RUN/recorded"
# told: has this database, and the record, hear of what has happened since.
told() {
    events_since "$LAST" >"$RUN/events.json"
    LAST=$(jq -r --arg old "$LAST" '.[-1].id // $old' "$RUN/events.json")
    jq -c '.[]' "$RUN/events.json" >>"$RUN/recorded"
    node "$LIB/deliver.mjs" "$HOOK" "$SECRET" "$RUN/events.json" 1 0 >/dev/null
    sync_until 'SELECT NOT EXISTS (SELECT FROM billing.webhook_events WHERE processed_at IS NULL)'
}

# A third of them pays, a third will later, the rest never.
for ((n = 1; n <= TENANTS; n++)); do
    case $((n % 3)) in
        0) quietly POST "/v1/customers/$(customer_id $n)" -d 'invoice_settings[default_payment_method]=pm_card_visa' ;;
        1) quietly POST "/v1/customers/$(customer_id $n)" -d 'invoice_settings[default_payment_method]=pm_card_chargeCustomerFail' ;;
    esac
done
for ((n = 1; n <= TENANTS; n++)); do
    invoice=$(sandbox GET "/v1/invoices?subscription=$(stripe_id $n)" | jq -r '.data[0].id')
    [ $((n % 3)) != 0 ] || quietly POST "/v1/invoices/$invoice/pay"
    [ $((n % 3)) != 1 ] || quietly POST "/v1/invoices/$invoice/pay" -d paid_out_of_band=true
done
told
now=$(date -u -d '2030-01-31 08:20' +%s)
for ((month = 1; month <= MONTHS; month++)); do
    now=$((now + 2629800))
    quietly POST "/v1/test_helpers/test_clocks/$STRIPE_CLOCK/advance" -d "frozen_time=$now"
    n=$((month % TENANTS + 1))
    # not all of this is possible: some have ended before
    case $((month % 5)) in
        0) quietly POST "/v1/subscriptions/$(stripe_id $n)" -d cancel_at_period_end=true ;;
        1) quietly DELETE "/v1/subscriptions/$(stripe_id $n)" ;;
        2) quietly POST "/v1/products/pgb_plan_free" -d "name=Changed$month" ;;
        3) quietly POST "/v1/prices/$(price_of pgb_enterprise_month)" -d active=false ;;
        4) quietly DELETE "/v1/customers/$(customer_id $n)" ;;
    esac 2>/dev/null || true
    told
done
quietly POST /v1/billing/meters/"$(sql "SELECT stripe_meter_id FROM billing.metrics WHERE name = 'llm_tokens'")"/deactivate
told
state >"$RUN/ordered.state"
jq -sc . "$RUN/recorded" >"$RUN/recorded.json"
ok "a life of $(wc -l <"$RUN/recorded") events" test "$(wc -l <"$RUN/recorded")" -gt $((DELIVERIES / 8))
ok 'in which some pay, some do not, and some end' \
    [ "$(sql "SELECT count(DISTINCT status) FROM billing.subscriptions")" -ge 2 ]

service_stop shim
export PGDATABASE=shuffled
state >"$RUN/before.state"
ok 'the copy knows nothing of it' [ "$(<"$RUN/before.state")" != "$(<"$RUN/ordered.state")" ]
sql 'SELECT billing.adopt()' >/dev/null
SANDBOX_URL='' PGUSER=shim shim_start
wait_until curl -sf "$SHIM_URL/readyz"
sent=$(node "$LIB/deliver.mjs" "$SHIM_URL/api/billing/webhooks/stripe" "$SECRET" "$RUN/recorded.json" "$SEED" "$DELIVERIES")
ok "$sent deliveries are accepted, shuffled, many of them several times" [ "$sent" -ge "$DELIVERIES" ]
sync_until 'SELECT NOT EXISTS (SELECT FROM billing.webhook_events WHERE processed_at IS NULL)'
state >"$RUN/shuffled.state"
is 'they end in the state of the ordered run' "$(diff "$RUN/ordered.state" "$RUN/shuffled.state" | head -n 20)" ''
is 'and none failed' "$(sql "SELECT count(*) FROM billing.webhook_events WHERE outcome = 'failed'")" 0
is 'each was stored once' "$(sql "SELECT count(*) = count(DISTINCT id) FROM billing.webhook_events")" t
done_testing
