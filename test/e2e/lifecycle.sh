#!/usr/bin/env bash
# Upgrades, downgrades, cancellations and resumptions while Stripe refuses, fails, hangs and hangs up, and a worker is
# killed: at the end each wish has taken effect once, and what was used before is billed at the old prices.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/subscriptions.sh"

true_in_sql() { [ "$(sql "SELECT $1")" = t ]; }
# at_stripe TENANT FILTER: the tenant's subscription there.
at_stripe() { sandbox GET "/v1/subscriptions/$(stripe_id "$1")" | jq -r "$2"; }
PLAN='.items.data | map(.price.lookup_key) | map(select(test("_month$"))) | sort | .[0:1][] | split("_")[1]'
# preview TENANT FILTER: what the next invoice will bill.
preview() { sandbox POST /v1/invoices/create_preview -d "subscription=$(stripe_id "$1")" | jq -r "$2"; }
# keys TENANT METHOD: how many different requests Stripe got to change that subscription.
keys() {
    sandbox GET "/_sandbox/requests?path_prefix=/v1/subscriptions/$(stripe_id "$1")" |
        jq "[.[] | select(.method == \"$2\").idempotency_key] | unique | length"
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
# Two metrics, so that an invoice shows all its lines on the first page.
sql "DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'agent_executions');
     DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'agent_executions')"
sql "SELECT billing.create_customer(t, t, t || '@example.com'), billing.create_subscription(t, 'standard', 'send_invoice', 30)
       FROM unnest('{up,updown,ends,resumes,gone,gratis,atonce,credited}'::text[]) t" >/dev/null
ok 'eight subscriptions are made' sql "SELECT billing.run_stripe_sync('90 s')"
sql "SELECT billing.record_usage(t, 'llm_tokens', 1002000, 'before') FROM unnest('{up,gone}'::text[]) t" >/dev/null

# Hung first, so that a worker can be killed amid the wishes; then everything else that may go wrong.
fault '{"path_prefix": "/v1/subscriptions", "fault": "timeout", "effect": true, "times": 3}'
fault '{"method": "DELETE", "path_prefix": "/v1/subscriptions", "fault": "drop_after", "times": 1}'
for kind in '"429"' '"500"' '"500", "effect": true' '"drop_after"' '"drop_before"'; do
    fault "{\"path_prefix\": \"/v1/subscriptions\", \"fault\": $kind, \"times\": 2}"
done
sql "SELECT billing.update_subscription('up', 'enterprise');
     SELECT billing.update_subscription('updown', 'enterprise');
     SELECT billing.update_subscription('updown', 'free');
     SELECT billing.update_subscription('gratis', 'enterprise', 'none');
     SELECT billing.update_subscription('atonce', 'enterprise', 'always_invoice');
     SELECT billing.cancel_subscription('credited', false, prorate => true);
     SELECT billing.cancel_subscription('ends');
     SELECT billing.cancel_subscription('resumes');
     SELECT billing.cancel_subscription('gone', false)" >/dev/null
is 'quotas change at once' \
    "$(sql "SELECT string_agg((billing.check_quota(t, 'agent_executions')).quota::text, ' ')
              FROM unnest('{up,updown,ends}'::text[]) t")" '50000 100 5000'
is 'who has ended has none' "$(sql "SELECT reason FROM billing.check_quota('gone', 'llm_tokens')")" no_subscription
wait_until true_in_sql "EXISTS (SELECT FROM billing.stripe_outbox
    WHERE state = 'sending' AND kind IN ('subscription_update', 'subscription_cancel'))"
kill -9 "$(sql "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_billing stripe'")"
wait_until sql 'SELECT 1' >/dev/null
ok 'after the death of a worker all that was wished for is carried out' \
    wait_until -t 240 sql "SELECT billing.run_stripe_sync('120 s')"
is 'an end that was already asked for is taken back' \
    "$(sql "SELECT billing.resume_subscription('resumes')" >/dev/null; sql "SELECT billing.run_stripe_sync('120 s')" >/dev/null
       at_stripe resumes .cancel_at_period_end)" false
sandbox DELETE /_sandbox/faults >/dev/null

is 'nothing waits and nothing failed' "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE state <> 'delivered'")" 0
is 'Stripe bills the plans that were wished for' "$(for t in up updown ends resumes gratis; do at_stripe $t "$PLAN"; done | xargs)" \
    'enterprise free standard standard enterprise'
is 'and that is known here' "$(sql "SELECT string_agg(stripe_plan, ' ' ORDER BY array_position('{up,updown,ends,resumes,gratis}', tenant_id))
    FROM billing.subscriptions WHERE plan = stripe_plan AND status = 'active'")" 'enterprise free standard standard enterprise enterprise'
