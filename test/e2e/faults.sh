#!/usr/bin/env bash
# Whatever goes wrong at Stripe: afterwards it has what the ledger has, hour by hour, and nothing was carried out twice.
# (Certificates, and Stripes that hang while servers crash: worker.sh, crash.sh.)
source "$(dirname "$0")/../lib/e2e.sh"

mark() { MARK=$(($(wc -l <"$(cluster_log)") + 1)); }
logged() { tail -n "+$MARK" "$(cluster_log)" | grep -qE "$1"; }
true_in_sql() { [ "$(sql "SELECT $1")" = t ]; }

# fault JSON-MEMBERS…: of meter events, unless they name another path.
fault() { sandbox POST /_sandbox/faults -d "{\"method\": \"POST\", \"path_prefix\": \"/v1/billing/meter_events\", $1}" >/dev/null; }
heal() { sandbox DELETE /_sandbox/faults >/dev/null; }
sync() { sql "SELECT billing.run_stripe_sync('${1:-60 s}')"; }

# use N: that much more usage of every tenant, rolled up.
use() {
    sql "SELECT count(billing.record_usage(c.tenant_id, 'llm_tokens', $1)) FROM billing.subscriptions c;
         SELECT billing.run_rollup()" >/dev/null
}
at_stripe() {
    sandbox GET /_sandbox/state | jq -r '.meters | to_entries[] | .key as $m | .value.customers // {} | to_entries[] |
        .key as $c | .value.hours | to_entries[] | "\($m) \($c) \(.key) \(.value)"' | LC_ALL=C sort
}
in_ledger() {
    sql "SELECT e.metric || ' ' || c.stripe_customer_id || ' '
             || to_char(date_trunc('hour', e.occurred_at, 'UTC') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00:00\"Z\"')
             || ' ' || trim_scale(sum(e.quantity))
           FROM billing.usage_events e JOIN billing.billing_customers c USING (tenant_id)
          GROUP BY e.metric, c.stripe_customer_id, date_trunc('hour', e.occurred_at, 'UTC')" | LC_ALL=C sort
}
# How often an object, or a total that differs from the one before, was made: a call repeated with an effect shows here.
objects() { sandbox GET /_sandbox/state | jq -c '.counts | {customer, subscription, product, price, "billing.meter"}'; }
# agree WHAT: Stripe has what the ledger has, nothing waits, nothing failed, and no object was made again.
agree() {
    is "$1: Stripe has what the ledger has" "$(at_stripe)" "$(in_ledger)"
    is 'nothing waits, nothing is in the dead letter, no object is double' \
        "$(sql 'SELECT (SELECT count(*) FROM billing.stripe_waiting), (SELECT count(*) FROM billing.stripe_dead_letter)') $(objects)" "0|0 $OBJECTS"
}
# survives WHAT JSON-MEMBERS: meter events meet a fault, and the same run gets over it.
survives() {
    use 10
    fault "$2"
    ok "$1 is survived" sync
    heal
    agree "$1"
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.stripe_concurrency=2 \
    pg_billing.rollup_interval=3600
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
for tenant in t1 t2 t3; do
    sql "SELECT billing.create_customer('$tenant', '$tenant', '$tenant@example.com');
         SELECT billing.create_subscription('$tenant', 'standard', 'send_invoice', 30)" >/dev/null
done
sync >/dev/null
OBJECTS=$(objects)

## Faults that pass
survives '429 with Retry-After' '"fault": "429", "retry_after": 1, "times": 2'
survives '429 without' '"fault": "429", "times": 4'
survives 'a conflict' '"fault": "409", "times": 2'
survives 'an error of Stripe' '"fault": "500", "times": 2'
survives 'an error after the effect' '"fault": "500", "effect": true, "times": 2'
survives 'no answer in time' '"fault": "timeout", "times": 1'
survives 'no answer in time, but the effect' '"fault": "timeout", "effect": true, "times": 1'
survives 'a connection that is reset before the effect' '"fault": "drop_before", "times": 2'
survives 'one that is reset after it' '"fault": "drop_after", "times": 2'

## What Stripe remembers
# Attempts are made due at once, again and again, instead of waiting out what is between them.
hasten() {
    # two transactions: what one has locked, the worker passes over
    sql "UPDATE billing.stripe_outbox SET not_before = clock_timestamp() WHERE state = 'waiting'"
    sql "SELECT billing._request_run('stripe', 10000)" >/dev/null
    true_in_sql "NOT EXISTS (SELECT FROM billing.stripe_waiting)"
}
# An event that arrived under a key that Stripe has forgotten: its identifier is known all the same.
use 10
fault '"fault": "429", "retry_after": 3600, "times": 3'
sql "SELECT billing._request_run('stripe', 30000)" >/dev/null
IFS='|' read -r identifier timestamp customer value <<<"$(sql "SELECT params ->> 'identifier', params ->> 'timestamp',
    params #>> '{payload,stripe_customer_id}', params #>> '{payload,value}' FROM billing.stripe_outbox WHERE state = 'waiting' LIMIT 1")"
sandbox POST /v1/billing/meter_events -d event_name=llm_tokens -d "identifier=$identifier" -d "timestamp=$timestamp" \
    -d "payload[stripe_customer_id]=$customer" -d "payload[value]=$value" >/dev/null
ok 'an identifier that Stripe knows is got over' wait_until hasten
is 'as delivered' "$(sql "SELECT state, http_status FROM billing.stripe_outbox WHERE idempotency_key = '$identifier'")" 'delivered|400'
agree 'a duplicate identifier'

use 10
fault '"fault": "500", "stored": true, "times": 1'
ok 'a remembered error is got over by another request' wait_until hasten
agree 'a remembered error'
is 'which has another key' \
    "$(sql "SELECT count(*), count(DISTINCT idempotency_key) FROM billing.stripe_outbox WHERE retried_at IS NOT NULL")" '1|1'
# The customer was made although Stripe answered, and remembers, an error: it is found, not made again.
sql "SELECT billing.create_customer('t4', 't4', 't4@example.com')" >/dev/null
fault '"fault": "500", "effect": true, "stored": true, "path_prefix": "/v1/customers"'
ok 'a customer made in spite of an error' wait_until hasten
OBJECTS=$(jq -c '.customer += 1' <<<"$OBJECTS")
agree 'which was made once'

## What Stripe refuses for good
# refused ERROR: usage ends in the dead letter for that reason, and stays there until retry_failed().
refused() {
    use 10
    sync >/dev/null 2>&1
    like "$2 is refused" "$(sql "SELECT error FROM billing.stripe_dead_letter LIMIT 1")" "$1"
    like 'with a hint' "$(sql "SELECT hint FROM billing.stripe_dead_letter LIMIT 1")" "$3"
    use 5
    sync >/dev/null 2>&1
}
gone=$(sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = 't1'")
sql "UPDATE billing.billing_customers SET stripe_customer_id = 'cus_gone' WHERE tenant_id = 't1'"
refused 'resource_missing' 'a customer that Stripe does not have' 'Restore at Stripe'
is 'the others go on' "$(sql "SELECT count(*) FROM billing.usage_aggregates WHERE submitted IS DISTINCT FROM quantity")" 1
sql "UPDATE billing.billing_customers SET stripe_customer_id = '$gone' WHERE tenant_id = 't1'"
is 'mended, it is retried' "$(sql "SELECT billing.retry_failed()")" 1
ok 'and delivered' sync
agree 'a customer that was missing'
meter=$(sql "SELECT stripe_meter_id FROM billing.metrics WHERE name = 'llm_tokens'")
sandbox POST "/v1/billing/meters/$meter/deactivate" >/dev/null
refused 'archived_meter' 'usage of an archived meter' 'Reactivate'
is 'once per tenant' "$(sql "SELECT count(*) FROM billing.stripe_dead_letter")" 3
sandbox POST "/v1/billing/meters/$meter/reactivate" >/dev/null
is 'reactivated, all are retried' "$(sql "SELECT billing.retry_failed('meter_event')")" 3
ok 'and delivered' sync
agree 'a meter that was archived'

## A key that Stripe does not accept
key=$RUN/stripe.key
rekey() { sql "COPY (SELECT '$1') TO PROGRAM 'cat >$key'"; }
for wrong in sk_test_invalid rk_test_readonly; do
    use 10
    rekey "$wrong"
    like "$wrong pauses submission, which says so" "$(sync 2>&1)" 'submission to Stripe is paused: .*HTTP 40[13]'
    rekey sk_test_pg_billing
    like 'also when it is mended' "$(sync 2>&1)" 'UB061|is paused'
    sql 'SELECT billing.resume_stripe()'
    ok 'until it is resumed' sync
    agree "$wrong"
done

## A key of the other mode, where nothing of ours exists
use 10
calls() { sandbox GET /_sandbox/requests | jq length; }
before=$(calls)
rekey sk_live_pg_billing
like 'a key of live mode pauses submission, which says how to go on' "$(sync 2>&1)" 'put a key for test mode back and run billing.resume_stripe'
sql 'SELECT billing.resume_stripe()'
like 'and again, as long as it is there' "$(sync 2>&1)" 'the API key is for live mode'
is 'nothing is asked with it' "$(calls)" "$before"
rekey sk_test_pg_billing
sql 'SELECT billing.resume_stripe()'
ok 'put back, submission is resumed' sync
agree 'a key of the other mode'

## A Stripe that is not there
mark
cluster_reload main pg_billing.stripe_api_base=https://stripe.invalid
use 10
sql "SELECT billing._wake_worker('stripe')" >/dev/null
ok 'a name that nobody knows is said to be the trouble' wait_until logged 'cannot reach Stripe.*stripe.invalid'
ok 'and seen by operators' wait_until true_in_sql "(SELECT failed_runs > 0 AND next_run_at > clock_timestamp() FROM billing.stat_workers WHERE job = 'stripe')"
cluster_reload main "${STRIPE_SETTINGS[@]}"
ok 'found again, usage is delivered' sync
agree 'a name that nobody knew'

# Many requests are due, and Stripe fails them all: a few find out for all, then one at a time, later and later.
fault '"fault": "500", "path_prefix": "/v1/customers", "times": -1'
before=$(calls)
mark
sql "SELECT count(billing.create_customer('many' || i, 'Many', 'many@example.com')) FROM generate_series(1, 40) i;
     SELECT billing._wake_worker('stripe')" >/dev/null
ok 'the run is given up' wait_until logged 'cannot reach Stripe.*HTTP 500'
is 'after eight requests, and what else was under way' "$(($(calls) - before <= 9))" 1
before=$(calls)
mark
ok 'and the next one, too' wait_until logged 'cannot reach Stripe.*HTTP 500'
is 'after one' "$(($(calls) - before))" 1
before=$(calls)
cluster_reload main pg_billing.stripe_rate=10    # before the run that finds Stripe well: it is that one's rate
heal
ok 'when that is answered all go' sync
is 'no faster than they may' "$(sandbox GET '/_sandbox/requests' | jq ".[$before:] | group_by(.at) | map(length) | max <= 13")" true
OBJECTS=$(jq -c '.customer += 40' <<<"$OBJECTS")
agree 'an outage'
is 'never were there two calls at once for one customer and meter' "$(sandbox GET /_sandbox/state | jq .overlapping_meter_calls)" 0

done_testing
