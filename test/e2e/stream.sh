#!/usr/bin/env bash
# Usage sent through Stripe's event stream, many customers' hours in a request: whatever goes wrong with requests or
# sessions, Stripe has what the ledger has.
source "$(dirname "$0")/../lib/e2e.sh"

fault() { sandbox POST /_sandbox/faults -d "{\"method\": \"POST\", \"path_prefix\": \"/v2/billing/meter_event_$1\", $2}" >/dev/null; }
heal() { sandbox DELETE /_sandbox/faults >/dev/null; }
expire() { sandbox POST /_sandbox/expire_sessions -d '{}' >/dev/null; }
use() {
    sql "SELECT count(billing.record_usage(s.tenant_id, 'api_calls', $1)) FROM billing.subscriptions s; SELECT billing.run_rollup()" >/dev/null
}
at_stripe() { sandbox GET /_sandbox/state | jq -r '.meters.api_calls_delta.customers | to_entries[] | "\(.key) \(.value.total)"' | LC_ALL=C sort; }
in_ledger() {
    sql "SELECT c.stripe_customer_id || ' ' || trim_scale(sum(e.quantity)) FROM billing.usage_events e
           JOIN billing.billing_customers c USING (tenant_id) GROUP BY c.stripe_customer_id" | LC_ALL=C sort
}
agree() { is "$1" "$(at_stripe)" "$(in_ledger)"; }
sync() { ok "$1" sql "SELECT billing.run_stripe_sync('60 s')"; }
# log FILTER: of the requests to the stream that Stripe has received.
log() { sandbox GET '/_sandbox/requests?path_prefix=/v2/billing/meter_event_stream' | jq -c "$1"; }
sessions() { sandbox GET '/_sandbox/requests?path_prefix=/v2/billing/meter_event_session' | jq length; }
survives() {
    use 10
    fault "$2" "$3"
    sync "$1 is survived"
    heal
    agree "$1: nothing is lost or double"
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
sql "UPDATE billing.metrics SET export = 'delta_stream' WHERE name = 'api_calls';
     SELECT billing.create_customer(t, t, t || '@example.com'), billing.create_subscription(t, 'standard', 'send_invoice', 30)
       FROM unnest('{t1,t2,t3}'::text[]) t" >/dev/null
sync 'subscriptions are made'
use 7
sync 'usage is sent'
agree 'and arrives'
is 'in one request' "$(log '[.[].params.events | length]')" '[3]'
is 'without an idempotency key, to the host of the stream' "$(log '[.[] | [.idempotency_key, .host]]')" "[[\"\",\"localhost:${SANDBOX_URL##*:}\"]]"
is 'the rows are its events' "$(log '[.[0].params.events[].identifier] | sort')" \
    "$(sql "SELECT jsonb_agg(idempotency_key ORDER BY idempotency_key COLLATE \"C\") FROM billing.stripe_outbox WHERE kind = 'meter_event'" | jq -c .)"
is 'a run has one session' "$(sessions)" 1

survives 'a 429' stream '"fault": "429", "times": 2'
survives 'an error after the effect' stream '"fault": "500", "effect": true, "times": 2'
survives 'a connection that is reset after the effect' stream '"fault": "drop_after", "times": 2'
survives 'a connection that is reset before it' stream '"fault": "drop_before", "times": 2'
survives 'no answer in time, but the effect' stream '"fault": "timeout", "effect": true, "times": 1'
survives 'no session' session '"fault": "500", "times": 1'
survives 'no answer for a session' session '"fault": "drop_after", "times": 1'

# A token that Stripe does not accept any more: the same events, with the same identifiers, under another one, in the same
# run, which a slow request keeps going.
use 4
before=$(sessions)
cluster_reload main pg_billing.stripe_timeout=30
sandbox POST /_sandbox/expire_sessions -d '{"next": 1}' >/dev/null
sandbox POST /_sandbox/faults -d '{"method": "POST", "path_prefix": "/v1/customers", "fault": "slow", "delay_ms": 4000, "times": 1}' >/dev/null
# another one before it, for until the first is answered nothing else goes to that host
sql "UPDATE billing.plans SET display_name = 'Gratis' WHERE name = 'free'; SELECT billing.create_customer('t4', 'T4', 't4@example.com')" >/dev/null
sync 'a session that has ended is survived'
cluster_reload main pg_billing.stripe_timeout=2
is 'by another one' "$(($(sessions) - before))" 2
is 'the refused events are sent again as they were' "$(log '[.[-2:][].params] | unique | length')" 1
is 'the ended session is not tried a second time' "$(log '[.[].status | select(. == 401)]')" '[401]'
agree 'a session that has ended: nothing is lost or double'

# A request that is refused for good: its events go alone, so that one event's fault is that one's alone.
use 5
before=$(log length)
fault stream '"fault": "500", "should_retry": false, "times": 2'
sync 'a refusal is no failure of the run'
is 'the events are sent alone' "$(log ".[$before:] | [.[].params.events | length]")" '[3,1,1,1]'
is 'and one of them is in the dead letter' "$(sql 'SELECT count(*), min(kind) FROM billing.stripe_dead_letter')" '1|meter_event'
sql 'SELECT billing.retry_failed()' >/dev/null
sql "UPDATE billing.stripe_outbox SET not_before = '-infinity' WHERE kind = 'delta_find' AND state = 'waiting'"
sync 'it is looked up'
agree 'and sent'

# in_doubt FAULT: an attempt whose answer was lost a day ago.
in_doubt() {
    use 3
    fault stream "$1"
    sql "SELECT billing._request_run('stripe', 30000)" >/dev/null
    heal
    sql "UPDATE billing.stripe_outbox SET sent_at = sent_at - interval '1 day', not_before = clock_timestamp() + interval '1 hour'
          WHERE state = 'waiting' AND kind = 'meter_event'"
    before=$(log length)
    sync 'what was in doubt for a day is asked for'
    is "and sent again only if it is not there" "$(($(log length) - before))" "$2"
    agree 'and as it is'
}
in_doubt '"fault": "500", "effect": true, "retry_after": 3600, "times": 1' 0
in_doubt '"fault": "500", "retry_after": 3600, "times": 1' 1

# The server dies while events are under way, before and after they take effect.
for effect in false true; do
    use 6
    before=$(log length)
    fault stream "\"fault\": \"timeout\", \"effect\": $effect, \"times\": 1"
    cluster_reload main pg_billing.stripe_timeout=60
    sql "SELECT billing._wake_worker('stripe')" >/dev/null
    under_way() { [ "$(log length)" -gt "$before" ]; }
    wait_until under_way
    cluster_crash main
    cluster_up main
    heal
    cluster_reload main pg_billing.stripe_timeout=2
    sync 'a crash is survived'
    agree "a crash (effect: $effect): nothing is lost or double"
done

is 'the token is in no table' "$(pg_dump --data-only --schema=billing | grep -c mes_token)" 0
is 'nor in the log' "$(grep -c mes_token "$(cluster_log)")" 0
is 'never were there two events at once for one customer and meter' \
    "$(log '[.[].params.events | group_by(.payload.stripe_customer_id)[] | length] | max')" 1
is 'nothing failed' "$(sql 'SELECT count(*) FROM billing.stripe_dead_letter')" 0

# Reconciliation finds nothing to complain of.
done_testing
