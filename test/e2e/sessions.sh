#!/usr/bin/env bash
# Tokens of tenants: who gets one, what it may do, and that nothing else passes for one.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"

cluster_start main pg_billing.database_workers=off
sql 'CREATE EXTENSION pg_billing; SELECT billing.install(); CREATE ROLE shim LOGIN IN ROLE billing_app' >/dev/null
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false), billing.create_subscription(t, 'free') FROM unnest('{acme,other}'::text[]) t" >/dev/null
SERVICE=$(sql "SELECT billing.create_api_key(NULL, '{sessions:create,usage:read,subscription:read}')")
ALL=$(sql "SELECT billing.create_api_key('acme', '{sessions:create,usage:read,usage:write,subscription:read,subscription:write}')")
PLAIN=$(sql "SELECT billing.create_api_key('acme')")
openssl rand -hex 32 >"$RUN/token.secret"
openssl genrsa -out "$RUN/theirs.key" 2048 2>/dev/null
openssl rsa -in "$RUN/theirs.key" -pubout -out "$RUN/theirs.pem" 2>/dev/null
PGUSER=shim shim_start --token-secret-file "$RUN/token.secret" --token-key-file "$RUN/theirs.pem"
wait_until curl -sf "$SHIM_URL/readyz"
API=/api/billing
base64url() { basenc --base64url -w0 | tr -d =; }
# token HEADER CLAIMS SIGNER…: a JWT that the command signs.
token() {
    local text
    text=$(printf %s "$1" | base64url).$(printf %s "$2" | base64url)
    echo "$text.$(printf %s "$text" | "${@:3}" | base64url)"
}
claims() { echo "{\"sub\":\"${1:-acme}\",\"aud\":\"pg_billing\",\"scope\":\"usage:read\",\"iat\":$(($(date +%s) - 5)),\"exp\":$(($(date +%s) + ${2:-60}))}"; }
theirs() { openssl dgst -sha256 -sign "$RUN/theirs.key" -binary; }
ours() { openssl dgst -sha256 -hmac "$(<"$RUN/token.secret")" -binary; }

KEY=$SERVICE
is "a service's key makes one for a tenant" "$(call POST $API/sessions -H 'X-Tenant-Id: acme') $(body '[.tenantId, .scope, .tokenType] | join(" ")')" \
    '201 acme usage:read subscription:read Bearer'
TOKEN=$(body .token)
ok '… for a quarter of an hour' test $(($(date -d "$(body .expiresAt)" +%s) - $(date +%s))) -le 900
is 'the tenant has to be there' "$(refused call POST $API/sessions -H 'X-Tenant-Id: nobody')" "$(problem 404 unknown_tenant)"
is '… and named' "$(refused call POST $API/sessions)" "$(problem 400 tenant_required X-Tenant-Id)"
is 'what the key may not do it cannot give away' "$(refused post $API/sessions '{"scope":"usage:write"}' -H 'X-Tenant-Id: acme')" "$(problem 403 insufficient_scope)"
is 'longer than an hour there is none' "$(refused post $API/sessions '{"expiresInSeconds":3601}' -H 'X-Tenant-Id: acme')" "$(problem 422 invalid_argument expiresInSeconds)"
is 'nor for less than a second' "$(refused post $API/sessions '{"expiresInSeconds":0}' -H 'X-Tenant-Id: acme')" "$(problem 422 invalid_argument expiresInSeconds)"
is 'a member nobody knows' "$(refused post $API/sessions '{"tenant":"acme"}' -H 'X-Tenant-Id: acme')" "$(problem 400 unknown_field tenant)"
is 'a key without the right to' "$(KEY=$PLAIN refused call POST $API/sessions)" "$(problem 403 insufficient_scope)"

KEY=$TOKEN
is 'a token reads what is the tenant'"'"'s' "$(call GET $API/usage) $(body .tenantId)" '200 acme'
is '… its subscription' "$(call GET $API/subscription) $(body .planTier)" '200 free'
is '… its quotas and invoices' "$(call GET $API/quotas) $(call GET $API/invoices) $(call GET "$API/check?metric=api_calls")" '200 200 200'
is '… and names it, or none' "$(call GET $API/usage -H 'X-Tenant-Id: acme') $(refused call GET $API/usage -H 'X-Tenant-Id: other')" "200 $(problem 403 tenant_not_permitted)"
is 'it writes nothing' "$(refused post $API/consume '{"metric":"api_calls"}') $(refused call DELETE $API/subscription)" "$(problem 403 insufficient_scope) $(problem 403 insufficient_scope)"
is '… nor records events' "$(refused post $API/events '{"metric":"api_calls"}')" "$(problem 403 insufficient_scope)"
is '… nor makes another one' "$(refused call POST $API/sessions)" "$(problem 403 insufficient_scope)"
is '… nor reads metrics' "$(refused call GET /metrics)" "$(problem 403 insufficient_scope)"
KEY=$ALL
post $API/sessions '{"scope":"usage:write usage:read","expiresInSeconds":60}' >/dev/null
KEY=$(body .token)
is 'unless it was made for that' "$(post $API/consume '{"metric":"api_calls"}') $(body .status) $(sql "SELECT billing.get_current_usage('acme', 'api_calls')")" '200 recorded 1'

KEY=$(token '{"alg":"RS256","typ":"JWT"}' "$(claims other)" theirs)
is 'one that was made elsewhere' "$(call GET $API/usage) $(body .tenantId)" '200 other'
refuses() { is "$1" "$(refused call GET $API/usage) $(header www-authenticate)" "$(problem 401 "$2" Authorization) Bearer realm=\"pg_billing\""; }
KEY=$(token '{"alg":"HS256"}' "$(claims acme -1)" ours)
refuses 'one that has expired' token_expired
KEY=$(token '{"alg":"HS256"}' "$(claims acme 3700)" ours)
refuses 'one that lasts too long' invalid_token
KEY=$(token '{"alg":"none"}' "$(claims)" true)
refuses 'one that wants no signature' invalid_token
KEY=$(token '{"alg":"HS256"}' "$(claims)" openssl dgst -sha256 -hmac "$(<"$RUN/theirs.pem")" -binary)
refuses 'a public key is no secret' invalid_token
KEY=$(token '{"alg":"HS256"}' "$(claims)" openssl dgst -sha256 -hmac guessed -binary)
refuses 'another secret' invalid_token
KEY=$(token '{"alg":"HS256"}' "$(claims gone)" ours)
is 'a tenant that is none' "$(refused call GET $API/usage)" "$(problem 404 unknown_tenant)"
KEY=$TOKEN.x
refuses 'one with more parts' invalid_token
ok 'the log has none of them' not grep -q "${TOKEN:0:40}" "$RUN/shim.log"

cp "$RUN/token.secret" "$RUN/old.secret"
{ openssl rand -hex 32 && cat "$RUN/old.secret"; } >"$RUN/token.secret"
kill -HUP "$(service_pid shim)"
wait_until grep -q '"event":"reloaded"' "$RUN/shim.log"
KEY=$TOKEN
is 'the old secret verifies while it is rolled' "$(call GET $API/usage)" 200
sed -i 1q "$RUN/token.secret"
kill -HUP "$(service_pid shim)"
gone() { [ "$(call GET $API/usage)" = 401 ]; }
ok '… and no longer' wait_until gone

PGUSER=shim shim_start
KEY=$SERVICE
is 'without a secret there are no tokens' "$(refused call POST $API/sessions -H 'X-Tenant-Id: acme')" "$(problem 503 sessions_not_configured)"
KEY=$TOKEN
is '… and none is accepted' "$(call GET $API/usage)" 401
done_testing
