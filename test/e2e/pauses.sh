#!/usr/bin/env bash
# Trials and pauses through months, while Stripe refuses, fails and hangs up: nothing of them is billed, what was used
# before and after is, and the upcoming invoice told here is Stripe's preview, line by line.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"
source "$LIB/subscriptions.sh"

statuses() { sql "SELECT string_agg(tenant_id || ' ' || status, ', ' ORDER BY id) FROM billing.subscriptions"; }
all_heard() { sync_stripe && [ "$(statuses)" = "$1" ]; }
faults() {
    for kind in '"429"' '"500", "effect": true' '"drop_after"' '"drop_before"'; do
        fault "{\"method\": \"POST\", \"path_prefix\": \"/v1/subscriptions\", \"fault\": $kind, \"times\": 1}"
    done
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
shim_start
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
# Two metrics, so that an invoice shows all its lines on the first page.
sql "DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'agent_executions');
     DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'agent_executions')"
sql "SELECT billing.create_customer(t, t, t || '@example.com', stripe_test_clock => '$STRIPE_CLOCK')
       FROM unnest('{tried,early,paused,lapsed,waits,owes,climbs}'::text[]) t" >/dev/null
faults
sql "SELECT billing.create_subscription(t, 'standard', 'send_invoice', 30, trial_days => 14) FROM unnest('{tried,early,climbs}'::text[]) t;
     SELECT billing.create_subscription('paused', 'standard', 'send_invoice', 30);
     SELECT billing.create_subscription('lapsed', 'standard', trial_days => 14, missing_payment_method => 'cancel');
     SELECT billing.create_subscription('waits', 'standard', trial_days => 14, missing_payment_method => 'pause');
     SELECT billing.create_subscription('owes', 'standard', trial_days => 14)" >/dev/null
sql "SELECT billing.record_usage(t, 'llm_tokens', 3000000, 'trial') FROM unnest('{tried,early,owes}'::text[]) t;
     SELECT billing.record_usage('paused', 'llm_tokens', 1001000, 'before');
     SELECT billing.run_rollup()" >/dev/null
ok 'trials are made while Stripe fails' wait_until -t 60 all_heard \
    'tried trialing, early trialing, climbs trialing, paused active, lapsed trialing, waits trialing, owes trialing'
is 'in a trial the invoice is the next fee, here and there' "$(told tried) = $(previewed tried)" '1 9900 = 1 9900'
is 'no usage of it is sent' "$(sandbox GET '/_sandbox/requests?path_prefix=/v1/billing/meter_events' |
    jq '[.[].params.payload.stripe_customer_id] | unique | length')" 1

# Three days later: one trial ends early, one is moved, one subscription is paused.
clock_to "$(date -u -d '2030-02-03 10:35' +%s)"
faults
sql "SELECT billing.end_trial('early');
     SELECT billing.end_trial('tried', '2030-02-20 00:00+00');
     SELECT billing.update_subscription('climbs', 'enterprise');
     SELECT billing.pause_subscription('paused')" >/dev/null
sql "SELECT billing.record_usage('early', 'llm_tokens', 1002000, 'billed');
     SELECT billing.record_usage('paused', 'llm_tokens', 5000000, 'while paused');
     SELECT billing.run_rollup()" >/dev/null
ok 'an early end and a pause are carried out while Stripe fails' wait_until -t 60 all_heard \
    'tried trialing, early active, climbs trialing, paused paused, lapsed trialing, waits trialing, owes trialing'
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours()) AND
                   NOT EXISTS (SELECT FROM billing._stripe_changes())'
is 'after its early end usage is billed, of the trial none' "$(told early) = $(previewed early)" '0 0, 1000000 0, 2000 2, 1 9900 = 0 0, 1000000 0, 2000 2, 1 9900'
is 'a pause bills what was used and credits the rest of the fee' \
    "$(invoices paused '[.data[] | select(.billing_reason == "subscription_update") | .lines.data | map(.amount) | sort] ')" '[[-8801,0,0,1]]'
is 'while it lasts nothing is coming' "$(sql "SELECT count(*) FROM billing.get_upcoming_invoice('paused')")" 0

