#!/usr/bin/env bash
# The HTTP shim against a real server: what it does, what it refuses and how, and how it bears an outage.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"

cluster_start main
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
sql "CREATE ROLE shim LOGIN IN ROLE billing_app"
sql "SELECT billing.create_customer('acme', 'acme', 'billing@example.com', stripe => false)" >/dev/null
sql "SELECT billing.create_customer('waiting', 'waiting', 'billing@example.com', stripe => true)" >/dev/null
ACME=$(sql "SELECT billing.create_api_key('acme')")
SERVICE=$(sql "SELECT billing.create_api_key()")
READER=$(sql "SELECT billing.create_api_key('acme', '{usage:read}')")
KEY=$ACME
PGUSER=shim shim_start --wait-seconds 1 --log-requests
wait_until curl -sf "$SHIM_URL/readyz"

# Settings
SHIM=$BUILD/cmake/pg_billing_shim
settings() { printf '%s\n' "$@" >"$RUN/shim.conf"; }
check() { "$SHIM" --config "$RUN/shim.conf" --check-config "$@" 2>&1; }
settings 'listen = "127.0.0.5:1"' 'database = "host=/nowhere"' "webhook-secret-file = \"$RUN/webhook.secret\""
like 'a file may give the settings' "$(check)" '"settings_are_good","address":"127.0.0.5","webhook_secrets":1}$'
like 'flags come first' "$(check --listen 127.0.0.6:1)" '"address":"127.0.0.6"'
settings 'database = "host=/nowhere"' 'conections = 3'
ok 'a setting that there is not is refused' bash -c '! "$0" --config "$1" --check-config' "$SHIM" "$RUN/shim.conf"
like 'and named' "$(check || true)" conections
settings 'database = "host=/nowhere"' 'webhook-secret-file = "/nowhere"'
like 'so is a file that is not there' "$(check || true)" 'webhook secret file /nowhere'
settings 'database = "host=/nowhere"' 'listen = "0.0.0.0:80"'
like 'without TLS only loopback is served' "$(check || true)" 'only a loopback address'
sed 's/^#\(webhook\|connections\)/\1/' "$TOP/shim/pg_billing_shim.conf" | sed "s#/etc/pg_billing/webhook_secrets#$RUN/webhook.secret#" >"$RUN/shim.conf"
like 'the example is good' "$(check)" settings_are_good

# Subscription
is 'no subscription yet' "$(refused call GET /api/billing/subscription)" "$(problem 404 no_subscription)"
is 'consuming without one is refused' \
    "$(refused post /api/billing/consume '{"metric":"api_calls"}')" "$(problem 402 no_subscription)"
is 'an unknown plan is refused' \
    "$(refused post /api/billing/subscription '{"planTier":"gold"}')" "$(problem 422 unknown_plan planTier)"
is 'a subscription is created' "$(post /api/billing/subscription '{"planTier":"free"}')" 201
is 'and is active' "$(body '[.planTier, .status, .tenantId] | join(" ")')" 'free active acme'
is 'a second one is refused' \
    "$(refused post /api/billing/subscription '{"planTier":"free"}')" "$(problem 409 subscription_exists)"
is 'it is found' "$(call GET /api/billing/subscription) $(body .status)" '200 active'
KEY=$SERVICE
is 'the answer does not wait for Stripe for ever' \
    "$(post /api/billing/subscription '{"planTier":"free"}' -H 'X-Tenant-Id: waiting') $(body .status)" '202 pending'
KEY=$ACME

# Usage
is 'an event is recorded' \
    "$(post /api/billing/events '{"metric":"llm_tokens","quantity":12,"idempotencyKey":"e1"}') $(body .status)" \
    '201 recorded'
is 'its repetition changes nothing' \
    "$(post /api/billing/events '{"metric":"llm_tokens","quantity":12,"idempotencyKey":"e1"}') $(body .status)" \
    '200 duplicate'
is 'the header is a key too' \
    "$(post /api/billing/events '{"metric":"llm_tokens","quantity":"12"}' -H 'Idempotency-Key: "e1"') $(body .status)" \
    '200 duplicate'
is 'properties keep their digits' "$(post /api/billing/events \
    '{"metric":"llm_tokens","idempotencyKey":"e2","properties":{"cost":12345678901234567890.10}}')" 201
is '… in the table' "$(sql "SELECT properties ->> 'cost' FROM billing.usage_events WHERE idempotency_key = 'e2'")" \
    12345678901234567890.10
