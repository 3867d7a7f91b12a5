#!/usr/bin/env bash
# The upcoming invoice, told here minutes before the period ends, is line by line the one that Stripe writes then: every
# price model, in two currencies, and what credit pays of it. A change of plan is prorated as docs/pricing.md works it out.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
sql "INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name) VALUES
         ('renders', 'Renders', 'counter', 'minutes', 'sum', 9, 'renders'),
         ('exports', 'Exports', 'counter', 'exports', 'count', 0, 'exports'),
         ('at_once', 'Jobs at once', 'counter', 'jobs', 'max', 3, 'at_once');
     INSERT INTO billing.plans (name, display_name, price, currency) VALUES ('studio', 'Studio', 980.5, 'jpy');
     INSERT INTO billing.plan_metrics (plan, metric, cap, price_model, package_size, package_round) VALUES
         ('studio', 'llm_tokens', 'none', 'graduated', NULL, NULL), ('studio', 'api_calls', 'none', 'volume', NULL, NULL),
         ('studio', 'renders', 'none', 'graduated', NULL, NULL), ('studio', 'agent_executions', 'none', 'package', 1000, 'up'),
         ('studio', 'exports', 'none', 'package', 7, 'down'), ('studio', 'at_once', 'none', 'graduated', NULL, NULL);
     INSERT INTO billing.price_tiers VALUES
         ('studio', 'llm_tokens', 1, NULL, 0.000000000001, NULL),
         ('studio', 'api_calls', 1, 100, 2, 50), ('studio', 'api_calls', 2, 1000, 1.25, NULL), ('studio', 'api_calls', 3, NULL, 0.333, 25.5),
         ('studio', 'renders', 1, 10, 0, 100), ('studio', 'renders', 2, 20, 12.5, NULL), ('studio', 'renders', 3, NULL, 7.123456789012, 33.4),
         ('studio', 'agent_executions', 1, NULL, 300, NULL), ('studio', 'exports', 1, NULL, 11.5, NULL),
         ('studio', 'at_once', 1, 4, 0, NULL), ('studio', 'at_once', 2, NULL, 70.5, NULL)"
for tenant in studio-idle:studio studio-small:studio studio-large:studio standard-edge:standard standard-over:standard enterprise:enterprise varying:standard credited:standard changing:standard; do
    sql "SELECT billing.create_customer('${tenant%:*}', '$tenant', 'a@example.com', 'Asia/Tokyo', stripe_test_clock => '$STRIPE_CLOCK');
         SELECT billing.create_subscription('${tenant%:*}', '${tenant#*:}', 'send_invoice', 30)" >/dev/null
done
# docs/credits.md
sql "SELECT billing.grant_credit('credited', 2000, name => 'Prepaid'), billing.grant_credit('credited', 500, expires_at => '2030-03-10', name => 'Welcome'),
            billing.grant_credit('credited', 300, priority => 10, name => 'Support'),
            billing.grant_credit('credited', 600, priority => 0, metrics => '{user_seats}', name => 'Seats')" >/dev/null
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"
clock_to "$(date -u -d '2030-02-21 20:00' +%s)"
sql "SELECT billing.update_subscription('changing', 'enterprise')" >/dev/null
sync_until "SELECT stripe_plan = 'enterprise' FROM billing.subscriptions WHERE tenant_id = 'changing'"

period_end=$(sql 'SELECT extract(epoch FROM max(current_period_end))::bigint FROM billing.subscriptions')
clock_to $((period_end - 290))
# early in the period, and twice in its last hour: once to the second
sql "SELECT FROM (VALUES
         ('studio-small', 'api_calls', 100), ('studio-small', 'renders', 3.333333333), ('studio-small', 'llm_tokens', 499999999999),
         ('studio-small', 'agent_executions', 333), ('studio-small', 'exports', 1),
         ('studio-large', 'api_calls', 667), ('studio-large', 'renders', 7.000000001), ('studio-large', 'llm_tokens', 166666666667),
         ('studio-large', 'agent_executions', 334), ('studio-large', 'exports', 1), ('studio-large', 'at_once', 6.125),
         ('standard-edge', 'agent_executions', 1666), ('standard-edge', 'agent_executions', 1), ('standard-over', 'llm_tokens', 411522),
         ('standard-over', 'api_calls', 33335), ('enterprise', 'llm_tokens', 3333500)) u (tenant, metric, quantity),
     unnest(ARRAY[timestamptz 'epoch' + interval '$((period_end - 3600)) s',
                  timestamptz 'epoch' + interval '$((period_end - 1)) s', '2030-02-10 00:00+00']) at,
     billing.record_usage(u.tenant, u.metric, u.quantity, occurred_at => at)" >/dev/null
