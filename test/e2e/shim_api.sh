#!/usr/bin/env bash
# The endpoints around the hot path: quotas and checks, reservations, changes of plan, invoices. Stripe's part in them is in
# shim_stripe.sh.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"

cluster_start main pg_billing.database_workers=off
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
sql "CREATE ROLE shim LOGIN IN ROLE billing_app"
sql "SELECT billing.create_customer(t, t, 'billing@example.com', stripe => false) FROM unnest('{acme,other}'::text[]) t" >/dev/null
KEY=$(sql "SELECT billing.create_api_key('acme')") OTHER=$(sql "SELECT billing.create_api_key('other')")
READER=$(sql "SELECT billing.create_api_key('acme', '{usage:read,subscription:read}')")
ACME=$KEY
PGUSER=shim shim_start
wait_until curl -sf "$SHIM_URL/readyz"
API=/api/billing

# Before there is a subscription
is 'a check without a subscription' "$(refused call GET "$API/check?metric=api_calls")" "$(problem 402 no_subscription)"
is 'quotas without one say so' "$(call GET $API/quotas) $(body '[.quotas[].refusal] | unique | join(" ")')" '200 no_subscription'
is 'no plan to change' "$(refused send PUT $API/subscription '{"planTier":"standard"}')" "$(problem 404 no_subscription)"
is 'nothing to cancel' "$(refused call DELETE $API/subscription)" "$(problem 404 no_subscription)"
is 'no change to preview' "$(refused post $API/subscription/preview '{"planTier":"standard"}')" "$(problem 404 no_subscription)"
is 'no invoice to come' "$(refused call GET $API/invoices/upcoming)" "$(problem 404 no_upcoming_invoice)"
post $API/subscription '{"planTier":"free"}' >/dev/null

# Quotas and checks
is 'all quotas' "$(call GET $API/quotas) $(body '.tenantId, (.quotas[] | select(.metric == "user_seats") | .quota, .cap, .own, .per)' | tr '\n' ' ')" \
    '200 acme 3 hard false null '
sql "SELECT billing.set_quota('acme', 'agent_executions', 2, per => 'hour')" >/dev/null
is '… that of an hour, too' "$(call GET $API/quotas) $(body '.quotas[] | select(.per) | .metric, .per, .quota, .own' | tr '\n' ' ')" \
    '200 agent_executions hour 2 true '
is 'a check allows' "$(call GET "$API/check?metric=user_seats&quantity=3") $(body '[.status, .reason, .used] | join(" ")')" '200 allowed within_quota 0'
is '… by its status alone' "$(call HEAD "$API/check?metric=user_seats" --head) $(header ratelimit)" '200 "user_seats";r=3'
is 'and records nothing' "$(sql 'SELECT count(*) FROM billing.usage_events')" 0
is 'a check denies as consuming does' "$(refused call GET "$API/check?metric=user_seats&quantity=4")" "$(problem 429 hard_cap)"
is '… with the decision' "$(body '[.decision.status, ."violated-policies"[0]] | join(" ")')" 'denied user_seats'
is '… for want of a larger plan' "$(refused call GET "$API/check?metric=api_calls&quantity=1201")" "$(problem 402 upgrade_required)"
is "an hour's limit denies for a while" "$(refused post $API/consume '{"metric":"agent_executions","quantity":3}')" "$(problem 429 hour_limit)"
ok '… an hour at most' test "$(header retry-after)" -le 3600
wrong() { is "$1" "$(refused call GET "$API/$2")" "$(problem 400 "$3" "$4")"; }
wrong 'a parameter that is missing' 'check?quantity=1' missing_parameter metric
wrong 'one that is no number' 'check?metric=api_calls&quantity=two' invalid_type quantity
wrong 'one that nobody knows' 'check?metric=api_calls&amount=1' unknown_parameter amount
wrong 'one given twice' 'check?metric=api_calls&metric=llm_tokens' duplicate_parameter metric
is 'a negative one' "$(refused call GET "$API/check?metric=api_calls&quantity=-1")" "$(problem 422 invalid_quantity quantity)"

