#!/usr/bin/env bash
# Whatever Stripe loses or gets wrong, and whatever is wrong here: a reconciliation finds exactly that, within its reads
# and across the death of a server; what can be mended is, and usage that came too late is billed once all the same.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

true_in_sql() { [ "$(sql "SELECT $1")" = t ]; }
sync() { sql "SELECT billing.run_stripe_sync('90 s')" >/dev/null; }
settings() { cluster_reload main "${STRIPE_SETTINGS[@]}" "${SETTINGS[@]}" "pg_billing.time_shift=$(sql 'SHOW pg_billing.time_shift')" "$@"; }
# reconcile [arguments of billing.reconcile]: to its end.
reconcile() {
    local what=${1:-"'current'"}
    sql "SELECT billing.reconcile($what)" >/dev/null
    sync
    true_in_sql "NOT EXISTS (SELECT FROM billing.reconciliations WHERE finished_at IS NULL)" || echo "# reconciliation not finished"
}
drift() {
    sql "SELECT string_agg(concat_ws(' ', tenant_id, metric, kind, to_char(hour AT TIME ZONE 'UTC', 'DD HH24'), ledger, aggregated, sent, stripe, invoiced),
                           ', ' ORDER BY tenant_id, metric, kind, hour)
           FROM billing.stripe_drift WHERE repaired_at IS NULL"
}
reads() { sandbox GET '/_sandbox/requests' | jq '[.[] | select(.method == "GET" and (.path | test("event_summaries$|^/v1/invoices$")))] | length'; }
# tamper TENANT METRIC HOUR [VALUE]: what Stripe has of an hour.
tamper() {
    sandbox POST /_sandbox/usage -d "{\"event_name\": \"$2\", \"customer\": \"$(sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = '$1'")\",
        \"timestamp\": $(date -u -d "$3" +%s)${4:+, \"value\": \"$4\"}}" >/dev/null
}
use() { sql "SELECT count(billing.record_usage('$1', '$2', $3, NULL, '$4'))" >/dev/null; }

SETTINGS=(pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600 pg_billing.stripe_timeout=2 pg_billing.reconcile_settle=0
    pg_billing.reconcile_reads=-1)
sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" "${SETTINGS[@]}"
sql "CREATE EXTENSION pg_billing; SELECT billing.install();
     DELETE FROM billing.price_tiers WHERE metric NOT IN ('llm_tokens', 'api_calls');
     DELETE FROM billing.plan_metrics WHERE metric NOT IN ('llm_tokens', 'api_calls')" >/dev/null
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
for tenant in acme bolt; do
    sql "SELECT billing.create_customer('$tenant', '$tenant', 'a@example.com', stripe_test_clock => '$STRIPE_CLOCK');
         SELECT billing.create_subscription('$tenant', 'standard', 'send_invoice', 30)" >/dev/null
done
sync_until "SELECT bool_and(status = 'active') FROM billing.subscriptions"
clock_to "$(date -u -d '2030-02-02 08:20' +%s)"
for tenant in acme bolt; do
    for hour in 09 12 15; do
        use $tenant llm_tokens 400000 "2030-02-01 $hour:10+00"
        use $tenant api_calls 7 "2030-02-01 $hour:10+00"
    done
done
sql 'SELECT billing.run_rollup()' >/dev/null
sync

## Found and mended
reconcile
is 'what is right is found right' "$(drift)" ''
is 'with one read for each tenant and metric' "$(reads)" 4
tamper acme llm_tokens '2030-02-01 12:00Z'
tamper acme llm_tokens '2030-02-01 15:00Z' 399999.5
tamper bolt llm_tokens '2030-02-01 11:00Z' 5
sql "SET session_replication_role = replica;
     UPDATE billing.usage_aggregates SET quantity = 9 WHERE (tenant_id, metric, hour) = ('bolt', 'api_calls', '2030-02-01 15:00+00');
     UPDATE billing.usage_quotas SET used = used + 100 WHERE (tenant_id, metric) = ('acme', 'api_calls')"
before=$(reads)
settings pg_billing.reconcile_reads=$((before + 3))
sql "SELECT billing.reconcile('current')" >/dev/null
sync
is 'no more is read in a day than is allowed' "$(($(reads) - before))" 3
is 'what it waits for is told' "$(sql 'SELECT phase, reads_left FROM billing.stat_progress_reconcile')" 'waiting for the allowance of reads|0'
# A worker dies amid a read that Stripe does not answer.
sandbox POST /_sandbox/faults -d '{"method": "GET", "path_prefix": "/v1/billing/meters", "fault": "timeout", "times": 1}' >/dev/null
settings
sql "SELECT billing._wake_worker('stripe')" >/dev/null
wait_until true_in_sql "EXISTS (SELECT FROM billing.stripe_outbox WHERE state = 'sending' AND kind = 'meter_summary')"
done_before=$(sql "SELECT count(*) FROM billing.reconcile_steps WHERE state = 'done'")
kill -9 "$(sql "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_billing stripe'")"
wait_until sql 'SELECT 1' >/dev/null
ok 'after the death of a worker it goes on' wait_until sql "SELECT billing.run_stripe_sync('90 s')"
ok 'to its end' wait_until true_in_sql "(SELECT bool_and(finished_at IS NOT NULL) FROM billing.reconciliations)"
is 'where it was' "$((done_before > 0))" 1
is 'it finds exactly what is wrong' "$(drift)" \
    'acme api_calls quota 21 121, acme llm_tokens stripe 01 12 400000 400000 0, acme llm_tokens stripe 01 15 400000 400000 399999.5, bolt api_calls aggregate 01 15 7 9, bolt llm_tokens stripe 01 11 0 5'
