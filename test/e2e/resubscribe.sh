#!/usr/bin/env bash
# Cancel now and subscribe again within one clock hour, once and several times, while Stripe is there and while it is not: each
# event is billed once, by the subscription that it was used under, whether totals, deltas or figures are sent.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"
source "$LIB/subscriptions.sh"

# uses TENANT TOKENS RUNS
uses() { sql "SELECT billing.record_usage('$1', 'llm_tokens', $2), billing.record_usage('$1', 'agent_executions', $3)" >/dev/null; }
again() { # TENANT [invoice_now]
    sql "SELECT billing.cancel_subscription('$1', false, invoice_now => ${2:-true}); SELECT billing.create_subscription('$1', 'team', 'send_invoice', 30)" >/dev/null
}
submitted() {
    sql 'SELECT billing.run_rollup()' >/dev/null
    sync_until "SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours() h WHERE NOT billing._stripe_held(h.tenant_id, h.subscription_id, h.at))
                       AND NOT EXISTS (SELECT FROM billing._stripe_changes()) AND NOT EXISTS (SELECT FROM billing.subscriptions WHERE status = 'pending')"
}
# billed TENANT: the quantities of usage on the invoices of each of its subscriptions: runs, tokens and seats.
billed() {
    for id in $(sql "SELECT stripe_subscription_id FROM billing.subscriptions WHERE tenant_id = '$1' ORDER BY id"); do
        sandbox GET "/v1/invoices?subscription=$id&limit=100" | jq -r '[.data[].lines.data[] | select(.amount != 9900)
            | {what: .description | capture("× (?<name>[^(]*)").name, quantity: .quantity_decimal | tonumber}]
            | group_by(.what) | map(map(.quantity) | add) | join("/")'
    done | xargs
}
here() { sql "SELECT string_agg(used::text, ' ' ORDER BY metric DESC) FROM billing.get_usage_summary('$1') WHERE metric IN ('llm_tokens', 'agent_executions')"; }

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
clock_to "$(date -u -d '2030-03-05 08:20' +%s)"
sql "UPDATE billing.metrics SET export = 'delta' WHERE name = 'agent_executions';
     INSERT INTO billing.plans (name, display_name, price) VALUES ('team', 'Team', 9900);
     INSERT INTO billing.plan_metrics (plan, metric, allowance, cap) SELECT 'team', m, NULL, 'none' FROM unnest('{llm_tokens,agent_executions,user_seats}'::text[]) m;
     INSERT INTO billing.price_tiers (plan, metric, ordinal, up_to, unit_amount) SELECT plan, metric, 1, NULL, 1 FROM billing.plan_metrics WHERE plan = 'team'" >/dev/null
for tenant in old unbilled; do
    sql "SELECT billing.create_customer('$tenant', '$tenant', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK');
         SELECT billing.create_subscription('$tenant', 'team', 'send_invoice', 30)" >/dev/null
done
submitted

# Two that had used something before and in the hour, one whose end is not invoiced.
clock_to "$(date -u -d '2030-03-07 10:10' +%s)"
for tenant in cycles away; do
    sql "SELECT billing.create_customer('$tenant', '$tenant', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK');
         SELECT billing.create_subscription('$tenant', 'team', 'send_invoice', 30)" >/dev/null
done
sql "SELECT billing.set_usage('old', 'user_seats', 3)" >/dev/null
for tenant in old unbilled cycles away; do uses $tenant 100 10; done
submitted
uses old 5 2
again old
again unbilled false
for tenant in old unbilled; do uses $tenant 2000 300; done
is 'what was used before is not of the new period' "$(here old)" '2000 300'
# Several times while Stripe hears of none.
cluster_reload main pg_billing.database_workers=off
wait_until stripe_worker_gone
for n in 1 2 3; do
    again cycles
    uses cycles ${n}000 ${n}0
done
again away
uses away 40 4
is 'nor of that of who began in the same hour' "$(here cycles)" '3000 30'
cluster_reload main pg_billing.database_workers=on
submitted
is 'what shares an hour with an invoice that is not final waits' \
    "$(sql "SELECT string_agg(h.tenant_id || ' ' || trim_scale(h.quantity), ', ' ORDER BY h.tenant_id, h.quantity) FROM billing._stripe_due_hours() h")" \
    'away 4, away 40, cycles 30, cycles 3000, old 300, old 2000, unbilled 300, unbilled 2000'
clock_to "$(date -u -d '2030-03-07 11:40' +%s)"
submitted
is 'the new ones begin at Stripe where the old ones ended' \
    "$(sql "SELECT count(*) FROM billing.subscriptions n JOIN billing.subscriptions o ON o.tenant_id = n.tenant_id AND o.id < n.id
             WHERE n.stripe_subscription_id IS NOT NULL AND date_trunc('hour', n.starts, 'UTC') + n.stripe_offset < o.stripe_ended_at")" 0
for tenant in old unbilled cycles away; do
    is "$tenant: the upcoming invoice is that of Stripe" "$(told $tenant)" "$(previewed $tenant)"
done

# Out of Stripe's reach for hours: cancelled and subscribed anew meanwhile, used before and after, hour by hour.
clock_to "$(date -u -d '2030-03-08 12:10' +%s)"
cluster_reload main pg_billing.stripe_api_base=http://127.0.0.1:1
uses away 7 1
again away
uses away 500 50
clock_to "$(date -u -d '2030-03-08 13:10' +%s)"
uses away 600 60
sql 'SELECT billing.run_rollup()' >/dev/null
clock_to "$(date -u -d '2030-03-08 15:20' +%s)"
cluster_reload main "pg_billing.stripe_api_base=$SANDBOX_URL"
submitted
is 'usage waits while an earlier invoice would have it' \
    "$(sql "SELECT count(*) FROM billing._stripe_due_hours() h WHERE h.tenant_id = 'away'")" 4
clock_to "$(date -u -d '2030-03-08 16:30' +%s)"
submitted
is 'and no longer' "$(sql "SELECT count(*) FROM billing._stripe_due_hours()")" 0

# The months end: ledger = sent = Stripe = invoices.
for day in 2030-04-05 2030-04-07 2030-04-08 2030-04-09; do
    clock_to "$(date -u -d "$day 07:50" +%s)"
    submitted
    clock_to "$(date -u -d "$day 20:10" +%s)"
    submitted
done
is 'each is billed what was used under it, once' "$(billed old); $(billed cycles); $(billed away)" \
    '12/105/3 300/2000/3; 10/100/0 30/3000/0; 10/100/0 5/47/0 110/1100/0'
is 'an end that is not invoiced bills nothing, to nobody' "$(billed unbilled)" '300/2000/0'
sql "SELECT billing.reconcile('previous', by_hour => true)" >/dev/null
sync_until 'SELECT bool_and(finished_at IS NOT NULL) FROM billing.reconciliations'
is 'ledger, what was sent, what Stripe counts and what it invoiced agree, but for what was not to be invoiced' \
    "$(sql "SELECT string_agg(concat_ws(' ', tenant_id, metric, kind, ledger, sent, stripe, invoiced), '; ' ORDER BY metric) FROM billing.stripe_drift")" \
    'unbilled agent_executions invoice 10 10; unbilled llm_tokens invoice 100 100'
is 'no usage is late' "$(sql 'SELECT count(*) FROM billing.late_usage')" 0
is 'nothing failed' "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE state = 'failed'")" 0
done_testing
