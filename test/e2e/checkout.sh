#!/usr/bin/env bash
# Checkout and the portal while Stripe fails: the URL comes once and is found nowhere else; the subscription that a tenant
# makes there is its own, and bills by the hours here as by the seconds there. And a tenant that comes to Stripe later.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"
source "$LIB/subscriptions.sh"

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600 log_statement=all
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
shim_start
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
sql "DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'agent_executions');
     DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'agent_executions')"
sql "SELECT billing.create_customer('acme', 'Acme', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK');
     SELECT billing.create_customer('bolt', 'Bolt', 'b@example.com', 'Asia/Kolkata', stripe => false);
     SELECT billing.create_subscription('bolt', 'standard', 'send_invoice', 30)" >/dev/null
sync_stripe

for kind in '"429"' '"500", "effect": true' '"drop_after"' '"drop_before"'; do
    fault "{\"method\": \"POST\", \"path_prefix\": \"/v1/checkout\", \"fault\": $kind, \"times\": 1}"
done
session=$(sql "SELECT billing.create_checkout_session('acme', 'standard', 'https://app.example/done')")
url=$(sql "SELECT billing.get_session_url('acme', $session, '60 s')")
like 'the URL of a Checkout session comes while Stripe fails' "$url" '^https://checkout.stripe.com/c/pay/cs_test_'
is 'and once' "$(sql "SELECT billing.get_session_url('acme', $session)" 2>&1 | grep -c 'has no session')" 1
is 'it was opened once' "$(sandbox GET /_sandbox/state | jq '.counts["checkout.session"]')" 1
portal=$(sql "SELECT billing.create_portal_session('acme', 'https://app.example/account')")
like 'that of the portal, too' "$(sql "SELECT billing.get_session_url('acme', $portal, '60 s')")" '^https://billing.stripe.com/p/session/'
id=${url##*/}
id=${id%%#*}
is 'neither is in the log, nor in a table' \
    "$(grep -c -e 'checkout.stripe.com' -e 'billing.stripe.com' "$(cluster_log)"; "$PG_BIN/pg_dump" postgres | grep -c -e 'checkout.stripe.com' -e 'billing.stripe.com')" '0
0'

clock_to "$(date -u -d '2030-01-31 10:41:17' +%s)"
sandbox POST /_sandbox/checkout -d "{\"session\": \"$id\"}" >/dev/null
ok 'what was subscribed to there is known here' \
    sync_until "SELECT status = 'active' AND plan = 'standard' FROM billing.subscriptions WHERE tenant_id = 'acme'"
is 'its period begins with the hour' "$(sql "SELECT current_period_start FROM billing.get_subscription('acme')")" '2030-01-31 10:00:00+00'
is 'and its first invoice is paid' "$(invoices acme '[.data[] | [.total, .status]]')" '[[9900,"paid"]]'

# A payment method that was entered in the portal pays the first invoice at once, if that is asked for.
for tenant in pays owes; do
    sql "SELECT billing.create_customer('$tenant', '$tenant', 'p@example.com', stripe_test_clock => '$STRIPE_CLOCK')" >/dev/null
done
sync_stripe
customer=$(sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = 'pays'")
sandbox POST "/v1/customers/$customer" -d 'invoice_settings[default_payment_method]=pm_card_visa' >/dev/null
sql "SELECT billing.create_subscription('pays', 'standard', payment_behavior => 'allow_incomplete');
     SELECT billing.create_subscription('owes', 'standard')" >/dev/null
sync_until "SELECT NOT EXISTS (SELECT FROM billing.subscriptions WHERE status = 'pending')"
is 'who pays is active, who has yet to pay is incomplete and denied' \
    "$(sql "SELECT string_agg(concat_ws(' ', s.tenant_id, s.status, c.status), ', ' ORDER BY s.id) FROM billing.subscriptions s,
                   billing.check_quota(s.tenant_id, 'llm_tokens') c WHERE s.tenant_id IN ('pays', 'owes')")" \
    'pays active allowed, owes incomplete denied'

# A tenant that was billed elsewhere comes to Stripe in the middle of its period.
sql "SELECT billing.record_usage('bolt', 'llm_tokens', 5000000, 'elsewhere');
     SELECT billing.run_rollup();
     SELECT billing.connect_stripe('bolt', '$STRIPE_CLOCK');
     SELECT billing.record_usage(t, 'llm_tokens', 1002000, 'first') FROM unnest('{acme,bolt}'::text[]) t;
     SELECT billing.run_rollup()" >/dev/null
clock_to "$(date -u -d '2030-01-31 10:45' +%s)"
sync_until "SELECT status = 'active' FROM billing.subscriptions WHERE tenant_id = 'bolt'"
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
for tenant in acme bolt; do
    is "$tenant: the upcoming invoice is Stripe's" "$(told $tenant) = $(previewed $tenant)" \
        '0 0, 1000000 0, 2000 2, 1 9900 = 0 0, 1000000 0, 2000 2, 1 9900'
done
is 'bolt: nothing of before is billed' "$(invoices bolt '[.data[].lines.data[] | [.amount, .period.start]]')" \
    "[[9900,$(date -u -d '2030-01-31 10:00' +%s)]]"
is 'bolt: it is kept' "$(sql "SELECT billing.get_current_usage('bolt', 'llm_tokens', 'previous')")" 5000000

# The end of the month: acme's period ends amid an hour at Stripe.
clock_to "$(date -u -d '2030-02-28 10:50' +%s)"
sql "SELECT billing.record_usage('acme', 'llm_tokens', 1000, 'last', occurred_at => '2030-02-28 09:59:59+00');
     SELECT billing.record_usage('acme', 'llm_tokens', 7, 'next', occurred_at => '2030-02-28 10:00:00+00')" >/dev/null
sync_until "SELECT current_period_start = '2030-02-28 10:00+00' FROM billing.subscriptions WHERE tenant_id = 'acme'"
sql 'SELECT billing.run_rollup()' >/dev/null
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
clock_to "$(date -u -d '2030-02-28 12:10' +%s)"
is 'the hour before the boundary is in the ended period' \
    "$(invoices acme '[.data[] | select(.billing_reason == "subscription_cycle") | .lines.data | map(.amount) | sort]')" '[[0,0,3,9900]]'
is 'the hour of the boundary in the new one' "$(told acme) = $(previewed acme)" '0 0, 7 0, 1 9900 = 0 0, 7 0, 1 9900'
is 'nothing failed' "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE state = 'failed'")" 0
done_testing