# Reservations
RESERVE='{"metric":"llm_tokens","quantity":400,"ttlSeconds":60,"idempotencyKey":"r1"}'
is 'a quantity is held' "$(post $API/reservations "$RESERVE") $(body '[.status, .used] | join(" ")')" '201 allowed 400'
ID=$(body .reservationId)
like 'under an id' "$ID" '^[0-9a-f-]{36}$'
is 'its repetition is the same one' "$(post $API/reservations "$RESERVE") $(body '[.status, .reservationId] | join(" ")')" "200 duplicate $ID"
KEY=$OTHER
is "another tenant's is unknown" "$(refused post "$API/reservations/$ID/settle" '{"quantity":1}')" "$(problem 404 unknown_reservation)"
KEY=$READER
is 'holding takes a right to write' "$(refused post $API/reservations "$RESERVE")" "$(problem 403 insufficient_scope)"
KEY=$ACME
is 'it is settled by what it came to' "$(post "$API/reservations/$ID/settle" '{"quantity":"123.000"}') $(body '[.status, .used] | join(" ")')" '200 recorded 123'
is '… once' "$(post "$API/reservations/$ID/settle" '{"quantity":123}') $(body .status)" '200 duplicate'
is 'and cannot be released then' "$(refused call POST "$API/reservations/$ID/release")" "$(problem 409 reservation_ended)"
post $API/reservations '{"metric":"llm_tokens"}' -H 'Idempotency-Key: "r2"' >/dev/null
ID=$(body .reservationId)
is 'one is released, without a body' "$(call POST "$API/reservations/$ID/release") $(body '[.status, .used] | join(" ")')" '200 allowed 123'
is '… its repetition, with one' "$(post "$API/reservations/$ID/release" '{}') $(body .status)" '200 duplicate'
is 'too much is not held' "$(refused post $API/reservations '{"metric":"user_seats","quantity":4}')" "$(problem 429 hard_cap)"
is 'nor for too long' "$(refused post $API/reservations '{"metric":"llm_tokens","ttlSeconds":604801}')" "$(problem 422 invalid_argument)"
is 'what is no id' "$(refused call POST "$API/reservations/1/release")" "$(problem 404 unknown_reservation)"
is 'settling takes a quantity' "$(refused post "$API/reservations/$ID/settle" '{}')" "$(problem 400 missing_field quantity)"

# Changes of plan
is 'a change is previewed' "$(post $API/subscription/preview '{"planTier":"standard"}') $(body '[.planTier, .currency, (.lines[] | select(.kind == "fee") | .amount)] | join(" ")')" \
    '200 standard usd 9900'
is '… and not made' "$(call GET $API/subscription) $(body .planTier)" '200 free'
is 'not to a plan that is none' "$(refused post $API/subscription/preview '{"planTier":"gold"}')" "$(problem 422 unknown_plan planTier)"
KEY=$READER
is 'a preview is for who may look' "$(post $API/subscription/preview '{"planTier":"standard"}')" 200
is 'a change is not' "$(refused send PUT $API/subscription '{"planTier":"standard"}')" "$(problem 403 insufficient_scope)"
KEY=$ACME
is 'the plan is changed' "$(send PUT $API/subscription '{"planTier":"standard","prorationBehavior":"none"}') $(body '[.planTier, .stripeConfirmed] | join(" ")')" \
    '200 standard true'
is 'its quotas are in force' "$(call GET "$API/check?metric=user_seats&quantity=25")" 200
is 'a proration that is none' "$(refused send PUT $API/subscription '{"planTier":"free","prorationBehavior":"half"}')" "$(problem 422 invalid_argument)"
is 'the upcoming invoice' "$(call GET $API/invoices/upcoming) $(body '[.currency, .total, (.lines | length > 1), (.total == ([.lines[].amount] | add))] | join(" ")')" \
    '200 usd 9900 true true'