is 'four totals, one of which went unanswered, and the hours of two' "$(($(reads) - before))" 7
sql 'SELECT count(*) FROM billing.repair(dry_run => false)' >/dev/null
sync
is 'what was mended is sent' "$(sql 'SELECT count(*) FROM billing._stripe_due_hours()')" 0
reconcile "'current', by_hour => true"
is 'the second time all is right' "$(drift)" ''
is 'here, too' "$(sql "SELECT used FROM billing.check_quota('acme', 'api_calls')") $(sql "SELECT used FROM billing.check_quota('bolt', 'api_calls')")" '21 21'

## Lost for an invoice
period_end=$(sql "SELECT extract(epoch FROM current_period_end)::bigint FROM billing.subscriptions WHERE tenant_id = 'acme'")
clock_to $((period_end - 600))
sync
tamper acme llm_tokens '2030-02-01 12:00Z'
clock_to $((period_end + 7200))
sql 'SELECT billing.run_rollup()' >/dev/null
sync
reconcile "'previous'"
is 'an invoice that is final lacks usage' "$(drift)" \
    'acme llm_tokens invoice 1200000 1200000 800000, acme llm_tokens stripe 01 12 400000 400000 0'
is 'which is stated with its price' "$(sql "SELECT action FROM billing.repair() WHERE kind = 'invoice'")" \
    'the final invoice lacks 200 usd: late usage, ignore'
is 'invoices that no webhook told of are stored, with their lines' \
    "$(sql "SELECT string_agg(concat_ws(' ', l.metric, l.quantity), ', ' ORDER BY l.metric)
              FROM billing.get_invoices('acme', 1) i, billing.get_invoice_lines('acme', i.invoice) l")" 'api_calls 21, llm_tokens 800000, 1'
# A stored line that is lost is no drift: it is there when it is fetched.
sql "DELETE FROM billing.invoice_lines WHERE tenant_id = 'bolt' AND metric = 'api_calls'"
reconcile "'previous', 'bolt'"
is 'nor is a stored line that is lost' "$(sql "SELECT count(*) FROM billing.stripe_drift WHERE tenant_id = 'bolt' AND kind = 'invoice'")" 0

## Late, and billed all the same
customer() { sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = '$1'"; }
settings pg_billing.late_usage=invoice_item
sql 'SELECT count(*) FROM billing.repair(dry_run => false)' >/dev/null
sync
is 'what the invoice lacks is an item of the next one' \
    "$(sandbox GET "/v1/invoiceitems?customer=$(customer acme)" | jq -c '[.data[] | [.amount, .invoice]]')" '[[200,null]]'
settings pg_billing.late_usage=next_period
use bolt llm_tokens 1000000 '2030-02-20 10:10+00'
use bolt llm_tokens 5 "$(date -u -d @$((period_end + 60)) '+%F %T+00')"
sql 'SELECT billing.run_rollup()' >/dev/null
sync
is 'or carried by the next period' "$(sql 'SELECT tenant_id, quantity, policy FROM billing.late_usage ORDER BY 1')" \
    $'acme|400000|invoice_item\nbolt|1000000|next_period'
sql "SELECT billing.compare_upcoming_invoice(tenant_id) FROM billing.billing_customers" >/dev/null
sync
is 'Stripe previews what is told here' "$(sql 'SELECT tenant_id, stripe_amount, difference FROM billing.invoice_comparisons WHERE difference IS NOT NULL')" \
    'acme|200|an invoice item'
is 'line by line' "$(sql "SELECT quantity, stripe_quantity FROM billing.invoice_comparisons WHERE tenant_id = 'bolt' AND metric = 'llm_tokens' ORDER BY ordinal")" \
    $'1000000|1000000\n5|5'
next_end=$(sql "SELECT extract(epoch FROM current_period_end)::bigint FROM billing.subscriptions WHERE tenant_id = 'acme'")
clock_to $((next_end + 7200))
sql 'SELECT billing.run_rollup()' >/dev/null
sync
reconcile "'previous'"
reconcile "to_timestamp($period_end - 60)::text"
is 'then nothing is wrong any more, in neither period' "$(drift)" ''
is 'and nothing was billed twice' \
    "$(for tenant in acme bolt; do sandbox GET "/v1/invoices?customer=$(customer $tenant)&limit=1" | jq -c '[.data[0].lines.data[].amount] | sort'; done | xargs)" \
    '[0,0,200,9900] [0,0,0,9900]'
done_testing
