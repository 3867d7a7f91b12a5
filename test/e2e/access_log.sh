#!/usr/bin/env bash
# Usage from an access log: nginx writes it down and syslog-ng ships it, with the configurations in gateway/. Whatever is away, killed,
# rotated or shipped twice meanwhile, each request that was served counts once.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"

cluster_start main pg_billing.rollup_interval=1h
sql 'CREATE EXTENSION pg_billing; SELECT billing.install(); CREATE ROLE shim LOGIN IN ROLE billing_app' >/dev/null
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false), billing.create_subscription(t, 'free') FROM unnest('{acme,bolt}'::text[]) t" >/dev/null
KEY=$(sql "SELECT billing.create_api_key(NULL, '{usage:write}')")
PGUSER=shim shim_start --log-requests
wait_until curl -sf "$SHIM_URL/readyz"
used() { sql "SELECT string_agg(t || ' ' || billing.get_current_usage(t, 'api_calls'), ', ') FROM unnest('{acme,bolt}'::text[]) t"; }
used_is() { [ "$(used)" = "$1" ]; }

app=$(free_port) front=$(free_port) usage=$RUN/logs/usage.log
rm -rf "$RUN/logs"
server_directory "$RUN/logs"
printf 'key-of-%s %s;\n' acme acme bolt bolt gone gone >"$RUN/logs/tenants.conf"
cat >"$RUN/logs/nginx.conf" <<X
daemon off;
pid $RUN/logs/nginx.pid;
error_log $RUN/nginx.errors;
events { worker_connections 512; }
http {
    access_log off;
    $(for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $RUN/logs/$kind;"; done)
    server {
        listen 127.0.0.1:$app;
        location / { return 200 "the app\n"; }
        location /broken { return 500; }
        location /wrong { return 404; }
    }
    $(sed -e "s/127\.0\.0\.1:3000/127.0.0.1:$app/; s/listen 80;/listen 127.0.0.1:$front;/; s|/etc/nginx/|$RUN/logs/|; s|/var/log/nginx/usage.log|$usage|" gateway/nginx-log.conf)
}
X
service_start nginx nginx -p "$RUN/logs" -e "$RUN/nginx.errors" -c "$RUN/logs/nginx.conf"
service_ready nginx curl -s -o /dev/null "http://127.0.0.1:$front/"
visit() { # KEY COUNT [path]
    curl -sS --parallel --parallel-max 8 -H "X-Api-Key: $1" -o /dev/null "http://127.0.0.1:$front/${3:-}?n=[1-$2]" 2>/dev/null
}
ship() { # KEY: starts syslog-ng
    sed -e "s|/var/log/nginx/usage.log|$usage|; s|127.0.0.1:8080|${SHIM_URL#http://}|; s|pgb_…|$1|; s/batch-timeout(1000)/batch-timeout(50)/" gateway/syslog-ng.conf >"$RUN/logs/syslog-ng.conf"
    service_start syslog syslog-ng --foreground --stderr --no-caps --cfgfile="$RUN/logs/syslog-ng.conf" --persist-file="$RUN/logs/persist" \
        --pidfile="$RUN/logs/syslog-ng.pid" --control="$RUN/logs/control"
}

visit key-of-acme 120
visit key-of-bolt 30
visit key-of-acme 7 broken
visit key-of-acme 7 wrong
visit stranger 9
ship pgb_wrong
refused_key() { grep -q "\"status\":401" "$RUN/shim.log"; }
ok 'a wrong key is noticed' wait_until refused_key
service_stop syslog
is 'and nothing is lost by it' "$(used)" 'acme 0, bolt 0'
ship "$KEY"
ok 'what was served counts' wait_until used_is 'acme 120, bolt 30'

visit key-of-gone 3
visit key-of-acme 1
ok 'what no tenant has is left out' wait_until used_is 'acme 121, bolt 30'
ok 'and told' grep -q '"events_rejected".*"count":3,"code":"unknown_tenant"' "$RUN/shim.log"

cluster_stop main
visit key-of-acme 50
visit key-of-bolt 10
kill -9 "$(service_pid syslog)"
mv "$usage" "$usage.1"
nginx -p "$RUN/logs" -e "$RUN/nginx.errors" -c "$RUN/logs/nginx.conf" -s reopen
reopened() { [ -e "$usage" ]; }
wait_until reopened
cluster_up main
wait_until curl -sf "$SHIM_URL/readyz"
cat "$usage.1" >"$RUN/logs/old" # shipped below, once more
ship "$KEY"
visit key-of-bolt 5
ok 'the new file is shipped' wait_until used_is 'acme 121, bolt 35'
service_stop syslog
usage_now=$usage usage=$RUN/logs/old
rm "$RUN/logs/persist"
ship "$KEY"
ok 'and the old one, from its beginning, what it lacks' wait_until used_is 'acme 171, bolt 45'
service_stop syslog

# A rotation while it runs
rm "$RUN/logs/persist"
usage=$usage_now
ship "$KEY"
visit key-of-acme 20
wait_until used_is 'acme 191, bolt 45'
mv "$usage" "$usage.2"
visit key-of-acme 4
nginx -p "$RUN/logs" -e "$RUN/nginx.errors" -c "$RUN/logs/nginx.conf" -s reopen
wait_until reopened
visit key-of-acme 5
ok 'nothing is lost in a rotation, and nothing counts twice' wait_until used_is 'acme 200, bolt 45'

cluster_stop main
visit key-of-bolt 5
unanswered() { grep -q '/api/billing/events","status":503' "$RUN/shim.log"; }
ok 'without a database events are not taken' wait_until unanswered
cluster_up main
ok 'and shipped again until they are' wait_until used_is 'acme 200, bolt 50'
done_testing