is 'each item was turned over, none added' "$(at_stripe up '.items.data | length')" 3
is 'one ends with its period, one does not' \
    "$(at_stripe ends .cancel_at_period_end) $(at_stripe resumes .cancel_at_period_end)" 'true false'
is 'the one that was to end at once has ended' "$(at_stripe gone .status)" canceled
is 'each wish was one request, however often it was sent' \
    "$(for t in up updown gratis ends; do keys $t POST; done | xargs) $(keys resumes POST)" '1 1 1 1 2'
# At Stripe each effect shows on an invoice, twice if it came about twice.
PRORATIONS='[.lines.data[] | select(.parent.subscription_item_details.proration).amount | if . < 0 then -1 else 1 end] | sort | tostring'
is 'an upgrade is prorated once: a credit and a charge' "$(preview up "$PRORATIONS")" '[-1,1]'
is 'a downgrade, too' "$(preview updown "$PRORATIONS")" '[-1,1]'
is 'and not at all if told so' "$(preview gratis "$PRORATIONS")" '[]'
# Whose clock took the change when may make a cent.
sql "SELECT billing.compare_upcoming_invoice(t) FROM unnest('{up,updown,gratis,atonce}'::text[]) t" >/dev/null
ok 'the upcoming invoices are compared with what Stripe previews' sql "SELECT billing.run_stripe_sync('60 s')"
is 'and told here line by line, with what a change of plan leaves' \
    "$(sql "SELECT tenant_id, ordinal, description, quantity, stripe_quantity, amount, stripe_amount, difference FROM billing.invoice_comparisons
             WHERE (quantity = stripe_quantity AND abs(amount - stripe_amount) <= 1) IS NOT TRUE ORDER BY 1, 2")" ''
is 'the used part at the price before among them' \
    "$(sql "SELECT string_agg(trim_scale(quantity) || ' for ' || amount, ', ' ORDER BY ordinal) FROM billing.invoice_comparisons
             WHERE tenant_id = 'up' AND metric = 'llm_tokens'")" '1000000 for 0, 2000 for 2, 0 for 0'
# In whole dollars, up: less than an hour of the month is over.
is 'it is billed at once if told so' \
    "$(sandbox GET "/v1/invoices?subscription=$(stripe_id atonce)" |
        jq -c '[.data[] | select(.billing_reason == "subscription_update") | .lines.data | map(.amount / 100 | if . < 0 then floor else ceil end) | sort]')" '[[-99,0,0,499]]'
is 'an end at once credits the rest of the fee if told so' \
    "$(sandbox GET "/v1/invoices?subscription=$(stripe_id credited)" |
        jq -c '[.data[] | select(.billing_reason == "subscription_cycle") | .lines.data | map(.amount / 100 | if . < 0 then floor else ceil end) | sort]')" '[[-99,0,0]]'
is 'what was used until the end is billed, once' \
    "$(sandbox GET "/v1/invoices?subscription=$(stripe_id gone)" | jq -c '[.data[] | select(.billing_reason == "subscription_cycle").total]')" '[2]'

# Usage of the hour in which the plan changed: before at the old price, after at the new one, nothing twice.
sql "SELECT billing.record_usage('up', 'llm_tokens', 500, 'after')" >/dev/null
sql 'SELECT billing.run_rollup()' >/dev/null
sql "SELECT billing.run_stripe_sync('90 s')" >/dev/null
is 'usage of before costs the old price, usage of after the new one' \
    "$(preview up '[.lines.data[] | select(.description | test("LLM")) | [.quantity_decimal, .amount]] | tostring')" \
    '[["1000000",0],["2000",2],["500",0]]'
is 'here all of it counts in the period' "$(sql "SELECT used, quota FROM billing.check_quota('up', 'llm_tokens', 0)")" '1002500|10000000'

## After the end another may begin
sql "SELECT billing.create_subscription('gone', 'free', 'send_invoice', 30)" >/dev/null
sql "SELECT billing.run_stripe_sync('90 s')" >/dev/null
is 'who has ended may come back' "$(sql "SELECT plan, status FROM billing.get_subscription('gone')")" 'free|active'
is 'with a subscription of its own at Stripe' \
    "$(sandbox GET '/v1/subscriptions?status=all&limit=100' | jq '.data | length')" 9
is 'every change is in the audit log, once' \
    "$(sql "SELECT string_agg(action || ' ' || n, ', ' ORDER BY action)
              FROM (SELECT action, count(*) n FROM billing.audit_log GROUP BY 1) a")" \
    'cancel_subscription 4, create_customer 8, create_subscription 9, resume_subscription 1, update_subscription 5'
done_testing