# The trials end: each as it was told what to do without a payment method.
clock_to "$(date -u -d '2030-02-20 12:10' +%s)"
ok 'Stripe ends the trials, and its webhooks say how' wait_until -t 60 all_heard \
    'tried active, early active, climbs active, paused paused, lapsed canceled, waits paused, owes past_due'
is 'the first invoice after a trial is the fee' "$(invoices tried '[.data[].total] | sort')" '[0,9900]'
is 'a change of plan in a trial is not prorated' "$(invoices climbs '[.data[] | select(.total > 0) | .lines.data | map(.amount)]')" '[[49900]]'
is 'past due is in force for a while, paused and canceled are not' \
    "$(sql "SELECT string_agg(reason, ' ' ORDER BY t) FROM unnest('{lapsed,owes,waits}'::text[]) t, billing.check_quota(t, 'llm_tokens')")" \
    'no_subscription within_quota subscription_inactive'

# The pause ends amid an hour, as does the one that Stripe made.
faults
sql "SELECT billing.resume_subscription(t) FROM unnest('{paused,waits}'::text[]) t;
     SELECT billing.record_usage('paused', 'llm_tokens', 1003000, 'after');
     SELECT billing.run_rollup()" >/dev/null
is 'a resumption is in force at once' "$(sql "SELECT status, used FROM billing.check_quota('paused', 'llm_tokens', 0)")" 'allowed|1003000'
ok 'it is carried out while Stripe fails' wait_until -t 60 all_heard \
    'tried active, early active, climbs active, paused active, lapsed canceled, waits active, owes past_due'
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
is 'what is used from then on is billed, of the pause nothing' "$(told paused) = $(previewed paused)" '0 0, 1000000 0, 3000 3, 1 9900 = 0 0, 1000000 0, 3000 3, 1 9900'
is 'each wish was one request with an effect' \
    "$(for t in paused waits; do for w in pause resume; do sandbox GET "/_sandbox/requests?path_prefix=/v1/subscriptions/$(stripe_id $t)/$w" |
        jq '[.[].idempotency_key] | unique | length'; done; done | xargs)" '1 1 0 1'

# Into the next periods, which begin amid an hour at Stripe: usage around the boundary is in the same period here and there.
boundary=$(sql "SELECT extract(epoch FROM current_period_end)::bigint FROM billing.subscriptions WHERE tenant_id = 'paused'")
clock_to $((boundary + 300))
sql "SELECT billing.record_usage('paused', 'llm_tokens', 40, 'late', occurred_at => 'epoch'::timestamptz + interval '$((boundary - 60)) s');
     SELECT billing.record_usage('paused', 'llm_tokens', 1000500, 'early');
     SELECT billing.run_rollup()" >/dev/null
clock_to $((boundary + 4000))
sync_until "SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours()) AND
                   (SELECT current_period_start >= 'epoch'::timestamptz + interval '$boundary s' FROM billing.subscriptions WHERE tenant_id = 'paused')"
is 'the ended period bills its usage' \
    "$(invoices paused '[.data[] | select(.billing_reason == "subscription_cycle") | .lines.data | map(.amount) | sort]')" '[[0,0,3,9900]]'
is 'the new one bills its own' "$(told paused) = $(previewed paused)" '0 0, 1000000 0, 500 1, 1 9900 = 0 0, 1000000 0, 500 1, 1 9900'

# A debt: out of force after its grace, in force again once it is paid.
is 'past due beyond its grace is out of force' "$(sql "SELECT reason FROM billing.check_quota('owes', 'llm_tokens')")" subscription_inactive
for invoice in $(invoices owes '.data[] | select(.status == "open").id' | tr -d '"'); do
    sandbox POST "/v1/invoices/$invoice/pay" -d paid_out_of_band=true >/dev/null
done
ok 'a payment brings it back' sync_until "SELECT status = 'active' FROM billing.subscriptions WHERE tenant_id = 'owes'"
is 'and its quotas' "$(sql "SELECT status FROM billing.check_quota('owes', 'llm_tokens')")" allowed
is 'nothing failed' "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE state = 'failed'")" 0
done_testing
