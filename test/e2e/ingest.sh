#!/usr/bin/env bash
# Ingestion over HTTP: CloudEvents in all modes; posts that are committed together without touching each other; overload,
# a stop, and deaths of shim and server under load.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"
source "$LIB/sessions.sh"

# What was acknowledged would be lost with the server, if the shim took the role's word for how durable a commit is.
cluster_start main pg_billing.database_workers=off fsync=on wal_writer_delay=10s
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
sql 'CREATE ROLE shim LOGIN IN ROLE billing_app' && sql 'ALTER ROLE shim SET synchronous_commit = off'
sql "SELECT billing.create_customer(t, t, 'billing@example.com', stripe => false), billing.create_subscription(t, 'enterprise')
       FROM unnest('{acme,other}'::text[]) t" >/dev/null
ACME=$(sql "SELECT billing.create_api_key('acme')") SERVICE=$(sql 'SELECT billing.create_api_key()')
READER=$(sql "SELECT billing.create_api_key('acme', '{usage:read}')")
PGUSER=shim shim_start
wait_until curl -sf "$SHIM_URL/readyz"
EVENTS=/api/billing/events

## CloudEvents
KEY=$ACME
cloud() { call POST $EVENTS -H "Content-Type: application/cloudevents+json${2:-}" --data-binary "$1"; }
clouds() { call POST $EVENTS -H 'Content-Type: application/cloudevents-batch+json' --data-binary "$1"; }
# binary DATA [header…]: event 7 of /gw in binary mode
binary() {
    local data=$1 headers=()
    shift
    for header; do headers+=(-H "$header"); done
    call POST $EVENTS -H 'Content-Type: application/json' -H 'ce-specversion: 1.0' -H 'ce-id: 7' -H 'ce-source: /gw' \
        -H 'ce-type: llm_tokens' "${headers[@]}" --data-binary "$data"
}
event() { echo "{\"specversion\":\"1.0\",\"id\":\"$1\",\"source\":\"/gw\",\"type\":\"llm_tokens\"${2:-}}"; }
stored() { sql "SELECT tenant_id, metric, quantity, properties FROM billing.usage_events WHERE idempotency_key = '$1'"; }

is 'a CloudEvent is recorded' "$(cloud "$(event 7 ',"data":{"quantity":"2","model":"m"}')" '; charset=utf-8') $(body '[.status, .used] | join(" ")')" \
    '201 recorded 2'
is '… its type as the metric, its data as quantity and properties' "$(stored '/gw 7')" 'acme|llm_tokens|2|{"model": "m"}'
is '… with the state of the quota' "$(header ratelimit-policy)" '"llm_tokens";q=10000000'
is 'source and id are its key, in binary mode, too' "$(binary '{"quantity":9}') $(body .status)" '200 duplicate'
is '… and in a batch' "$(clouds "[$(event 7), $(event 8)]") $(body '[.results[] | .idempotencyKey + " " + .status] | join(", ")')" \
    '200 /gw 7 duplicate, /gw 8 recorded'
is "a tenant's key says whose it is, whatever the subject" "$(cloud "$(event 9 ',"subject":"other"')") $(stored '/gw 9')" \
    '201 acme|llm_tokens|1|'
is 'one that is wrong names the attribute' "$(refused cloud "$(event 10 ',"time":"tomorrow"')")" "$(problem 400 invalid_type time)"
is '… though the database finds it' "$(refused cloud "$(event 10 ',"time":"2001-01-01T00:00:00Z"')")" \
    "$(problem 422 occurred_at_out_of_window time)"
is '… or its header' "$(refused binary '{}' 'ce-time: tomorrow')" "$(problem 400 invalid_type ce-time)"
is 'another format is refused' "$(refused call POST $EVENTS -H 'Content-Type: application/cloudevents+avro' -d x)" \
    "$(problem 415 unsupported_media_type Content-Type)"
is 'a batch is an array' "$(refused clouds "$(event 11)")" "$(problem 400 invalid_type)"
KEY=$SERVICE
is 'for a service the subject is the tenant' "$(cloud "$(event s1 ',"subject":"other"')") $(stored '/gw s1')" '201 other|llm_tokens|1|'
is '… in binary mode, too' "$(binary '' 'ce-subject: other') $(stored '/gw 7' | tail -n 1)" '201 other|llm_tokens|1|'
is '… unless a header names one' "$(call POST $EVENTS -H 'X-Tenant-Id: acme' -H 'Content-Type: application/cloudevents+json' \
    --data-binary "$(event s2 ',"subject":"other"')") $(stored '/gw s2')" '201 acme|llm_tokens|1|'
