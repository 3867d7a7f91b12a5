#!/usr/bin/env bash
# What comes from Stripe on its own: reports of usage it could not count, events that never arrived, the end of a customer,
# secrets that are rolled, events of the other mode.
source "$(dirname "$0")/../lib/e2e.sh"

true_in_sql() { [ "$(sql "SELECT $1")" = t ]; }
sync() { sql "SELECT billing.run_stripe_sync('60 s')" >/dev/null; }
# settled WHAT: has the worker go on until that holds.
settled() { sync && true_in_sql "$1"; }
control() { sandbox POST "/_sandbox/$1" -d "$2"; }
use() { sql "SELECT billing.record_usage(c.tenant_id, 'llm_tokens', 10) FROM billing.subscriptions c; SELECT billing.run_rollup()" >/dev/null; }
at_stripe() { sandbox GET /_sandbox/state | jq -c '[.meters.llm_tokens.customers[].total] | sort'; }
HOURS="(SELECT string_agg(concat(coalesce(submitted::text, '-'), CASE WHEN blocked THEN ' blocked' END), ',' ORDER BY submitted NULLS FIRST, blocked)
          FROM billing.usage_aggregates WHERE metric = 'llm_tokens')"
stripe_id() { sql "SELECT stripe_subscription_id FROM billing.subscriptions WHERE tenant_id = '$1' ORDER BY id DESC LIMIT 1"; }

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600
sql 'CREATE EXTENSION pg_billing; SELECT billing.install(); CREATE ROLE shim LOGIN IN ROLE billing_app' >/dev/null
sql "SELECT billing.create_customer(t, t, t || '@example.com'), billing.create_subscription(t, 'standard', 'send_invoice', 30)
       FROM unnest('{t1,t2,t3}'::text[]) t" >/dev/null
THIN=$RUN/thin.secret
echo whsec_nothing_yet >"$THIN"
PGUSER=shim shim_start --webhook-secret-file "$THIN"
wait_until curl -sf "$SHIM_URL/readyz"
HOOK=$SHIM_URL/api/billing/webhooks/stripe
destination=$(sandbox POST /v2/core/event_destinations -H 'Content-Type: application/json' -d "{\"name\": \"thin\", \"type\": \"webhook_endpoint\",
    \"event_payload\": \"thin\", \"enabled_events\": [\"v1.billing.meter.error_report_triggered\", \"v1.billing.meter.no_meter_found\", \"v1.invoice.created\"],
    \"webhook_endpoint\": {\"url\": \"$HOOK\"}, \"include\": [\"webhook_endpoint.signing_secret\"]}")
jq -er .webhook_endpoint.signing_secret <<<"$destination" >"$THIN"
kill -HUP "$(service_pid shim)"
sync
ok 'thin and whole events of three subscriptions arrive, each endpoint with a secret of its own' wait_until settled \
    "(SELECT count(*) FILTER (WHERE type = 'v1.invoice.created') = 3 AND count(*) FILTER (WHERE type = 'invoice.created') = 3
         AND bool_and(outcome IS NOT NULL) AND bool_or(outcome = 'kept') FROM billing.webhook_events)"
is 'and are processed' "$(sql "SELECT string_agg(DISTINCT outcome, ',' ORDER BY outcome) FROM billing.webhook_events")" 'applied,kept'

## Usage that Stripe could not count
control uncounted '{"code": "meter_event_customer_not_found", "times": 3, "samples": 2}' >/dev/null
use
sync
ok 'a report of usage that was not counted is fetched' wait_until settled 'EXISTS (SELECT FROM billing.stripe_meter_errors)'
is 'it says how many, and names fewer' \
    "$(sql "SELECT code, errors, samples, refused, meter_id IS NOT NULL FROM billing.stripe_meter_errors")" \
    'meter_event_customer_not_found|3|2|2|t'
is 'the hours it names are not submitted, and wait' "$(sql "SELECT $HOURS")" '- blocked,- blocked,10'
is 'for what the dead letter tells' \
    "$(sql "SELECT DISTINCT kind, error, hint FROM billing.stripe_dead_letter")" \
    'meter_event|accepted, but not counted: meter_event_customer_not_found: Not counted (on demand).|Stripe has no such customer: put the id of the one it has into billing.billing_customers.'
ok 'that more were not counted than are named is in the log' \
    wait_until grep -q 'did not count 3 meter events (meter_event_customer_not_found), and names 2 of them' "$(cluster_log)"
is 'those can be sent again' "$(sql "SELECT billing.retry_failed()")" 2
sync
is 'and are counted' "$(at_stripe) $(sql "SELECT $HOURS")" '["10","10"] 10,10,10'
control uncounted '{"code": "no_meter", "times": 1, "name": "idempotency_key"}' >/dev/null
use
sync
ok 'an event for which there was no meter is found by its key' wait_until settled \
    "EXISTS (SELECT FROM billing.stripe_meter_errors WHERE code = 'no_meter' AND refused = 1 AND meter_id IS NULL)"
sql "SELECT billing.retry_failed('meter_event')" >/dev/null
sync
is 'and sent again' "$(at_stripe)" '["20","20","20"]'

