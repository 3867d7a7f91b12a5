#!/usr/bin/env bash
# A subscription created over HTTP: it waits for Stripe, outlives a Stripe that fails, and webhooks come back through
# the shim.
source "$(dirname "$0")/../lib/e2e.sh"

source "$LIB/http.sh"

# subscribe TENANT JSON, ask METHOD TENANT PATH [curl arguments…]: the status of the answer.
subscribe() { post /api/billing/subscription "$2" -H "X-Tenant-Id: $1"; }
ask() { call "$1" "/api/billing/$3" -H "X-Tenant-Id: $2" "${@:4}"; }
status_of() { ask GET "$1" subscription >/dev/null && body .status; }

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


# A change and an end, too
is 'a change of plan waits for Stripe' \
    "$(send PUT /api/billing/subscription '{"planTier":"enterprise"}' -H 'X-Tenant-Id: patient') $(body '[.planTier, .stripeConfirmed] | join(" ")')" \
    '200 enterprise true'
has_price() { sandbox GET "/v1/subscriptions/$STRIPE_ID" | jq -e --arg price "$(sql "SELECT stripe_price_id FROM billing.subscriptions WHERE tenant_id = 'patient'")" '[.items.data[].price.id] | index($price)'; }
STRIPE_ID=$(body .stripeSubscriptionId)
ok '… which has it' has_price
is 'an end with the period waits' "$(ask DELETE patient subscription) $(body '[.cancelAtPeriodEnd, .stripeConfirmed] | join(" ")')" '200 true true'
is '… and is known there' "$(sandbox GET "/v1/subscriptions/$STRIPE_ID" | jq .cancel_at_period_end)" true

# The link to a PDF
invoiced() { [ "$(ask GET patient invoices) $(body '.data | length > 0')" = '200 true' ]; }
ok 'its invoices are listed' wait_until invoiced
INVOICE=$(body '.data[-1].id')
is 'a draft has no PDF' "$(refused ask GET patient "invoices/$INVOICE/pdf")" "$(problem 409 invoice_without_pdf)"
sandbox POST "/v1/invoices/$INVOICE/finalize" >/dev/null
like 'a final one has' "$(ask GET patient "invoices/$INVOICE/pdf") $(body .url)" '^200 https://'
sql "UPDATE billing.invoices SET fetched_at = fetched_at - interval '2 hours', invoice_pdf = 'https://expired.example/'"
like 'an old link is fetched anew' "$(ask GET patient "invoices/$INVOICE/pdf") $(body .url)" '^200 https://pay.stripe.com/'

is 'an end at once waits' "$(ask DELETE patient 'subscription?atPeriodEnd=false') $(body '[.status, .stripeConfirmed] | join(" ")')" '200 canceled true'
is '… until Stripe has ended it' "$(sandbox GET "/v1/subscriptions/$STRIPE_ID" | jq -r .status)" canceled
ENDED=$(sandbox GET '/v1/subscriptions?status=all' | jq '.data | length')

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
is 'once' "$(sandbox GET '/v1/subscriptions?status=all' | jq '.data | length')" $((ENDED + 1))

sandbox POST /_sandbox/faults -H 'Content-Type: application/json' \
    -d '{"method":"POST","path_prefix":"/v1/subscriptions","fault":"500","times":-1}' >/dev/null
is 'so is a change' "$(send PUT /api/billing/subscription '{"planTier":"standard"}' -H 'X-Tenant-Id: hasty') $(body '[.planTier, .stripeConfirmed] | join(" ")')" \
    '202 standard false'
sandbox DELETE /_sandbox/faults >/dev/null
sandbox POST /_sandbox/faults -H 'Content-Type: application/json' \
    -d '{"method":"GET","path_prefix":"/v1/invoices","fault":"500","times":-1}' >/dev/null
sql "UPDATE billing.invoices SET fetched_at = fetched_at - interval '2 hours'"
is 'a link that Stripe does not tell' "$(refused ask GET patient "invoices/$INVOICE/pdf")" "$(problem 503 stripe_sync_timed_out)"

done_testing