# Levels: constant from the start, and one that falls in mid-period
period_start=$(sql 'SELECT extract(epoch FROM min(current_period_start))::bigint FROM billing.subscriptions')
sql "SELECT FROM (VALUES
         ('standard-edge', 'storage_gb', 100, 0), ('standard-over', 'storage_gb', 150.123456789, 0), ('standard-over', 'user_seats', 31, 0),
         ('enterprise', 'storage_gb', 1000.000000001, 0), ('varying', 'storage_gb', 777.7, 0), ('varying', 'storage_gb', -333.3, 1000001),
         ('varying', 'user_seats', 40, 5000), ('varying', 'user_seats', -40, 5001)) u (tenant, metric, quantity, after),
     billing.record_usage(u.tenant, u.metric, u.quantity, occurred_at => timestamptz 'epoch' + make_interval(secs => $period_start + after));
     SELECT billing.record_usage('credited', metric, quantity)
       FROM (VALUES ('agent_executions', 5100), ('llm_tokens', 1234567), ('user_seats', 27)) u (metric, quantity)" >/dev/null
lines() {
    cluster_psql -F $'\t' -c "SELECT description, quantity, unit_amount, amount, extract(epoch FROM period_start)::bigint,
                                     extract(epoch FROM period_end)::bigint FROM billing.get_upcoming_invoice('$1')
                       WHERE kind <> 'credit'"
}
tenants=$(sql "SELECT tenant_id FROM billing.billing_customers WHERE tenant_id <> 'changing' ORDER BY 1")
credit=$(sql "SELECT metric, -amount, description FROM billing.get_upcoming_invoice('credited') WHERE kind = 'credit' ORDER BY 1, 2")
for tenant in $tenants; do
    lines "$tenant" >"$RUN/$tenant.upcoming"
done
sql 'SELECT billing.run_rollup()' >/dev/null
sync_until 'SELECT NOT EXISTS (SELECT FROM billing._stripe_due_hours())'
is 'the invoice with nothing rolled up is that with all rolled up' "$(lines studio-large)" "$(<"$RUN/studio-large.upcoming")"

# The period is over, and its invoice a draft: what it bills of levels is known now.
clock_to $((period_end + 600))
sync_stripe
cluster_psql -F $'\t' -c "SELECT r.quantity, r.amount FROM unnest('{storage_gb,user_seats}'::text[]) m,
    billing._plan_terms('standard') p, billing._rate(p.terms, billing.get_billable_usage('varying', m, 'previous')) r
    WHERE p.metric = m ORDER BY m, r.tier" >"$RUN/varying.rated"
clock_to $((period_end + 7200))
invoice_of() {
    local customer
    customer=$(sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = '$1'")
    sandbox GET "/v1/invoices?customer=$customer&limit=100" |
        jq -er '[.data[] | select(.billing_reason == "subscription_cycle" and (.status | . == "open" or . == "paid"))] | if length == 1 then .[0].id else error end'
}
for tenant in $tenants; do
    [ $tenant != varying ] || continue
    is "$tenant: as it was told, so Stripe bills it" "$(<"$RUN/$tenant.upcoming")" \
        "$(sandbox GET "/v1/invoices/$(invoice_of "$tenant")/lines?limit=100" | jq -r '.data[] |
            [.description, .quantity_decimal, .pricing.unit_amount_decimal, .amount, .period.start, .period.end] | @tsv')"
done
is 'levels that varied are billed by their average over time and their peak' "$(<"$RUN/varying.rated")" \
    "$(sandbox GET "/v1/invoices/$(invoice_of varying)/lines?limit=100" | jq -r '.data[] | select(.description | test("Storage|seats")) |
        [.quantity_decimal, .amount] | @tsv')"
spent() {
    sandbox GET "/v1/billing/credit_balance_transactions?customer=$(sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = 'credited'")&limit=100" |
        jq -r '.data[] | select(.type == "debit").debit | "\(.amount.monetary.value) \(.credits_applied.invoice_line_item)"' |
        while read -r amount line; do
            echo "$amount $(sandbox GET "/v1/invoices/$(invoice_of credited)/lines?limit=100" | jq -r --arg line "$line" '.data[] | select(.id == $line).description')"
        done | LC_ALL=C sort
}
is 'credit is what docs/credits.md says' "$credit" 'agent_executions|200|Prepaid
agent_executions|300|Support
agent_executions|500|Welcome
llm_tokens|235|Prepaid
user_seats|400|Prepaid
user_seats|600|Seats'
is 'so Stripe spends it' "$(spent)" '200 100 × Agent executions (Tier 2)
235 234567 × LLM tokens (Tier 2)
300 100 × Agent executions (Tier 2)
400 2 × User seats (Tier 2)
500 100 × Agent executions (Tier 2)
600 2 × User seats (Tier 2)'
is "and the invoice is the next month's fee" "$(sandbox GET "/v1/invoices/$(invoice_of credited)" | jq -c '[.subtotal, .total, .amount_due]')" '[12135,9900,9900]'
is 'a change of plan is prorated as docs/pricing.md works it out' \
    "$(sandbox GET "/v1/invoices/$(invoice_of changing)/lines?limit=100" | jq -c '[.data[] | select(.description | test("Standard|Enterprise")) | .amount]')" \
    '[-2298,11584,49900]'
is 'they are many lines' "$(cat "$RUN"/*.upcoming | wc -l)" 72

done_testing
