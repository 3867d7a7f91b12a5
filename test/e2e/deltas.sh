#!/usr/bin/env bash
# Usage sent as deltas to a meter that adds: whatever goes wrong, Stripe has what the ledger has, hour by hour.
source "$(dirname "$0")/../lib/e2e.sh"

fault() { sandbox POST /_sandbox/faults -d "{\"method\": \"POST\", \"path_prefix\": \"/v1/billing/meter_events\", $1}" >/dev/null; }
heal() { sandbox DELETE /_sandbox/faults >/dev/null; }
use() {
    sql "SELECT count(billing.record_usage(s.tenant_id, 'api_calls', $1)) FROM billing.subscriptions s; SELECT billing.run_rollup()" >/dev/null
}
at_stripe() { sandbox GET /_sandbox/state | jq -r '.meters.api_calls_delta.customers | to_entries[] | "\(.key) \(.value.total)"' | LC_ALL=C sort; }
in_ledger() {
    sql "SELECT c.stripe_customer_id || ' ' || trim_scale(sum(e.quantity)) FROM billing.usage_events e
           JOIN billing.billing_customers c USING (tenant_id) GROUP BY c.stripe_customer_id" | LC_ALL=C sort
}
agree() { is "$1" "$(at_stripe)" "$(in_ledger)"; }
survives() {
    use 10
    fault "$2"
    ok "$1 is survived" sql "SELECT billing.run_stripe_sync('60 s')"
    heal
    agree "$1: nothing is lost or double"
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
sql "UPDATE billing.metrics SET export = 'delta' WHERE name = 'api_calls';
     SELECT billing.create_customer(t, t, t || '@example.com'), billing.create_subscription(t, 'standard', 'send_invoice', 30)
       FROM unnest('{t1,t2}'::text[]) t" >/dev/null
ok 'subscriptions are made' sql "SELECT billing.run_stripe_sync('60 s')"
is 'the meter adds' "$(sandbox GET /v1/billing/meters | jq -c '.data[] | select(.event_name == "api_calls_delta") | [.default_aggregation.formula, .event_time_window]')" '["sum",null]'

survives 'a 429' '"fault": "429", "times": 2'
survives 'an error after the effect' '"fault": "500", "effect": true, "times": 2'
survives 'a connection that is reset after the effect' '"fault": "drop_after", "times": 2'
survives 'a connection that is reset before it' '"fault": "drop_before", "times": 2'
survives 'no answer in time, but the effect' '"fault": "timeout", "effect": true, "times": 1'

# in_doubt FAULT: an attempt whose answer was lost a day ago.
in_doubt() {
    use 3
    fault "$1"
    sql "SELECT billing._request_run('stripe', 30000)" >/dev/null
    heal
    sql "UPDATE billing.stripe_outbox SET sent_at = sent_at - interval '1 day', not_before = clock_timestamp() + interval '1 hour'
          WHERE state = 'waiting' AND kind = 'meter_event'"
    ok 'what was in doubt for a day is asked for' sql "SELECT billing.run_stripe_sync('60 s')"
    is 'not sent again' "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE kind = 'delta_find' AND state = 'delivered'")" "$2"
    agree 'and as it is'
}
in_doubt '"fault": "500", "effect": true, "retry_after": 3600, "times": 2' 2
in_doubt '"fault": "500", "retry_after": 3600, "times": 2' 4
is 'never were there two calls at once for one customer and meter' "$(sandbox GET /_sandbox/state | jq .overlapping_meter_calls)" 0
is 'nothing failed' "$(sql 'SELECT count(*) FROM billing.stripe_dead_letter')" 0

done_testing
