#!/usr/bin/env bash
# Credit of tenants billed through Stripe: made there once whatever goes wrong, spent there as it was told here, expired, rolled
# over, voided, given back; at every stage ledger = Stripe's balance = invoices.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

fault() { sandbox POST /_sandbox/faults -d "{\"path_prefix\": \"/v1/billing/credit\", $1}" >/dev/null; }
heal() { sandbox DELETE /_sandbox/faults >/dev/null; }
customer() { sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = '$1'"; }
grant_of() { sql "SELECT stripe_grant_id FROM billing.credit_grants WHERE tenant_id = '$1' AND name = '$2'"; }
# What each grant has left, here and there.
here() {
    sql "SELECT g.stripe_grant_id || ' ' || sum(e.amount) AS left_over FROM billing.credit_ledger e
           JOIN billing.credit_grants g ON g.tenant_id = e.tenant_id AND g.id = e.grant_id
          WHERE e.tenant_id = '$1' AND g.stripe_grant_id IS NOT NULL GROUP BY g.stripe_grant_id" | LC_ALL=C sort
}
there() {
    sandbox GET "/v1/billing/credit_balance_transactions?customer=$(customer "$1")&limit=100" | jq -r '[.data[] |
        {grant: .credit_grant, amount: (if .type == "credit" then .credit.amount.monetary.value else -.debit.amount.monetary.value end)}]
        | group_by(.grant) | map("\(.[0].grant) \(map(.amount) | add)") | .[]' | LC_ALL=C sort
}
# agree TENANT WHAT: the ledger, Stripe's transactions and balance, and the invoices tell the same.
agree() {
    is "$2: each grant has as much left as at Stripe" "$(here "$1")" "$(there "$1")"
    is 'the balance is that of Stripe, for what is metered' "$(sql "SELECT coalesce(sum(balance), 0) FROM billing.get_credit_grants('$1') WHERE status = 'active' AND metrics IS NULL")" \
        "$(sandbox GET "/v1/billing/credit_balance_summary?customer=$(customer "$1")&filter[type]=applicability_scope&filter[applicability_scope][price_type]=metered" -g |
            jq '[.balances[].available_balance.monetary.value] | add // 0')"
    is 'what was spent is what the invoices show' \
        "$(sql "SELECT coalesce(-sum(amount), 0) FROM billing.credit_ledger WHERE tenant_id = '$1' AND kind IN ('applied', 'reversed')")" \
        "$(sandbox GET "/v1/invoices?customer=$(customer "$1")&limit=100" |
            jq '[.data[] | select(.status != "void" and .status != "draft") | .total_pretax_credit_amounts[].amount] | add // 0')"
    is 'nothing waits, nothing failed' "$(sql 'SELECT (SELECT count(*) FROM billing.stripe_waiting), (SELECT count(*) FROM billing.stripe_dead_letter)')" '0|0'
}
told_here() {
    sql "SELECT coalesce(metric, ''), -sum(amount) FROM billing.get_upcoming_invoice('$1') WHERE kind = 'credit' GROUP BY 1 ORDER BY 1"
}
told_there() {
    sandbox POST /v1/invoices/create_preview -d "customer=$(customer "$1")" | jq -r '[.lines.data[] |
        {price: .pricing.price_details.price, amount: ([.pretax_credit_amounts[].amount] | add // 0)}] | .[] | "\(.price) \(.amount)"' |
        while read -r price amount; do echo "$(sql "SELECT metric FROM billing.plan_prices WHERE stripe_price_id = '$price'")|$amount"; done |
        awk -F'|' '{s[$1] += $2} END {for (m in s) if (s[m] > 0) print m "|" s[m]}' | LC_ALL=C sort
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
# Two metrics, so that an invoice shows all its lines on the first page.
sql "DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'agent_executions');
     DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'agent_executions')"
shim_start
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
for tenant in acme bolt; do
    sql "SELECT billing.create_customer('$tenant', '$tenant', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK');
         SELECT billing.create_subscription('$tenant', 'standard', 'send_invoice', 30)" >/dev/null
done
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"

## Made once
fault '"method": "POST", "fault": "500", "effect": true, "times": 1'
fault '"method": "POST", "fault": "drop_after", "times": 1'
fault '"method": "POST", "fault": "timeout", "effect": true, "times": 1'
fault '"method": "POST", "fault": "drop_before", "times": 1'
fault '"fault": "429", "times": 2'
sql "SELECT billing.grant_credit('acme', 2000, name => 'Prepaid'),
            billing.grant_credit('acme', 500, category => 'promotional', expires_at => '2030-03-10', name => 'Welcome'),
            billing.grant_credit('acme', 300, priority => 10, metrics => '{llm_tokens}', name => 'Tokens'),
            billing.grant_credit('acme', 900, expires_at => '2030-02-20', rollover_max => 250, name => 'Rolls'),
            billing.grant_credit('acme', 40, name => 'Mistake'), billing.grant_credit('acme', 50, name => 'Never sent'),
            billing.grant_credit('bolt', 100, name => 'Small');
     SELECT billing.void_credit(id, 'not meant') FROM billing.credit_grants WHERE name = 'Never sent'" >/dev/null
sync_stripe
heal
is 'grants are made at Stripe once each, whatever goes wrong' \
    "$(sandbox GET "/v1/billing/credit_grants?limit=100" | jq -r '[.data[] | "\(.name) \(.amount.monetary.value) \(.category) \(.priority)"] | sort | join(", ")')" \
    'Mistake 40 paid 50, Prepaid 2000 paid 50, Rolls 900 paid 50, Small 100 paid 50, Tokens 300 paid 10, Welcome 500 promotional 50'
is 'one for a metric is one for its prices' "$(sandbox GET "/v1/billing/credit_grants/$(grant_of acme Tokens)" |
    jq -r '.applicability_config.scope.prices | length')" 3
is 'one that was voided before is not' "$(sql "SELECT balance, stripe_grant_id IS NULL FROM billing.credit_grants WHERE name = 'Never sent'")" '0|t'
sql "SELECT billing.void_credit(id, 'by mistake') FROM billing.credit_grants WHERE name = 'Mistake'" >/dev/null
is 'what is voided counts no more at once' "$(sql "SELECT billing.get_credit_balance('acme')")" 3700
sync_stripe
is 'and is void at Stripe, too' "$(sandbox GET "/v1/billing/credit_grants/$(grant_of acme Mistake)" | jq '.voided_at != null')" true
sync_until "SELECT NOT EXISTS (SELECT FROM billing.credit_grants WHERE stripe_stale_since IS NOT NULL) AND NOT EXISTS (SELECT FROM billing.webhook_events WHERE processed_at IS NULL)"
agree acme 'after a void'

## Expired and rolled over by Stripe's clock
clock_to "$(date -u -d '2030-02-20 01:00' +%s)"
sync_until "SELECT count(stripe_grant_id) = 2 FROM billing.credit_grants WHERE name = 'Rolls'"
is 'up to the maximum begins anew' "$(sql "SELECT amount, balance, expires_at IS NOT NULL FROM billing.credit_grants WHERE name = 'Rolls' ORDER BY id")" \
    $'900|0|t\n250|250|t'
agree acme 'after an expiry'

## Spent as it was told
sql "SELECT billing.record_usage('acme', 'llm_tokens', 1500000), billing.record_usage('acme', 'agent_executions', 5100),
            billing.record_usage('bolt', 'agent_executions', 5100)" >/dev/null
sql 'SELECT billing.run_rollup()' >/dev/null
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
is 'the upcoming invoice shows what Stripe would spend' "$(told_here acme)" "$(told_there acme)"
is 'which is this' "$(told_here acme)" $'agent_executions|1000\nllm_tokens|500'
fault '"method": "GET", "fault": "500", "times": 2'
fault '"method": "GET", "fault": "drop_after", "times": 1'
clock_to "$(date -u -d '2030-02-28 11:00' +%s)"
sync_until "SELECT NOT EXISTS (SELECT FROM billing.webhook_events WHERE processed_at IS NULL) AND count(*) = 2 FROM billing.invoices WHERE billing_reason = 'subscription_cycle' AND status = 'open'"
sync_until "SELECT count(*) > 0 AND NOT EXISTS (SELECT FROM billing.credit_grants WHERE stripe_stale_since IS NOT NULL) FROM billing.credit_ledger WHERE kind = 'applied'"
heal
is 'so it was spent' "$(sql "SELECT metric, -sum(amount) FROM billing.get_credit_ledger('acme') WHERE kind = 'applied' GROUP BY 1 ORDER BY 1")" \
    $'agent_executions|1000\nllm_tokens|500'
agree acme 'after an invoice'
agree bolt 'one whose credit is used up'

## Given back, and the rest voided
invoice=$(sql "SELECT stripe_invoice_id FROM billing.invoices WHERE tenant_id = 'bolt' AND billing_reason = 'subscription_cycle'")
sandbox POST "/v1/invoices/$invoice/void" >/dev/null
sync_until "SELECT billing.get_credit_balance('bolt') = 100"
agree bolt 'after an invoice is voided'
sql "SELECT billing.void_credit(id, 'contract ended') FROM billing.credit_grants WHERE name = 'Prepaid'" >/dev/null
sync_until "SELECT balance = 0 FROM billing.credit_grants WHERE name = 'Prepaid'"
is 'what was spent in part expires at Stripe, and is void here' \
    "$(sandbox GET "/v1/billing/credit_grants/$(grant_of acme Prepaid)" | jq '.voided_at == null and .expires_at != null')
$(sql "SELECT e.kind, e.amount, e.reason FROM billing.credit_ledger e JOIN billing.credit_grants g ON g.id = e.grant_id WHERE g.name = 'Prepaid' ORDER BY e.id DESC LIMIT 1")" \
    $'true\nvoided|-1550|contract ended'
agree acme 'after a void of a rest'

## Made and ended at Stripe
sandbox POST /v1/billing/credit_grants -d "customer=$(customer bolt)" -d 'amount[type]=monetary' -d 'amount[monetary][currency]=usd' \
    -d 'amount[monetary][value]=77' -d 'applicability_config[scope][price_type]=metered' -d 'category=promotional' -d 'name=Dashboard' >/dev/null
sync_until "SELECT EXISTS (SELECT FROM billing.credit_grants WHERE name = 'Dashboard' AND stripe_stale_since IS NULL)"
agree bolt 'one made at Stripe'
sandbox POST "/v1/billing/credit_grants/$(grant_of bolt Dashboard)/void" >/dev/null
sync_until "SELECT balance = 0 FROM billing.credit_grants WHERE name = 'Dashboard'"
agree bolt 'and voided there'

## An outcome that stays unknown until Stripe has forgotten the key
fault '"method": "POST", "fault": "drop_after", "times": 1'
fault '"method": "POST", "fault": "500", "times": -1'
sql "SELECT billing.grant_credit('bolt', 33, name => 'Unknown')" >/dev/null
tried() { [ "$(sql "SELECT coalesce(max(attempts), 0) > 1 FROM billing.stripe_outbox WHERE kind = 'credit_grant_create' AND state = 'waiting'")" = t ]; }
wait_until tried
heal
sql "UPDATE billing.stripe_outbox SET created_at = created_at - interval '1 day', idempotency_key = 'forgotten' WHERE kind = 'credit_grant_create' AND state = 'waiting'"
sql "SELECT billing.run_stripe_sync('60 s')" >/dev/null
is 'is looked for, found, and not made again' \
    "$(sandbox GET "/v1/billing/credit_grants?limit=100" | jq -r '[.data[] | select(.name == "Unknown").id] | join(" ")')" "$(grant_of bolt Unknown)"
known() {
    sql "SELECT billing.run_stripe_sync('60 s')" >/dev/null
    [ "$(sql 'SELECT count(*) FROM billing.credit_grants WHERE stripe_stale_since IS NOT NULL')" = 0 ]
}
wait_until -t 60 known
agree bolt 'an unknown outcome'
done_testing
