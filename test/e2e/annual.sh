#!/usr/bin/env bash
# A fee billed yearly and usage billed monthly, on one subscription with periods of two lengths: each invoice is what was told
# here, over thirteen months, and for one who moves from monthly to yearly.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

upcoming() {
    cluster_psql -F $'\t' -c "SELECT description, quantity, unit_amount, amount, extract(epoch FROM period_start)::bigint,
                                     extract(epoch FROM period_end)::bigint FROM billing.get_upcoming_invoice('$1')"
}
invoices() { # TENANT: the totals of its invoices, the oldest first
    sandbox GET "/v1/invoices?customer=$(customer "$1")&limit=100" | jq -r '[.data | reverse | .[].total] | join(" ")'
}
customer() { sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = '$1'"; }
invoiced() { # TENANT: the lines of the newest
    local invoice
    invoice=$(sandbox GET "/v1/invoices?customer=$(customer "$1")&limit=1" | jq -r '.data[0].id')
    sandbox GET "/v1/invoices/$invoice/lines?limit=100" | jq -r '.data[] |
        [.description, .quantity_decimal, .pricing.unit_amount_decimal, .amount, .period.start, .period.end] | @tsv'
}
# month_ends QUANTITY: uses so much in the last minutes of the period, notes what is told, and has Stripe bill it.
month_ends() {
    local end
    sql 'SELECT billing._advance_periods()' >/dev/null
    end=$(sql 'SELECT extract(epoch FROM max(current_period_end))::bigint FROM billing.subscriptions')
    clock_to $((end - 290))
    sql "SELECT FROM billing.subscriptions s, billing.record_usage(s.tenant_id, 'llm_tokens', $1)" >/dev/null
    for tenant in yearly moves; do upcoming $tenant >"$RUN/$tenant"; done
    sql 'SELECT billing.run_rollup()' >/dev/null
    sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
    clock_to $((end + 7200))
    sql 'SELECT billing.run_rollup()' >/dev/null
}
fetch() { # what a webhook would have the worker do
    sql "SELECT billing.receive_webhook(format('{\"id\": \"evt_%s_%s\", \"type\": \"customer.subscription.updated\", \"data\": {\"object\":
             {\"object\": \"subscription\", \"id\": \"%s\", \"customer\": \"%s\"}}}', s.id, extract(epoch FROM clock_timestamp()), s.stripe_subscription_id, c.stripe_customer_id))
           FROM billing.subscriptions s JOIN billing.billing_customers c USING (tenant_id)" >/dev/null
    sync_stripe
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
sql "DELETE FROM billing.price_tiers; DELETE FROM billing.plan_metrics; DELETE FROM billing.plans; DELETE FROM billing.metrics WHERE name <> 'llm_tokens';
     INSERT INTO billing.plans (name, display_name, price, fee_interval_months) VALUES ('team', 'Team', 9900, NULL), ('team_yearly', 'Team, yearly', 99000, 12);
     INSERT INTO billing.plan_metrics (plan, metric, allowance, cap) SELECT name, 'llm_tokens', 1000, 'none' FROM billing.plans;
     INSERT INTO billing.price_tiers SELECT name, 'llm_tokens', n, top, each FROM billing.plans, (VALUES (1, 1000, 0), (2, NULL, 0.5)) t (n, top, each)"
for tenant in yearly:team_yearly moves:team; do
    sql "SELECT billing.create_customer('${tenant%:*}', '$tenant', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK');
         SELECT billing.create_subscription('${tenant%:*}', '${tenant#*:}', 'send_invoice', 30)" >/dev/null
done
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"
is 'the first invoice is the year in advance' "$(invoices yearly) $(invoices moves)" '99000 9900'
is 'usage has periods of a month, the fee of a year' \
    "$(sandbox GET "/v1/subscriptions/$(sql "SELECT stripe_subscription_id FROM billing.subscriptions WHERE tenant_id = 'yearly'")" |
        jq -r '[.items.data[] | [.current_period_start, .current_period_end] | map(todate[:10]) | join("/")] | sort | join(" ")')" \
    '2030-01-31/2030-02-28 2030-01-31/2031-01-31'

month_ends 1500
is 'a month ends: its usage is billed, as told' "$(invoiced yearly)" "$(<"$RUN/yearly")"
is 'without a fee' "$(invoices yearly)" '99000 250'
is 'the quota begins anew' "$(sql "SELECT used FROM billing.check_quota('yearly', 'llm_tokens', 0)")" 0

# From monthly to yearly: what is left of the month is credited, the year that Stripe counts from its anchor's month charged.
sql "SELECT billing.update_subscription('moves', 'team_yearly')" >/dev/null
sync_until 'SELECT NOT bool_or(prices_due) FROM billing.subscriptions'
is 'who moves has a year from then on' "$(sql "SELECT fee_anchor FROM billing.subscriptions WHERE tenant_id = 'moves'")" '2030-02-28 08:00:00+00'
for n in 2 3 4 5 6 7 8 9 10 11; do month_ends 1000; done
is 'eleven months, one fee; the month of the move also has its credit and charge' "$(invoices yearly)" "99000 250 $(printf '0 %.0s' {2..11} | xargs)"
moved=$(invoices moves)
is 'of who has moved, too' "$(cut -d' ' -f1,2,4- <<<"$moved")" "9900 10150 $(printf '0 %.0s' {3..11} | xargs)"
is 'prorated by the second' "$(cut -d' ' -f3 <<<"$moved")" \
    "$(sql "SELECT round(99000 * f) - round(9900 * m) FROM (SELECT
         extract(epoch FROM timestamptz '2031-02-28 08:00+00' - c.at) / extract(epoch FROM timestamptz '2031-02-28 08:00+00' - '2030-02-28 08:00+00') AS f,
         extract(epoch FROM timestamptz '2030-03-31 08:00+00' - c.at) / extract(epoch FROM timestamptz '2030-03-31 08:00+00' - '2030-02-28 08:00+00') AS m
         FROM (SELECT to_timestamp($(sandbox GET "/v1/invoices?customer=$(customer moves)&limit=100" |
            jq '[.data[].lines.data[] | select(.parent.subscription_item_details.proration).period.start] | max')) AS at) c) x")"
month_ends 1500
is 'the year ends: usage and the next year, as told' "$(invoiced yearly)" "$(<"$RUN/yearly")"
is 'who moved pays usage alone yet' "$(invoiced moves)" "$(<"$RUN/moves")"
fetch
month_ends 1500
is 'and a month later the year, as told' "$(invoiced moves)" "$(<"$RUN/moves")"
is 'thirteen months' "$(invoices yearly | tr ' ' '\n' | tail -n 2 | xargs) $(invoices moves | tr ' ' '\n' | tail -n 2 | xargs)" '99250 250 250 99250'

# An end with the period is one with the month that the usage has, here and at Stripe, though the year goes on.
sql "SELECT billing.cancel_subscription('yearly')" >/dev/null
sync_until "SELECT stripe_cancels FROM billing.subscriptions WHERE tenant_id = 'yearly'"
is 'an end with the period is one with the month' \
    "$(sandbox GET "/v1/subscriptions/$(sql "SELECT stripe_subscription_id FROM billing.subscriptions WHERE tenant_id = 'yearly'")" | jq .cancel_at)" \
    "$(sql "SELECT extract(epoch FROM current_period_end)::bigint FROM billing.subscriptions WHERE tenant_id = 'yearly'")"
month_ends 1500
is 'the last invoice is its usage, as told' "$(invoiced yearly)" "$(<"$RUN/yearly")"
is 'then it has ended' "$(sql "SELECT status FROM billing.get_subscription('yearly', true)")" canceled
done_testing
