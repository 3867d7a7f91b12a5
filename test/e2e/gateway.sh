#!/usr/bin/env bash
# Gateways: what each asks the shim and what its client gets. nginx, nginx with Lua and Redis, and Caddy are run with the
# configurations in gateway/; for the others what they send is sent by curl.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"

redis_start
cluster_start main "pg_billing.redis_url=$REDIS_URL" pg_billing.cache_interval=1h pg_billing.rollup_interval=1h
sql 'CREATE EXTENSION pg_billing; SELECT billing.install(); CREATE ROLE shim LOGIN IN ROLE billing_app' >/dev/null
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false), billing.create_subscription(t, 'free'), billing.set_quota(t, 'api_calls', 5, 'hard')
       FROM unnest('{acme,bolt,core,dash,edge}'::text[]) t; SELECT billing.set_quota('core', 'api_calls', 1000, 'hard'), billing.set_quota('bolt', 'api_calls', 6, 'hard'); SELECT billing.create_customer('none', 'none', 'a@example.com', stripe => false)" >/dev/null
SERVICE=$(sql "SELECT billing.create_api_key(NULL)") READER=$(sql "SELECT billing.create_api_key(NULL, '{usage:read}')")
PGUSER=shim shim_start
wait_until curl -sf "$SHIM_URL/readyz"
GATEWAY=/api/billing/gateway
used() { sql "SELECT billing.get_current_usage('$1', 'api_calls')"; }

# The address itself
KEY=$SERVICE
ask() { # TENANT ADDRESS [curl arguments…]: the status, X-Quota-Status and X-Quota-Reason
    local tenant=$1 path=$2
    shift 2
    echo "$(call GET "$GATEWAY/$path" -H "X-Tenant-Id: $tenant" "$@") $(header x-quota-status) $(header x-quota-reason)"
}
is 'a request may pass' "$(ask acme api_calls) $(header ratelimit | cut -d';' -f1,2)" '200 200 within_quota "api_calls";r=5'
is 'which counts nothing' "$(used acme)" 0
is 'unless it is to' "$(ask acme 'api_calls?consume=true') $(used acme)" '200 200 within_quota 1'
is 'one question counts once' "$(ask acme 'api_calls?consume=true&quantity=2&key=r1') $(ask acme 'api_calls?consume=true&quantity=2&key=r1') $(used acme)" \
    '200 200 within_quota 200 200 within_quota 3'
is 'any method asks' "$(call DELETE "$GATEWAY/api_calls" -H 'X-Tenant-Id: acme') $(call PUT "$GATEWAY/api_calls" -H 'X-Tenant-Id: acme' -d x) $(call OPTIONS "$GATEWAY/api_calls" -H 'X-Tenant-Id: acme')" '200 200 200'
is 'what is used up is refused' "$(ask acme 'api_calls?quantity=3')" '429 429 hard_cap'
ok '… with when to come again' test "$(header retry-after)" -gt 0
is '… to nginx as 403' "$(ask acme 'api_calls?quantity=3&profile=nginx') $(header ratelimit | cut -d';' -f1,2)" '403 429 hard_cap "api_calls";r=2'
is 'who pays nothing is asked to' "$(ask none api_calls)" '402 402 no_subscription'
is '… by nginx' "$(ask none 'api_calls?profile=nginx')" '403 402 no_subscription'
is 'a tenant that is unknown' "$(ask nobody 'api_calls?profile=nginx')" '403 404 '
is 'no key' "$(KEY=none ask acme 'api_calls?profile=nginx')" '401 401 '
is 'a key that may not count' "$(KEY=$READER ask acme 'api_calls?consume=true')" '403 403 '
is '… may ask' "$(KEY=$READER ask acme api_calls)" '200 200 within_quota'
wrong() { is "$1" "$(refused call GET "$GATEWAY/$2" -H 'X-Tenant-Id: acme')" "$(problem 400 "$3" "$4")"; }
wrong 'an option that is none' 'api_calls?fail=open' unknown_parameter fail
wrong 'one of another kind' 'api_calls?profile=envoy' invalid_value profile
wrong '… or value' 'api_calls?on_error=maybe' invalid_value on_error
wrong 'a flag that is none' 'api_calls?consume=yes' invalid_type consume
is '… is refused by nginx, too' "$(ask acme 'api_calls?profile=nginx&consume=yes')" '403 400 '

