#!/usr/bin/env bash
# Usage billed by invoice items (metrics.export = invoice_items): whatever goes wrong, all of it is on the invoice that ends
# the period, once, at what get_upcoming_invoice() told, or, after an end with the period, on an invoice of its own.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql "CREATE EXTENSION pg_billing; SELECT billing.install(); UPDATE billing.metrics SET export = 'invoice_items'" >/dev/null
shim_start
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK'), billing.create_subscription(t, 'standard', 'send_invoice', 30)
       FROM unnest('{stays,ends,grows}'::text[]) t" >/dev/null
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"
is 'Stripe meters nothing' "$(sandbox GET /v1/billing/meters | jq -c '[.data[].event_name]')" '[]'

use() { sql "SELECT FROM unnest('{stays,ends,grows}'::text[]) t, unnest('{api_calls,agent_executions,user_seats,storage_gb,llm_tokens}'::text[], '{${1}000,${1}00,$1,$1,${1}00000}'::numeric[]) u (m, q), billing.record_usage(t, m, q)" >/dev/null; }
use 150
clock_to "$(date -u -d '2030-02-14 08:20' +%s)"
use 70
sql "SELECT billing.update_subscription('grows', 'enterprise'), billing.cancel_subscription('ends')" >/dev/null
sandbox POST /_sandbox/faults -d '{"method": "POST", "path_prefix": "/v1/invoiceitems", "fault": "500", "effect": true, "times": 2}' >/dev/null
sync_until "SELECT bool_and(stripe_plan = plan AND stripe_cancels = cancel_at_period_end) FROM billing.subscriptions"
use 20

period_end=$(sql 'SELECT extract(epoch FROM max(current_period_end))::bigint FROM billing.subscriptions')
# What the usage comes to just before the period's end, metric by metric, where that is anything.
told() { sql "SET pg_billing.time_shift = $((period_end - 2 - $(date +%s))); SELECT string_agg(metric || ' ' || amount, ', ' ORDER BY metric) FROM (SELECT metric, sum(amount) AS amount FROM billing.get_upcoming_invoice('$1') WHERE metric IS NOT NULL GROUP BY 1 HAVING sum(amount) <> 0) i"; }
stays=$(told stays) ends=$(told ends) grows=$(told grows)
clock_to $((period_end + 600))
sync_until "SELECT count(*) = 2 FROM billing.invoices WHERE status = 'draft' AND created_at > '2030-02-20'"
is 'nothing is billed before the draft is known' "$(sql "SELECT count(*) FROM billing.late_usage WHERE period_end >= '2030-02-28'")" 0
clock_to $((period_end + 1900))
for fault in '"fault": "drop_after", "times": 2' '"fault": "429", "times": 2'; do
    sandbox POST /_sandbox/faults -d "{\"method\": \"POST\", \"path_prefix\": \"/v1/invoiceitems\", $fault}" >/dev/null
done
sync_until "SELECT bool_and(billed_at IS NOT NULL AND NOT unattached) AND count(*) > 9 FROM billing.late_usage"
clock_to $((period_end + 7200))
sync_until "SELECT bool_and(finalized_at IS NOT NULL) FROM billing.invoices"
billed() { sql "SELECT string_agg(metric || ' ' || amount, ', ' ORDER BY metric) FROM (SELECT metric, sum(amount) AS amount FROM billing.invoices i JOIN billing.invoice_lines l USING (tenant_id, stripe_invoice_id) WHERE tenant_id = '$1' AND metric IS NOT NULL GROUP BY 1) x"; }
is 'the invoice is as was told' "$(billed stays)" "$stays"
is 'so is what the old plan and the new one bill' "$(billed grows)" "$grows"
is 'and what is billed after the end' "$(billed ends)" "$ends"
is 'which has an invoice of its own' "$(sql "SELECT string_agg(coalesce(stripe_subscription_id <> '', false)::text || ' ' || billing_reason, ', ' ORDER BY created_at) FROM billing.invoices WHERE tenant_id = 'ends' AND created_at > '2030-02-20'")" 'false manual'
is 'no item twice' "$(sandbox GET '/v1/invoiceitems?limit=100' | jq '[.data[].metadata.late_usage_id] | length == (unique | length)')" true
is 'nothing failed' "$(sql 'SELECT count(*) FROM billing.stripe_dead_letter')" 0

# late usage after the invoice is final: on the next one
sql "SELECT FROM billing.record_usage('stays', 'api_calls', 5000, NULL, timestamptz 'epoch' + interval '$((period_end - 60)) s'); SELECT billing.run_rollup()" >/dev/null
sync_until "SELECT count(*) = 1 FROM billing.late_usage WHERE tenant_id = 'stays' AND quantity = 5000 AND billed_at IS NOT NULL"
is 'what comes late waits for the next invoice' "$(sandbox GET '/v1/invoiceitems?pending=true' | jq -r '.data[].description')" "5000 × API calls, used until $(date -u -d @$period_end +%F)"
done_testing