is 'it ends with its period' "$(call DELETE $API/subscription) $(body '[.status, .cancelAtPeriodEnd] | join(" ")')" '200 active true'
is 'a flag that is none' "$(refused call DELETE "$API/subscription?atPeriodEnd=no")" "$(problem 400 invalid_type atPeriodEnd)"
is 'a flag told twice' "$(refused send DELETE "$API/subscription?atPeriodEnd=false" '{"atPeriodEnd":false}')" "$(problem 400 duplicate_parameter atPeriodEnd)"
is 'it ends at once' "$(send DELETE $API/subscription '{"atPeriodEnd":false,"invoiceNow":false}') $(body '[.status, .endedAt != null] | join(" ")')" '200 canceled true'
is '… as the address says, too' "$(post $API/subscription '{"planTier":"free"}') $(call DELETE "$API/subscription?atPeriodEnd=false&prorate=true") $(body .status)" '201 200 canceled'
is 'and is gone' "$(refused call GET $API/subscription)" "$(problem 404 no_subscription)"
post $API/subscription '{"planTier":"free"}' >/dev/null

# Invoices
sql "SELECT billing._apply_invoice('acme', jsonb_build_object('id', 'in_' || n, 'status', CASE n WHEN 5 THEN 'draft' ELSE 'paid' END, 'currency', 'usd',
         'subtotal', 100 * n, 'total', 100 * n, 'amount_due', 0, 'amount_paid', 100 * n, 'amount_remaining', 0, 'created', 1700000000 + n / 2,
         'invoice_pdf', CASE WHEN n < 5 THEN 'https://pay.example/' || n || '.pdf' END, 'lines', jsonb_build_object('has_more', false, 'data', jsonb_build_array(
             jsonb_build_object('id', 'il_1', 'description', 'Fee', 'quantity', 1, 'amount', 100 * n, 'currency', 'usd')))))
       FROM generate_series(1, 5) n" >/dev/null
page() { echo "$(call GET "$API/invoices?$1") $(body '[([.data[].id] | join(" ")), .hasMore] | join(" ")')"; }
is 'invoices, the latest first' "$(page '')" '200 in_5 in_4 in_3 in_2 in_1 false'
is 'a page of them' "$(page limit=2)" '200 in_5 in_4 true'
is 'the next' "$(page 'limit=2&startingAfter=in_4')" '200 in_3 in_2 true'
is 'the last' "$(page 'limit=2&startingAfter=in_2')" '200 in_1 false'
is 'and back' "$(page 'limit=2&endingBefore=in_1')" '200 in_3 in_2 true'
is 'to the first' "$(page 'limit=2&endingBefore=in_3')" '200 in_5 in_4 false'
is 'a page that is full and the last' "$(page 'limit=5')" '200 in_5 in_4 in_3 in_2 in_1 false'
wrong 'a limit that is none' 'invoices?limit=0' invalid_type limit
wrong 'two directions' 'invoices?startingAfter=in_1&endingBefore=in_2' invalid_value endingBefore
wrong 'a cursor that is unknown' 'invoices?startingAfter=in_9' invalid_value startingAfter
is 'one with its lines' "$(call GET $API/invoices/in_3) $(body '[.id, .total, .lines[0].description, .lines[0].amount] | join(" ")')" '200 in_3 300 Fee 300'
is 'one that is unknown' "$(refused call GET $API/invoices/in_9)" "$(problem 404 unknown_invoice)"
is 'a link that is fresh' "$(call GET $API/invoices/in_3/pdf) $(body .url)" '200 https://pay.example/3.pdf'
KEY=$OTHER
is "another tenant's invoice" "$(refused call GET $API/invoices/in_3/pdf)" "$(problem 404 unknown_invoice)"
is '… is on no list' "$(page '')" '200  false'
KEY=$ACME

# Methods
is 'the methods of an address' "$(call OPTIONS $API/subscription) $(header allow)" '204 OPTIONS, DELETE, GET, HEAD, POST, PUT'
is 'a method that it does not know' "$(refused call PATCH $API/subscription)" "$(problem 405 method_not_allowed)"
is 'a method that nobody knows' "$(refused call BREW $API/invoices/in_1)" "$(problem 405 method_not_allowed)"
is 'a name cut short' "$(refused call GET $API/usage/api_calls%00x)" "$(problem 400 malformed_request)"

done_testing