## Events that never arrived
service_stop shim
sandbox POST "/v1/subscriptions/$(stripe_id t1)" -d cancel_at_period_end=true >/dev/null
sandbox POST /v1/products/pgb_plan_free -d name=Renamed >/dev/null
control uncounted '{"code": "timestamp_in_future", "times": 1}' >/dev/null
use
sync
is 'nobody tells of what changed meanwhile' "$(sql "SELECT cancel_at_period_end FROM billing.subscriptions WHERE tenant_id = 't1'")" f
asked() { sandbox GET '/_sandbox/requests?path_prefix=/v1/events' | jq length; }
before=$(asked)
cluster_reload main pg_billing.missed_events_interval=1
ok 'until Stripe is asked for what it could not deliver' wait_until settled \
    "(SELECT cancel_at_period_end FROM billing.subscriptions WHERE tenant_id = 't1') AND EXISTS (SELECT FROM billing.catalog_drift)"
ok 'also for what comes thin only' wait_until settled "EXISTS (SELECT FROM billing.stripe_meter_errors WHERE code = 'timestamp_in_future')"
cluster_reload main pg_billing.missed_events_interval=-1
is 'what was fetched says so' \
    "$(sql "SELECT string_agg(DISTINCT concat_ws(' ', type, origin, outcome), ',') FROM billing.webhook_events WHERE origin = 'fetched' AND type LIKE 'customer.sub%'")" \
    'customer.subscription.updated fetched applied'
ok 'three requests each time' [ $((($(asked) - before) % 3)) = 0 ]
is 'each for twenty types at most' \
    "$(sandbox GET '/_sandbox/requests?path_prefix=/v1/events' | jq '[.[].params.types | length] | max <= 20')" true
PORT=${SHIM_URL##*:}
service_start shim "$BUILD/cmake/pg_billing_shim" --listen "127.0.0.1:$PORT" --webhook-secret-file "$RUN/webhook.secret" \
    --webhook-secret-file "$THIN" --database "host=$PGHOST dbname=$PGDATABASE user=shim"
wait_until curl -sf "$SHIM_URL/readyz"
sql "SELECT billing.retry_failed('meter_event')" >/dev/null
sync

## A customer that is deleted at Stripe
sandbox DELETE "/v1/customers/$(sql "SELECT stripe_customer_id FROM billing.billing_customers WHERE tenant_id = 't2'")" >/dev/null
ok 'the end of a customer ends its subscription' wait_until settled \
    "(SELECT c.stripe_deleted_at IS NOT NULL AND s.status = 'canceled' FROM billing.billing_customers c JOIN billing.subscriptions s USING (tenant_id) WHERE tenant_id = 't2')"
is 'which is in the audit log' "$(sql "SELECT count(*) FROM billing.audit_log WHERE tenant_id = 't2' AND action = 'deleted_at_stripe'")" 1
sql "SELECT billing.create_subscription('t2', 'standard', 'send_invoice', 30)" >/dev/null
ok 'who subscribes again is another customer' wait_until settled \
    "(SELECT c.stripe_deleted_at IS NULL AND s.status = 'active' FROM billing.billing_customers c JOIN billing.subscriptions s USING (tenant_id) WHERE tenant_id = 't2' AND s.ended_at IS NULL)"

## Secrets
arrives() { true_in_sql "EXISTS (SELECT FROM billing.webhook_events WHERE type = 'product.updated' AND payload LIKE '%$1%')"; }
endpoint=$(sandbox GET /v1/webhook_endpoints | jq -r '.data[0].id')
rolled=$(control roll_secret "{\"endpoint\": \"$endpoint\"}" | jq -er .secret)
sandbox POST /v1/products/pgb_plan_free -d name=SignedTwice >/dev/null
ok 'while a secret is rolled the old one will do' wait_until arrives SignedTwice
echo "$rolled" >"$RUN/webhook.secret"
kill -HUP "$(service_pid shim)"
reloaded() { grep -q 'reloaded.*"webhook_secrets":2}' "$RUN/shim.log"; }
wait_until reloaded
sandbox POST /v1/products/pgb_plan_free -d name=Free >/dev/null
ok 'and then the new one, without a restart' wait_until arrives '"Free"'
ok 'a product that is as it was is no drift any more' wait_until settled 'NOT EXISTS (SELECT FROM billing.catalog_drift)'

## The other mode
event='[{"id": "evt_live", "object": "event", "type": "customer.subscription.updated", "livemode": true, "created": 1, "data": {"object": {"object": "subscription", "id": "'$(stripe_id t1)'", "customer": "x"}}}]'
echo "$event" >"$RUN/live.json"
node "$LIB/deliver.mjs" "$HOOK" "$rolled" "$RUN/live.json" 1 0 >/dev/null
ok 'an event of live mode is kept, and never applied where the key is for test mode' wait_until settled \
    "(SELECT outcome = 'wrong mode' AND request_id IS NULL FROM billing.webhook_events WHERE id = 'evt_live')"
is 'nothing else failed' "$(sql "SELECT count(*) FROM billing.webhook_events WHERE outcome = 'failed'") $(sql 'SELECT count(*) FROM billing.stripe_dead_letter')" '0 0'
ok 'what became of them, and how fast, is in stat_webhooks' true_in_sql \
    "(SELECT count(*) > 10 AND bool_and(outcome <> 'open' AND mean_time > 0 AND p95_time <= max_time) FROM billing.stat_webhooks)"
done_testing
