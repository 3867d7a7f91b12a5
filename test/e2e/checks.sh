#!/usr/bin/env bash
# Checks of quotas over HTTP: those that wait for the database at the same time are asked in one statement, each with its own answer.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"
source "$LIB/sessions.sh"

cluster_start main pg_billing.database_workers=off track_functions=all
sql 'CREATE EXTENSION pg_billing; SELECT billing.install(); CREATE ROLE shim LOGIN IN ROLE billing_app' >/dev/null
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false), billing.create_subscription(t, 'free'), billing.set_quota(t, 'api_calls', 10, 'hard')
       FROM unnest('{acme,other}'::text[]) t; SELECT billing.record_usage('acme', 'api_calls', 3)" >/dev/null
ACME=$(sql "SELECT billing.create_api_key('acme')") OTHER=$(sql "SELECT billing.create_api_key('other')") SERVICE=$(sql "SELECT billing.create_api_key()")
MAKER=$(sql "SELECT billing.create_api_key('acme', '{usage:read,sessions:create}')") WRITER=$(sql "SELECT billing.create_api_key('acme', '{usage:write}')")
server_directory "$RUN"
printf '%032d\n' 7 >"$RUN/token.secret"
PGUSER=shim shim_start --token-secret-file "$RUN/token.secret"
wait_until curl -sf "$SHIM_URL/readyz"
KEY=$MAKER
post /api/billing/sessions '{"scope": "usage:read"}' >/dev/null
TOKEN=$(body .token)

# background NAME KEY QUERY [curl arguments…]: a check whose answer goes to files of that name.
declare -A CHECK
background() {
    curl -sSv --max-time 60 -o "$RUN/$1.body" -w '%{http_code}' -H "Authorization: Bearer $2" "${@:4}" "$SHIM_URL/api/billing/$3" \
        >"$RUN/$1.status" 2>"$RUN/$1.trace" &
    CHECK[$1]=$!
}
outcome() { echo "$(<"$RUN/$1.status") $(jq -r "$2" "$RUN/$1.body")"; }
blocked() { [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shim' AND wait_event_type = 'Lock'")" = "$1" ]; }
# taken NAME…: the shim has read these requests: they have left curl, and no byte waits in a socket of the shim's.
taken() {
    local name
    for name; do grep -qs '^> GET' "$RUN/$name.trace" || return 1; done
    ! ss -Htn "sport = :${SHIM_URL##*:}" | awk '{ print $2 }' | grep -qv '^0$'
}
called_is() { [ "$(sql "SELECT sum(calls) FROM pg_stat_user_functions WHERE funcname = 'check_quota_requests'")" = "$1" ]; }
session gate

# One group is under way at a time; it is held up.
occupy() {
    ask gate 'BEGIN; LOCK TABLE billing.api_keys'
    background a1 "$ACME" 'check?metric=api_calls'
    wait_until blocked 1
}
occupy
background c1 "$ACME" 'check?metric=api_calls&quantity=7'
background c2 "$ACME" 'check?metric=api_calls&quantity=8'
background c3 "$OTHER" 'check?metric=api_calls'
background c4 "$SERVICE" 'check?metric=api_calls' -H 'X-Tenant-Id: other'
background c5 "$SERVICE" 'check?metric=api_calls'
background c6 "$ACME" 'check?metric=nope'
background c7 "$WRITER" 'check?metric=api_calls'
background c8 "$TOKEN" 'check?metric=api_calls'
background c9 "$ACME" 'gateway/api_calls?quantity=8'
background c10 "$ACME" 'check?metric=api_calls&quantity=-1'
wait_until taken c{1..10}
ask gate ROLLBACK
wait "${CHECK[@]}"
is 'each check has its own answer' "$(outcome c1 '"\(.status) \(.used)"'), $(outcome c2 '"\(.code) \(.decision.used)"'), $(outcome c3 '"\(.status) \(.used)"')" \
    '200 allowed 3, 429 hard_cap 3, 200 allowed 0'
is '… of the tenant that a service names' "$(outcome c4 '"\(.status) \(.used)"')" '200 allowed 0'
is '… or does not' "$(outcome c5 .code)" '400 tenant_required'
is '… of a metric that there is not' "$(outcome c6 .code)" '422 unknown_metric'
is '… of a key that may not' "$(outcome c7 .code)" '403 insufficient_scope'
is '… of a token' "$(outcome c8 '"\(.status) \(.used)"')" '200 allowed 3'
is '… of a gateway' "$(outcome c9 .code)" '429 hard_cap'
is '… of less than nothing' "$(outcome c10 .code)" '422 invalid_quantity'
ok 'they were asked together' wait_until called_is 2     # sessions tell of their calls some seconds later

occupy
background d1 "$ACME" 'check?metric=api_calls'
background d2 "$ACME" 'check?metric=%FF'
background d3 "$OTHER" 'check?metric=api_calls'
wait_until taken d{1..3}
ask gate ROLLBACK
wait "${CHECK[@]}"
is 'what the database cannot read fails alone' "$(outcome d1 .status), $(outcome d2 .code), $(outcome d3 .status)" '200 allowed, 400 invalid_value, 200 allowed'
done_testing