# Envoy and Istio ask with the request's own method, path and query behind theirs; Traefik with the address that it has
KEY=$(sql "SELECT billing.create_api_key('bolt', '{usage:write}')")
envoy=$(sed -n 's/.*path_prefix: "\(.*\)"/\1/p' gateway/envoy.yaml) istio=$(sed -n 's/.*pathPrefix: "\(.*\)"/\1/p' gateway/istio.yaml)
is 'Envoy: a request passes' "$(call POST "$envoy/v1/things?quantity=0&consume=false") $(used bolt)" '200 1'
is '… whatever it is for' "$(call GET "$envoy/") $(used bolt)" '200 2'
is '… and whatever id it has' "$(call GET "$envoy/x" -H 'X-Request-Id: e1') $(call GET "$envoy/x" -H 'X-Request-Id: e1') $(used bolt)" '200 200 4'
is 'Istio asks likewise' "$(call GET "$istio/api/v1") $(used bolt)" '200 5'
traefik=$(sed -n 's|.*address: "http://[^/]*\(/.*\)"|\1|p' gateway/traefik.yaml)
is 'Traefik' "$(call GET "$traefik" -H 'X-Forwarded-Uri: /api/v1') $(call GET "$traefik") $(header x-quota-reason) $(used bolt)" '200 429 hard_cap 6'
is 'Envoy: no more passes' "$(call GET "$envoy/x") $(header content-type)" '429 application/problem+json'

