#!/usr/bin/env bash
# Random beginnings, trials, pauses, resumptions and ends over weeks, with usage before and after each: after every step the
# upcoming invoice told here is Stripe's preview, line by line. LIVES_SEED and LIVES_STEPS choose other and longer lives.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

seed=${LIVES_SEED:-1}
RANDOM=$seed
tenants='t1 t2 t3 t4'
told() { sql "SELECT string_agg(concat_ws(' ', quantity, amount), ', ' ORDER BY amount, quantity) FROM billing.get_upcoming_invoice('$1')"; }
# What a pause credits is no line of the upcoming invoice here.
previewed() {
    sandbox POST /v1/invoices/create_preview -d "subscription=$2" |
        jq -r '[.lines.data[] | select(.parent.subscription_item_details.proration | not) | [.amount, (.quantity_decimal | tonumber)]] |
               sort | map("\(.[1]) \(.[0])") | join(", ")'
}
use() { sql "SELECT billing.record_usage('$1', 'llm_tokens', $((RANDOM * 40)))" >/dev/null; }
# change TENANT: one change of its life, whether or not its present state permits that.
change() {
    local begin="billing.create_subscription('$1', 'standard', 'send_invoice', 30"
    local changes=("$begin)" "$begin, trial_days => $((RANDOM % 20 + 1)))" "billing.pause_subscription('$1')"
        "billing.resume_subscription('$1')" "billing.end_trial('$1')" "billing.pause_subscription('$1')"
        "billing.end_trial('$1', billing.now() + interval '$((RANDOM % 300)) hours')"
        "billing.cancel_subscription('$1')" "billing.cancel_subscription('$1', false)")
    local chosen=$((RANDOM % (${#changes[@]} + 1)))
    if [ "$(sql "SELECT count(*) FROM billing.get_subscription('$1')")" = 0 ]; then
        chosen=$((RANDOM % 2))
    fi
    # the last: a pause that Stripe never hears of
    sql "SELECT ${changes[$chosen]:-billing.pause_subscription('$1'); SELECT billing.resume_subscription('$1')}" >/dev/null 2>"$RUN/refused" ||
        grep -qE 'has a subscription already|cannot be|is not valid' "$RUN/refused" || die "seed $seed: $(cat "$RUN/refused")"
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
shim_start
now=$(date -u -d '2030-01-31 08:20' +%s)
clock_to "$now"
# Two metrics, so that an invoice shows all its lines on the first page.
sql "DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'agent_executions');
     DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'agent_executions')"
for tenant in $tenants; do
    sql "SELECT billing.create_customer('$tenant', 'T', 't@example.com', stripe_test_clock => '$STRIPE_CLOCK')" >/dev/null
done
sync_stripe

compared=0
differ=''
for step in $(seq "${LIVES_STEPS:-5}"); do
    for tenant in $tenants; do
        use "$tenant"
        change "$tenant"
        use "$tenant"
    done
    sql 'SELECT billing.run_rollup()' >/dev/null
    sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours() h WHERE h.at <= billing.now()) AND
                       NOT EXISTS (SELECT FROM billing._stripe_changes())'
    while IFS='|' read -r tenant id; do
        [ -n "$tenant" ] || continue
        ours=$(told "$tenant") theirs=$(previewed "$tenant" "$id")
        [ "$ours" = "$theirs" ] || differ+="step $step, $tenant: $ours <> $theirs; "
        compared=$((compared + 1))
    done < <(sql "SELECT tenant_id, stripe_subscription_id FROM billing.subscriptions WHERE ended_at IS NULL AND paused_at IS NULL")
    now=$((now + 3600 * (RANDOM % 150 + 2) + RANDOM % 3600))
    clock_to "$now"
    sync_stripe
    sql 'SELECT billing.run_rollup()' >/dev/null
done
is "all upcoming invoices are Stripe's (seed $seed)" "$differ" ''
ok "they were some ($compared)" [ "$compared" -gt 3 ]
is 'nothing failed' "$(sql "SELECT string_agg(kind || ' ' || error, '; ') FROM billing.stripe_outbox WHERE state = 'failed'")" ''
done_testing
