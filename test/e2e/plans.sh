#!/usr/bin/env bash
# A change of prices: who subscribed before is billed as before, who comes after at the new prices, who asks for it at the
# new ones from the next period on, and who has prices of its own at those; all to the minor unit, here as at Stripe.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

subscribe() { # TENANT PLAN
    sql "SELECT billing.create_customer('$1', '$1', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK')" >/dev/null
    sql "SELECT billing.create_subscription('$1', '$2', 'send_invoice', 30)" >/dev/null
}
price() { sql "SELECT stripe_price_id FROM billing.plan_prices WHERE plan = 'team' AND metric $1 AND since = $2"; }
at_stripe() { sandbox GET "/v1/prices/$1" | jq -r "$2"; }
# upcoming TENANT: what is told here; invoiced TENANT: what Stripe bills with the last period.
upcoming() {
    cluster_psql -F $'\t' -c "SELECT description, quantity, unit_amount, amount, extract(epoch FROM period_start)::bigint,
                                     extract(epoch FROM period_end)::bigint FROM billing.get_upcoming_invoice('$1')"
}
invoiced() {
    local customer invoice
    customer=$(sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = '$1'")
    invoice=$(sandbox GET "/v1/invoices?customer=$customer&limit=1" | jq -r '.data[0].id')
    sandbox GET "/v1/invoices/$invoice/lines?limit=100" | jq -r '.data[] |
        [.description, .quantity_decimal, .pricing.unit_amount_decimal, .amount, .period.start, .period.end] | @tsv'
}
use() { # QUANTITIES: of each tenant, at the present
    sql "SELECT FROM billing.subscriptions s, unnest('{$1}'::numeric[]) q, billing.record_usage(s.tenant_id, 'llm_tokens', q)" >/dev/null
}
period_end() { sql 'SELECT extract(epoch FROM max(current_period_end))::bigint FROM billing.subscriptions'; }

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
sql "DELETE FROM billing.price_tiers; DELETE FROM billing.plan_metrics; DELETE FROM billing.plans; DELETE FROM billing.metrics WHERE name <> 'llm_tokens';
     UPDATE billing.metrics SET scale = 2;
     INSERT INTO billing.plans (name, display_name, price) VALUES ('team', 'Team', 9900);
     INSERT INTO billing.plan_metrics (plan, metric, allowance, cap) VALUES ('team', 'llm_tokens', 1000, 'none');
     INSERT INTO billing.price_tiers VALUES ('team', 'llm_tokens', 1, 1000, 0), ('team', 'llm_tokens', 2, NULL, 0.5)"
subscribe stays team
subscribe moves team
sql "SELECT billing.create_customer('own', 'own', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK')" >/dev/null
sql "SELECT billing.set_price('own', NULL, '4950.5', plan => 'team'), billing.set_price('own', 'llm_tokens',
        '[{\"up_to\": 2500, \"unit_amount\": 0.2, \"flat_amount\": 30}, {\"unit_amount\": 0.111, \"flat_amount\": 7.5}]', 'volume', plan => 'team')" >/dev/null
sql "SELECT billing.create_subscription('own', 'team', 'send_invoice', 30)" >/dev/null
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"

sql "UPDATE billing.plans SET price = 12900; UPDATE billing.price_tiers SET up_to = 2000 WHERE ordinal = 1;
     UPDATE billing.price_tiers SET unit_amount = 0.75 WHERE ordinal = 2"
subscribe comes team
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"
is 'Stripe has both prices of the fee: the new one under the lookup key, the old one no longer for sale' \
    "$(for v in 1 2; do at_stripe "$(price 'IS NULL' $v)" '[.active, .lookup_key, .unit_amount] | tostring'; done | xargs -d '\n')" \
    '[false,null,9900] [true,"pgb_team_month",12900]'
is 'and of the metric' \
    "$(for v in 1 2; do at_stripe "$(price "= 'llm_tokens'" $v)" '[.active, .lookup_key] | tostring'; done | xargs -d '\n')" \
    '[false,null] [true,"pgb_team_llm_tokens_month"]'
is 'no subscription was changed' "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE kind = 'subscription_update'")" 0

# The first period: two prices side by side.
end=$(period_end)
clock_to $((end - 290))
use 1500.25,1500
for tenant in stays comes own; do
    upcoming $tenant >"$RUN/$tenant.1"
done
sql 'SELECT billing.run_rollup()' >/dev/null
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
clock_to $((end + 7200))
for tenant in stays comes own; do
    is "$tenant: billed as it was told" "$(invoiced $tenant)" "$(<"$RUN/$tenant.1")"
done
is 'they are billed at different prices' "$(for t in stays comes own; do cut -f4 "$RUN/$t.1" | xargs; done | xargs -d '\n')" \
    '0 1000 9900 0 750 12900 333 8 4951'

# One is moved; Stripe knows of it before the second period's usage.
is 'one subscriber is moved when asked' "$(sql "SELECT billing.update_subscription('moves', 'team', 'none')" >/dev/null
    sql "SELECT string_agg(tenant_id || ' ' || plan_version, ', ' ORDER BY tenant_id) FROM billing.subscriptions")" 'comes 2, moves 2, own 1, stays 1'
sync_until 'SELECT NOT bool_or(prices_due) FROM billing.subscriptions'
is 'its prices, old and new, are for sale as before' \
    "$(for v in 1 2; do at_stripe "$(price 'IS NULL' $v)" .active; done | xargs)" 'false true'
end=$(period_end)
clock_to $((end - 290))
use 3000
for tenant in stays comes moves own; do
    upcoming $tenant >"$RUN/$tenant.2"
done
sql 'SELECT billing.run_rollup()' >/dev/null
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
clock_to $((end + 7200))
for tenant in stays comes own; do
    is "$tenant: billed as it was told, a period later" "$(invoiced $tenant)" "$(<"$RUN/$tenant.2")"
done
is 'who moved: at the new prices, too' "$(invoiced moves | grep -v '^0 ' | cut -f1,4)" "$(grep -v '^0 ' "$RUN/moves.2" | cut -f1,4)"
is 'by the figures' "$(cut -f4 "$RUN/stays.2" | xargs), $(cut -f4 "$RUN/moves.2" | xargs)" '0 1000 9900, 0 750 12900'
done_testing