is 'one without is refused' "$(refused cloud "$(event s3)")" "$(problem 400 tenant_required subject)"
is 'a batch has a result for each' "$(clouds "[$(event s4 ',"subject":"acme"'), $(event s5 ',"subject":"other"'), $(event s6),
    $(event s7 ',"subject":"nobody"'), $(event s8 ',"subject":"acme","data":3'), {\"id\":\"s9\",\"source\":\"/gw\"}, 5]") $(
    body '[.results[] | "\(.ordinal) \(.idempotencyKey) \(.status) \(.code) \(.field)"] | join("\n")')" \
    '200 1 /gw s4 recorded null null
2 /gw s5 recorded null null
3 /gw s6 rejected tenant_required subject
4 /gw s7 rejected unknown_tenant null
5 /gw s8 rejected invalid_type data
6 /gw s9 rejected missing_field specversion
7 null rejected invalid_type null'
is 'a plain array needs a tenant as a whole' "$(refused post $EVENTS '[{"metric":"api_calls"}]')" "$(problem 400 tenant_required X-Tenant-Id)"
KEY=$READER
is 'a batch needs a right to write' "$(refused clouds '[]')" "$(problem 403 insufficient_scope)"

## Posts that wait are committed together
# background NAME KEY JSON: a post whose answer goes to files of that name.
background() {
    rm -f "$RUN/$1".{status,trace} # of an earlier run
    curl -sSv --max-time 60 -o "$RUN/$1.body" -w '%{http_code}' -H "Authorization: Bearer $2" -H 'Content-Type: application/json' \
        --data-binary "$3" "$SHIM_URL$EVENTS" >"$RUN/$1.status" 2>"$RUN/$1.trace" &
    POST[$1]=$!
}
declare -A POST
outcome() { echo "$(<"$RUN/$1.status") $(jq -r "$2" "$RUN/$1.body")"; }
blocked() { [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shim' AND wait_event_type = 'Lock'")" = "$1" ]; }
# taken NAME…: the shim has read these posts: they have left curl, and no byte waits in a socket of the shim's.
taken() {
    local name
    for name; do grep -qs '^} .*bytes data' "$RUN/$name.trace" || return 1; done
    ! ss -Htn "sport = :${SHIM_URL##*:}" | awk '{ print $2 }' | grep -qv '^0$'
}
OTHER=$(sql "SELECT billing.create_api_key('other')") REVOKED=$(sql "SELECT billing.create_api_key('acme', expires_at => now())")
session gate

# Two groups may be under way; both are held up, one after the other.
occupy() {
    ask gate 'BEGIN; LOCK TABLE billing.api_keys'
    background "$1" "$ACME" "{\"metric\":\"api_calls\",\"idempotencyKey\":\"$1\"}"
    wait_until blocked 1
    background "$2" "$ACME" "{\"metric\":\"api_calls\",\"idempotencyKey\":\"$2\"}"
    wait_until blocked 2
}
occupy a1 a2
background g1 "$ACME" '{"metric":"api_calls","quantity":5,"idempotencyKey":"g1"}'
background g2 "$OTHER" '{"metric":"api_calls","quantity":7,"idempotencyKey":"g2"}'
background g3 "$ACME" '{"metric":"nope","idempotencyKey":"g3"}'
background g4 "$REVOKED" '{"metric":"api_calls","idempotencyKey":"g4"}'
background g5 "$ACME" '[{"metric":"api_calls","idempotencyKey":"g5"},{"metric":"api_calls","quantity":-1},{"metric":"api_calls","idempotencyKey":"a1"}]'
background g6 "$READER" '{"metric":"api_calls","idempotencyKey":"g6"}'
background g7 "$SERVICE" '{"metric":"api_calls","idempotencyKey":"g7"}'
wait_until taken g{1..7}
ask gate ROLLBACK
wait "${POST[@]}"
is 'each post has its own answer' "$(outcome g1 .status), $(outcome g2 '"\(.status) \(.used)"')" '201 recorded, 201 recorded 7'
is '… one with an unknown metric' "$(outcome g3 .code)" '422 unknown_metric'
is '… one with a key that has expired' "$(outcome g4 .code)" '401 invalid_api_key'
is '… one that may only read' "$(outcome g6 .code)" '403 insufficient_scope'
is '… one that names no tenant' "$(outcome g7 .code)" '400 tenant_required'
is '… an array' "$(outcome g5 '[.results[] | .status] | join(" ")')" '200 recorded rejected duplicate'
is 'they were committed together' \
    "$(sql "SELECT count(*), count(DISTINCT xmin::text) FROM billing.usage_events WHERE idempotency_key ~ '^g[0-9]'")" '3|1'
is 'those before them alone' "$(sql "SELECT count(DISTINCT xmin::text) FROM billing.usage_events WHERE idempotency_key ~ '^a[0-9]'")" 2

# One of them waits for a key that somebody else has written and not committed.
session writer
ask writer "BEGIN; SELECT FROM billing.record_usage('acme', 'api_calls', 1, 'held')" >/dev/null
occupy b1 b2
background held "$ACME" '{"metric":"api_calls","idempotencyKey":"held"}'
background free "$OTHER" '{"metric":"api_calls","idempotencyKey":"free"}'
wait_until taken held free
ask gate ROLLBACK
wait "${POST[free]}"
is 'who has to wait does not make others wait' "$(outcome free .status)" '201 recorded'
ok '… and waits alone' kill -0 "${POST[held]}"
ask writer COMMIT
wait "${POST[held]}"
is '… for its own answer' "$(outcome held .status)" '200 duplicate'

# A group that fails as a whole is recorded post by post.
sql "ALTER TABLE billing.usage_events ADD CONSTRAINT even CHECK (quantity <> 13)"
occupy c1 c2
background odd "$ACME" '{"metric":"api_calls","quantity":13,"idempotencyKey":"odd"}'
background even "$OTHER" '{"metric":"api_calls","idempotencyKey":"even"}'
wait_until taken odd even
ask gate ROLLBACK
wait "${POST[@]}"
is 'a post that the database cannot take fails alone' "$(outcome odd .code), $(outcome even .status)" '500 internal_error, 201 recorded'
is '… and leaves nothing' "$(sql "SELECT count(*) FROM billing.usage_event_keys WHERE key = billing._event_key('odd')")" 0

## More than may wait is refused
# shim_on_port FLAG…: starts the shim where it was.
shim_on_port() {
    service_start shim "$BUILD/cmake/pg_billing_shim" --listen "${SHIM_URL#http://}" --database "host=$PGHOST dbname=$PGDATABASE user=shim" "$@"
    service_ready shim curl -sf "$SHIM_URL/readyz"
}
sql 'ALTER TABLE billing.usage_events DROP CONSTRAINT even'
service_stop shim
shim_on_port --queue-events 5
KEY=$OTHER
occupy d1 d2
background d3 "$ACME" '[{"metric":"api_calls","idempotencyKey":"d3"},{"metric":"api_calls"},{"metric":"api_calls"}]'
wait_until taken d3
is 'a post beyond the limit is refused' "$(refused post $EVENTS '{"metric":"api_calls"}')" "$(problem 503 unavailable)"
is '… with a time to come back' "$(header retry-after)" 1
ask gate ROLLBACK
wait "${POST[@]}"
is 'what waited is recorded' "$(outcome d1 .status), $(outcome d2 .status), $(outcome d3 '.results | length')" '201 recorded, 201 recorded, 200 3'
is 'and then there is room again' "$(post $EVENTS '{"metric":"api_calls"}')" 201

## SIGTERM
# ends: waits for the end of the shim; whether its exit status is 0.
ends() { wait "$(service_pid shim)"; }
occupy e1 e2
background e3 "$ACME" '{"metric":"api_calls","idempotencyKey":"e3"}'
wait_until taken e3
kill -TERM "$(service_pid shim)"
wait_until grep -q '"event":"stopping"' "$RUN/shim.log"
ok 'a shim that is stopped takes no connection' not curl -s "$SHIM_URL/healthz"
ask gate ROLLBACK
wait "${POST[@]}"
is 'it answers all that it has taken' "$(outcome e1 .status), $(outcome e2 .status), $(outcome e3 .status)" '201 recorded, 201 recorded, 201 recorded'
ok 'and ends well' ends
shim_on_port --drain-seconds 0.2
ask gate 'BEGIN; LOCK TABLE billing.api_keys'
background f1 "$ACME" '{"metric":"api_calls","idempotencyKey":"f1"}'
wait_until blocked 1
kill -TERM "$(service_pid shim)"
ok 'it does not wait for ever' ends
ok '… and says so' grep -q '"event":"stopped_waiting"' "$RUN/shim.log"
wait "${POST[f1]}" || true
is '… nor answers who waits still' "$(<"$RUN/f1.status")" 000    # a statement's own limit would be a 503
ask gate ROLLBACK
shim_on_port

## Deaths under load
# load NAME: 32 clients post INGEST_EVENTS events each, one at a time, and repeat by the same key what was not acknowledged.
each=${INGEST_EVENTS:-100} all=$((32 * each))
load() { node "$LIB/post_usage.mjs" "$SHIM_URL" "$ACME" 32 "$each" "$1" >"$RUN/$1.load" 2>&1; }
recorded() { [ "$(sql "SELECT count(*) FROM billing.usage_events WHERE idempotency_key LIKE '$1-%'")" -ge "$2" ]; }
# exact NAME: each event of that load is there, once.
exact() {
    is "… every event of it counts once" "$(sql "SELECT count(*), count(DISTINCT idempotency_key), sum(quantity) FROM billing.usage_events
        WHERE idempotency_key LIKE '$1-%'")" "$all|$all|$all"
}
before=$(sql "SELECT used FROM billing.check_quota('acme', 'llm_tokens')")
load killed &
client=$!
wait_until recorded killed 500
kill -KILL "$(service_pid shim)"
ok 'it is killed' not ends 2>/dev/null
ok 'the kill came in the middle' not recorded killed $all
shim_on_port
ok 'the clients of a shim that was killed end' wait $client
exact killed
load crashed &
client=$!
wait_until recorded crashed 500
cluster_crash main
cluster_up main
ok 'so do those whose database was restarted' wait $client
exact crashed
ok '… which some of them have met' test "$(jq .failed "$RUN/crashed.load")" -gt 0
ok 'then nothing fails any more' load after
exact after
is '… not once' "$(jq -c '[.recorded, .duplicate, .failed]' "$RUN/after.load")" "[$all,0,0]"
is 'the counter agrees' "$(sql "SELECT used - $before FROM billing.check_quota('acme', 'llm_tokens')")" $((3 * all))

done_testing
