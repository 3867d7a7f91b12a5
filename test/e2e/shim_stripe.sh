#!/usr/bin/env bash
# A subscription created over HTTP: it waits for Stripe, outlives a Stripe that fails, and webhooks come back through
# the shim.
source "$(dirname "$0")/../lib/e2e.sh"

# subscribe TENANT JSON: the status of the answer; `body` shows the rest.
subscribe() {
    curl -sS --max-time 60 -o "$RUN/body" -w '%{http_code}' -H "Authorization: Bearer $KEY" -H "X-Tenant-Id: $1" \
        -H 'Content-Type: application/json' -d "$2" "$SHIM_URL/api/billing/subscription"
}
body() { jq -r "$1" "$RUN/body"; }
status_of() { curl -sS -H "Authorization: Bearer $KEY" -H "X-Tenant-Id: $1" "$SHIM_URL/api/billing/subscription" | jq -r .status; }

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
sql 'CREATE ROLE shim LOGIN IN ROLE billing_app'
for tenant in patient hasty; do
    sql "SELECT billing.create_customer('$tenant', '$tenant', 'billing@example.com')" >/dev/null
done
KEY=$(sql 'SELECT billing.create_api_key()')
PGUSER=shim shim_start --wait-seconds 30
wait_until curl -sf "$SHIM_URL/readyz"

is 'creating a subscription waits for Stripe' \
    "$(subscribe patient '{"planTier":"standard","collectionMethod":"send_invoice","daysUntilDue":30}') $(body .status)" \
    '201 active'
is 'and names the one Stripe has' "$(body .stripeSubscriptionId)" \
    "$(sandbox GET /v1/subscriptions | jq -r '.data[0].id')"
delivered() { [ "$(sql "SELECT count(*) FROM billing.webhook_events WHERE type = 'customer.subscription.created'")" = 1 ]; }
ok "Stripe's webhook arrives through the shim" wait_until delivered
applied() { [ "$(sql "SELECT count(*) FROM billing.webhook_events WHERE processed_at IS NULL")" = 0 ]; }
ok 'and the worker applies it' wait_until applied

service_stop shim
PGUSER=shim shim_start --wait-seconds 0.5
wait_until curl -sf "$SHIM_URL/readyz"
sandbox POST /_sandbox/faults -H 'Content-Type: application/json' \
    -d '{"method":"POST","path_prefix":"/v1/subscriptions","fault":"500","times":-1}' >/dev/null
is 'while Stripe fails the wish is answered as pending' \
    "$(subscribe hasty '{"planTier":"free"}') $(body .status)" '202 pending'
is 'and can be seen' "$(status_of hasty)" pending
sandbox DELETE /_sandbox/faults >/dev/null
sql "SELECT billing.run_stripe_sync()" >/dev/null
is 'it is carried out once Stripe answers again' "$(status_of hasty)" active
is 'once' "$(sandbox GET /v1/subscriptions | jq '.data | length')" 2

done_testing
