#!/usr/bin/env bash
# How often callers and addresses may ask, and how many connections an address may hold: what is too much is refused or closed,
# and nobody else notices.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"

cluster_start main
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
sql "CREATE ROLE shim LOGIN IN ROLE billing_app"
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false), billing.create_subscription(t, 'free')
       FROM unnest('{acme,globex,initech}'::text[]) t" >/dev/null
ACME=$(sql "SELECT billing.create_api_key('acme')")
SERVICE=$(sql "SELECT billing.create_api_key()")
# 127.0.0.9 is a proxy, any other address a client of its own. A share is one request, for a thousand seconds.
PGUSER=shim shim_start --tenant-rate 0.001 --address-rate 0.001 --address-connections 3 --trusted-proxy 127.0.0.9
wait_until curl -sf "$SHIM_URL/readyz"

# ask KEY FROM [curl arguments…]: the subscription of the key's tenant.
ask() {
    KEY=$1 call GET /api/billing/subscription --interface "$2" "${@:3}"
}
is 'a tenant asks for its subscription' "$(ask "$ACME" 127.0.0.2)" 200
is 'and then too often' "$(refused ask "$ACME" 127.0.0.3)" "$(problem 429 too_many_requests)"
like 'it is told when to ask again' "$(header retry-after)" '^(1000|9[0-9][0-9])$'
is 'another tenant is not held up' "$(ask "$SERVICE" 127.0.0.4 -H 'X-Tenant-Id: globex')" 200
is 'but one at the same address' "$(refused ask "$SERVICE" 127.0.0.4 -H 'X-Tenant-Id: initech')" "$(problem 429 too_many_requests)"
is 'who makes keys up uses up no tenant' "$(ask pgb_made_up 127.0.0.5 -H 'X-Tenant-Id: initech') $(ask "$SERVICE" 127.0.0.6 -H 'X-Tenant-Id: initech')" '401 200'
ACME=$(sql "SELECT billing.create_api_key('acme')")
is 'behind a proxy the client counts' "$(ask "$ACME" 127.0.0.9 -H 'X-Forwarded-For: 203.0.113.5, 198.51.100.1')" 200
ACME=$(sql "SELECT billing.create_api_key('acme')")
is 'whatever it says itself' "$(ask "$ACME" 127.0.0.9 -H 'X-Forwarded-For: 203.0.113.6, 198.51.100.1')" 429
is 'and who is no proxy is not believed' "$(ask "$ACME" 127.0.0.2 -H 'X-Forwarded-For: 203.0.113.7')" 429

KEY=$ACME
statuses=$(for i in $(seq 20); do
    call GET '/api/billing/check?metric=api_calls' --interface 127.0.0.2
    echo
    post /api/billing/consume '{"metric": "api_calls"}' --interface 127.0.0.2
    echo
done | sort -u | tr '\n' ' ')
is 'usage and quotas are asked as often as there is need' "$statuses" '200 '

# Slow clients: each has sent half a request, and waits.
port=${SHIM_URL##*:}
slow=()
for i in 1 2 3 4; do
    exec {fd}<>"/dev/tcp/127.0.0.1/$port"
    (printf 'GET /healthz HTTP/1.1\r\nHo' >&"$fd") 2>/dev/null || true    # in a process of its own: the pipe may be broken
    slow+=("$fd")
done
is 'the fourth connection of one address is closed' "$(timeout 20 cat <&"${slow[3]}" 2>/dev/null || [ $? -ne 124 ] && echo closed)" closed
printf 'st: shim\r\nConnection: close\r\n\r\n' >&"${slow[0]}"
like 'the others are served in the end' "$(timeout 20 cat <&"${slow[0]}")" '^HTTP/1.1 200'
is 'and other addresses at once' "$(call GET /healthz --interface 127.0.0.2)" 200
done_testing