is 'a batch gives each event its own result' "$(post /api/billing/events '[
    {"metric":"api_calls","idempotencyKey":"b1"}, {"metric":"nope","idempotencyKey":"b2"},
    {"metric":"api_calls","quantity":-1,"idempotencyKey":"b3"}, {"metric":"api_calls","oops":1,"idempotencyKey":"b4"},
    {"metric":"api_calls","idempotencyKey":"b1"}]') $(body '[.results[] | .status + ":" + (.code // "")] | join(" ")')" \
    '200 recorded: rejected:unknown_metric rejected:invalid_quantity rejected:unknown_field duplicate:'
is 'the usage is shown' \
    "$(call GET /api/billing/usage/llm_tokens) $(body '[.used, .quota, .remaining] | join(" ")')" '200 13 10000 9987'
is 'for every metric' "$(call GET /api/billing/usage) $(body '.tenantId + " " + (.metrics | length | tostring)')" '200 acme 5'
is 'an unknown metric has none' "$(refused call GET /api/billing/usage/nope)" "$(problem 404 unknown_metric metric)"

# Quotas
is 'consuming within the quota is allowed' \
    "$(post /api/billing/consume '{"metric":"user_seats","quantity":3}') $(body .reason)" '200 within_quota'
is 'the answer tells the quota' "$(header ratelimit-policy) $(header ratelimit)" '"user_seats";q=3 "user_seats";r=0'
is 'a hard cap denies' "$(refused post /api/billing/consume '{"metric":"user_seats"}')" "$(problem 429 hard_cap)"
is 'with the decision' "$(body '[.decision.status, .decision.used, ."violated-policies"[0]] | join(" ")')" \
    'denied 3 user_seats'
is 'a soft cap asks for a larger plan' \
    "$(refused post /api/billing/consume '{"metric":"api_calls","quantity":1300}')" "$(problem 402 upgrade_required)"
like 'and says when to come back' "$(header retry-after)" '^[0-9]+$'
is 'a denial records nothing' "$(sql "SELECT count(*) FROM billing.usage_events WHERE quantity = 1300")" 0

# Who may
KEY=pgb_0000
is 'an unknown key' "$(refused call GET /api/billing/usage)" "$(problem 401 invalid_api_key)"
like 'is asked for another' "$(header www-authenticate)" '^Bearer'
is 'no key' "$(curl -sS -o /dev/null -w '%{http_code}' "$SHIM_URL/api/billing/usage")" 401
KEY=$READER
is 'a scope that is missing' \
    "$(refused post /api/billing/events '{"metric":"api_calls"}')" "$(problem 403 insufficient_scope)"
is 'a scope that is there' "$(call GET /api/billing/usage)" 200
KEY=$ACME
is "another tenant's data" \
    "$(refused call GET /api/billing/usage -H 'X-Tenant-Id: waiting')" "$(problem 403 tenant_not_permitted)"
KEY=$SERVICE
is 'a service must name the tenant' "$(refused call GET /api/billing/usage)" "$(problem 400 tenant_required X-Tenant-Id)"
is 'a service names the tenant' "$(call GET /api/billing/usage -H 'X-Tenant-Id: acme') $(body .tenantId)" '200 acme'
is 'a service names an unknown tenant' \
    "$(refused call GET /api/billing/usage -H 'X-Tenant-Id: nobody')" "$(problem 404 unknown_tenant)"
KEY=$ACME

# Wrong input
wrong() { is "$1" "$(refused post /api/billing/events "$2")" "$(problem 400 "$3" "${4:-}")"; }
wrong 'malformed JSON' '{"metric":' malformed_json
wrong 'a duplicate member' '{"metric":"api_calls","metric":"llm_tokens"}' duplicate_field metric
wrong 'an unknown member' '{"metric":"api_calls","amount":1}' unknown_field amount
wrong 'a wrong type' '{"metric":"api_calls","quantity":true}' invalid_type quantity
wrong 'a missing member' '{"quantity":1}' missing_field metric
wrong 'a time that is none' '{"metric":"api_calls","occurredAt":"2026-02-31T10:00:00Z"}' invalid_type occurredAt
wrong 'bad UTF-8' $'{"metric":"\xff"}' malformed_json
is 'a time outside the window' "$(refused post /api/billing/events \
    '{"metric":"api_calls","occurredAt":"2001-01-01T00:00:00Z"}')" "$(problem 422 occurred_at_out_of_window occurredAt)"
is 'a wrong content type' "$(refused call POST /api/billing/events -H 'Content-Type: text/plain' -d '{}')" \
    "$(problem 415 unsupported_media_type Content-Type)"
head -c 2000000 /dev/zero | tr '\0' ' ' >"$RUN/large"
is 'an oversized body' "$(refused post /api/billing/events "@$RUN/large")" "$(problem 413 body_too_large)"
is 'an unexpected query' "$(refused call GET '/api/billing/usage?x=1')" "$(problem 400 unknown_parameter x)"
is 'an unknown address' "$(refused call GET /api/nothing)" "$(problem 404 not_found)"
is 'a wrong method' "$(refused call PUT /api/billing/usage) $(header allow)" "$(problem 405 method_not_allowed) OPTIONS, GET, HEAD"
is 'a request id comes back' \
    "$(call GET /healthz -H 'X-Request-Id: req-7') $(header x-request-id)" '200 req-7'


# Traces and the log
TRACE=4bf92f3577b34da6a3ce929d0e0e4736 PARENT=00f067aa0ba902b7
call GET /api/billing/usage/llm_tokens -H "traceparent: 00-$TRACE-$PARENT-01" -H 'X-Request-Id: traced' -H 'X-Tenant-Id: acme' >/dev/null
like 'a trace is taken on' "$(header traceresponse)" "^00-$TRACE-[0-9a-f]{16}-01$"
is 'and logged' "$(jq -c 'select(.request_id == "traced") | [.trace_id, .parent_id, .route, .status, .tenant]' "$RUN/shim.log")" \
    "[\"$TRACE\",\"$PARENT\",\"/api/billing/usage/:metric\",200,\"acme\"]"
call GET /healthz -H "traceparent: 00-$TRACE-0000000000000000-01" >/dev/null
like 'one that is not valid is not' "$(header traceresponse | grep -v "$TRACE")" '^00-[0-9a-f]{32}-[0-9a-f]{16}-00$'
ok 'every line of the log is JSON' jq -e .event "$RUN/shim.log"

# Stripe's webhooks
# deliver SECRET AGE BODY: what Stripe sends, signed with that secret that many seconds ago.
deliver() {
    local time=$(($(date +%s) - $2))
    call POST /api/billing/webhooks/stripe --data-binary "$3" \
        -H "Stripe-Signature: t=$time,v1=$(printf '%s.%s' "$time" "$3" | openssl dgst -sha256 -hmac "$1" -r | cut -d' ' -f1)"
}
EVENT='{"id":"evt_1","object":"event","type":"invoice.paid","data":{"object":{"id":"in_1","object":"invoice"}}}'
stored() { sql "SELECT count(*) || ' ' || min(payload) FROM billing.webhook_events"; }
is 'a webhook is accepted' "$(deliver whsec_none 0 "$EVENT") $(body .received)" '200 true'
is 'so is its repetition' "$(deliver whsec_none 10 "$EVENT")" 200
is 'but it is stored once, as it came' "$(stored)" "1 $EVENT"
FORGED=${EVENT/evt_1/evt_2}
is 'a forged webhook' "$(refused deliver whsec_wrong 0 "$FORGED")" "$(problem 400 invalid_signature Stripe-Signature)"
is 'an old webhook' "$(refused deliver whsec_none 400 "$FORGED")" "$(problem 400 invalid_signature Stripe-Signature)"
is 'an unsigned webhook' "$(refused call POST /api/billing/webhooks/stripe -d "$FORGED")" \
    "$(problem 400 invalid_signature Stripe-Signature)"
is 'leave nothing' "$(stored)" "1 $EVENT"
printf 'whsec_none\nwhsec_rolled\n' >"$RUN/webhook.secret"
kill -HUP "$(service_pid shim)"
rolled() { [ "$(deliver whsec_rolled 0 "$EVENT")" = 200 ]; }
ok 'a rolled secret is read without a restart' wait_until rolled

# An outage
cluster_stop main immediate
is 'alive while the database is down' "$(call GET /healthz)" 200
is 'not ready' "$(refused call GET /readyz)" "$(problem 503 unavailable)"
is 'requests are refused' "$(refused post /api/billing/events '{"metric":"api_calls"}')" "$(problem 503 unavailable)"
is 'with a time to come back' "$(header retry-after)" 1
is 'Stripe is told to deliver again' "$(deliver whsec_none 0 "$FORGED")" 503
cluster_up main
ok 'the connection comes back by itself' wait_until curl -sf "$SHIM_URL/readyz"
is 'what was recorded is still there' "$(call GET /api/billing/usage/llm_tokens) $(body .used)" '200 13'
sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shim'" >/dev/null
ok 'a terminated backend is replaced' wait_until curl -sf "$SHIM_URL/readyz"

# Stopping: a request under way is answered first
coproc HOLDER { cluster_psql; }
echo 'BEGIN; LOCK TABLE billing.billing_customers;' >&"${HOLDER[1]}"
locked() { [ "$(sql "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted")" = 1 ]; }
wait_until locked
call GET /api/billing/usage >"$RUN/late" &
LATE=$!
waiting() { [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shim' AND wait_event_type = 'Lock'")" = 1 ]; }
wait_until waiting
kill -TERM "$(service_pid shim)"
wait_until grep -q '"event":"stopping"' "$RUN/shim.log"
echo 'ROLLBACK;' >&"${HOLDER[1]}"
wait $LATE
is 'a request under way when the shim is stopped is answered' "$(<"$RUN/late")" 200
ok 'then it ends' wait_until not_running shim
ok 'and says so' grep -q '"event":"stopped"' "$RUN/shim.log"
ok 'its log holds no key' not grep -qE 'pgb_|whsec_' "$RUN/shim.log"

# Starting
shim_fails() { "$BUILD/cmake/pg_billing_shim" "$@" 2>&1; }
like 'plain HTTP is not served to a network' \
    "$(shim_fails --database dbname=x --listen 0.0.0.0:0 || echo "exit $?")" 'without TLS.*exit [1-9]'
like 'half a TLS configuration is refused' \
    "$(shim_fails --database dbname=x --tls-key "$RUN/tls.key" || echo "exit $?")" 'tls-certificate.*exit [1-9]'
like 'a bad connection string is refused, without repeating it' \
    "$(shim_fails --database 'password=s3cret nonsense' || echo "exit $?")" 'not a libpq connection string.*exit [1-9]'
openssl req -x509 -newkey rsa:2048 -nodes -keyout "$RUN/tls.key" -out "$RUN/tls.pem" -subj /CN=localhost \
    -addext subjectAltName=IP:127.0.0.1 2>/dev/null
chmod a+r "$RUN/tls.key"
PORT=$(free_port)
service_start shim "$BUILD/cmake/pg_billing_shim" --listen "0.0.0.0:$PORT" --database "host=$PGHOST user=shim dbname=postgres" \
    --tls-certificate "$RUN/tls.pem" --tls-key "$RUN/tls.key" --cors-origin https://app.example.com
service_ready shim curl -sf --cacert "$RUN/tls.pem" "https://127.0.0.1:$PORT/healthz"
is 'TLS 1.2 is spoken' "$(curl -s -o /dev/null -w '%{http_code}' --cacert "$RUN/tls.pem" --tlsv1.2 --tls-max 1.2 "https://127.0.0.1:$PORT/healthz")" 200
ok 'TLS 1.1 is not' not curl -s --ciphers DEFAULT@SECLEVEL=0 --cacert "$RUN/tls.pem" --tlsv1.1 --tls-max 1.1 "https://127.0.0.1:$PORT/healthz"
is 'without a secret no webhook is taken' \
    "$(SHIM_URL=https://127.0.0.1:$PORT refused call POST /api/billing/webhooks/stripe --cacert "$RUN/tls.pem" -d '{}')" \
    "$(problem 503 webhooks_not_configured)"
preflight() {
    curl -s -D "$RUN/headers" -o /dev/null --cacert "$RUN/tls.pem" -X OPTIONS -H "Origin: $1" -H 'Access-Control-Request-Method: GET' "https://127.0.0.1:$PORT/api/billing/usage"
    echo "$(header access-control-allow-origin) $(header access-control-allow-methods)"
}
is 'a page of an origin that is named may call' "$(preflight https://app.example.com)" 'https://app.example.com OPTIONS, GET, HEAD'
is '… and of no other' "$(preflight https://evil.example)" ' '
is 'over TLS it stays with TLS' "$(header strict-transport-security)" 'max-age=31536000'
like 'an origin that is none is refused' "$(shim_fails --database dbname=x --cors-origin https://app.example.com/ || echo "exit $?")" 'an origin is.*exit [1-9]'
# Another certificate, and one that is none
certificate() { openssl req -x509 -newkey rsa:2048 -nodes -keyout "$RUN/tls.key" -out "$RUN/tls.pem" -subj "/CN=$1" -addext subjectAltName=IP:127.0.0.1 2>/dev/null; }
certificate renewed
kill -HUP "$(service_pid shim)"
ok 'SIGHUP renews the certificate' wait_until curl -sf --cacert "$RUN/tls.pem" "https://127.0.0.1:$PORT/healthz"
cp "$RUN/tls.pem" "$RUN/good.pem"
echo nonsense >"$RUN/tls.pem"
kill -HUP "$(service_pid shim)"
ok 'one that is none is told of' wait_until grep -q '"event":"reload_failed"' "$RUN/shim.log"
ok '… and the last one kept' curl -sf --cacert "$RUN/good.pem" "https://127.0.0.1:$PORT/healthz"

done_testing