# The app behind, and the gateways' configurations with the addresses of here
app=$(free_port) front=$(free_port) shim=${SHIM_URL##*:}
server_directory "$RUN/gateway"
adapted() { # FILE [sed arguments…]
    local file=$1
    shift
    sed -e "s/127\.0\.0\.1:8080/127.0.0.1:$shim/; s/127\.0\.0\.1:3000/127.0.0.1:$app/; s/listen 80;/listen 127.0.0.1:$front;/; s/^:80 /http:\/\/127.0.0.1:$front /" \
        -e "s|/etc/nginx/pg_billing/|$TOP/gateway/|; s|/etc/nginx/|$RUN/gateway/|; s/port = 6379/port = ${REDIS_URL##*:}/" "$@" "gateway/$file"
}
echo "map \"\" \$billing_key { default \"$SERVICE\"; }" >"$RUN/gateway/pg_billing_key.conf"
printf 'key-of-%s %s;\n' core core dash dash edge edge none none >"$RUN/gateway/tenants.conf"
nginx_start() { # FILE [sed arguments…]
    cat >"$RUN/gateway/main.conf" <<X
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off;
pid $RUN/gateway/nginx.pid;
error_log $RUN/nginx.errors;
worker_processes 2;
events { worker_connections 512; }
http {
    access_log off;
    $(for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $RUN/gateway/$kind;"; done)
    server {
        listen 127.0.0.1:$app;
        location / { return 200 "the app\n"; }
        location /api/echo { content_by_lua_block { ngx.req.read_body() ngx.print(ngx.req.get_body_data() or "no body") } }
        location /api/forbidden { return 403 "by the app"; }
    }
    $(adapted "$@")
}
X
    service_start nginx nginx -p "$RUN/gateway" -e "$RUN/nginx.errors" -c "$RUN/gateway/main.conf"
    service_ready nginx curl -s -o /dev/null "http://127.0.0.1:$front/"
}
visit() { # KEY [path [curl arguments…]]: the status that a client gets
    curl -sS --max-time 30 -D "$RUN/headers" -o "$RUN/body" -w '%{http_code}' -H "X-Api-Key: $1" "${@:3}" "http://127.0.0.1:$front/api/${2:-v1}"
}

nginx_start nginx.conf
is 'nginx: a request passes' "$(visit key-of-core) $(<"$RUN/body") $(header ratelimit | cut -d';' -f1,2)" '200 the app "api_calls";r=999'
is '… with its body' "$(visit key-of-core echo -d something) $(<"$RUN/body")" '200 something'
is "… and the app's own refusal" "$(visit key-of-core forbidden) $(<"$RUN/body") $(header ratelimit | cut -d';' -f1,2)" '403 by the app "api_calls";r=997'
is '… and counts' "$(used core)" 3
# pass KEY REQUESTS CONNECTIONS: how many of them got which status
pass() {
    curl -sS --parallel --parallel-max "$3" --max-time 60 -H "X-Api-Key: $1" -w '%{http_code}\n' -o /dev/null "http://127.0.0.1:$front/api/[1-$2]" 2>/dev/null |
        sort | uniq -c | xargs
}
is '… until the quota of 1,000 is used up' "$(pass key-of-core 998 4) $(used core) $(visit key-of-core)" '997 200 1 429 1000 429'
is '… with a problem' "$(header content-type) $(body '.code, .status' | xargs)" 'application/problem+json hard_cap 429'
ok '… and when to come again' test "$(header retry-after)" -gt 0
is 'who does not pay' "$(visit key-of-none) $(body .code)" '402 no_subscription'
is 'who is unknown' "$(visit other)" 401
is 'a client cannot say who it is' "$(curl -sS -o /dev/null -w '%{http_code}' -H 'X-Api-Key: key-of-core' -H 'X-Tenant-Id: dash' "http://127.0.0.1:$front/api/v1")" 429
cluster_stop main
shim_lost() { [ "$(curl -s -o /dev/null -w '%{http_code}' "$SHIM_URL/readyz")" = 503 ]; }
wait_until shim_lost
is 'while the database is away nobody passes' "$(visit key-of-dash) $(body .code)" '503 undecided'
nginx_start nginx.conf -e s/on_error=close/on_error=open/
is '… or everybody, if told to' "$(visit key-of-dash) $(visit key-of-core)" '200 200'
ok '… of which the shim tells' grep -qE '"gateway_undecided","request_id":"[^"]+","trace_id":"[0-9a-f]{32}",.*let through' "$RUN/shim.log"
service_stop shim
nginx_start nginx.conf
is 'without the shim nobody passes' "$(visit key-of-dash) $(body .code)" '503 undecided'
nginx_start nginx.conf -e 's/500 = @closed/500 = @open/'
is '… or everybody' "$(visit key-of-dash)" 200
cluster_up main
PGUSER=shim shim_start
shim=${SHIM_URL##*:}
wait_until curl -sf "$SHIM_URL/readyz"

# nginx with Lua and Redis: exactly the cap, from many connections
sql "SELECT billing.set_quota('edge', 'api_calls', 1000, 'hard'), billing.record_usage('edge', 'api_calls', 1)" >/dev/null
refresh() { sql "SELECT billing._request_run('cache', 60000)" >/dev/null; }
refresh
nginx_start nginx-lua.conf
is 'Lua: from 32 connections exactly the cap passes' "$(pass key-of-edge 1500 32)" '999 200 501 429'
refresh
is '… as the ledger says, too' "$(used edge)" 1000
is 'the last is told' "$(visit key-of-edge) $(body .code) $(header ratelimit | cut -d';' -f1,2)" '429 hard_cap "api_calls";r=0'
is 'what the cache does not know the database decides' "$(visit key-of-dash) $(used dash)" '200 1'
is '… with what is left' "$(header ratelimit | cut -d';' -f1,2)" '"api_calls";r=4'
is 'who does not pay' "$(visit key-of-none) $(body .code)" '402 no_subscription'
service_stop redis
is 'without Redis the database decides' "$(visit key-of-edge) $(body .code) $(visit key-of-dash) $(used dash)" '429 hard_cap 200 2'
service_stop shim
is 'without both nobody passes' "$(visit key-of-dash) $(body .code)" '503 undecided'
nginx_start nginx-lua.conf -e 's/1, "close"/1, "open"/'
is '… or everybody' "$(visit key-of-dash) $(header retry-after)" '200 '
PGUSER=shim shim_start
shim=${SHIM_URL##*:}
wait_until curl -sf "$SHIM_URL/readyz"

# Caddy
front=$(free_port)
adapted Caddyfile -e '/the-key-of-acme/i key-of-dash dash\nkey-of-none none' -e '1i { \nadmin off\n auto_https off \n}' >"$RUN/gateway/Caddyfile"
service_start caddy env "BILLING_KEY=$SERVICE" "HOME=$RUN/gateway" caddy run --adapter caddyfile --config "$RUN/gateway/Caddyfile"
service_ready caddy curl -s -o /dev/null "http://127.0.0.1:$front/"
is 'Caddy: a request passes' "$(visit key-of-dash echo -d something) $(<"$RUN/body") $(header ratelimit | cut -d';' -f1,2)" '200 something "api_calls";r=2'
is '… until the quota is used up' "$(for n in 1 2 3; do visit key-of-dash; echo; done | xargs) $(body .code) $(used dash)" '200 200 429 hard_cap 5'
ok '… and when to come again' test "$(header retry-after)" -gt 0
is 'who does not pay' "$(visit key-of-none) $(body .code)" '402 no_subscription'
is 'who is unknown' "$(visit other)" 401
done_testing
