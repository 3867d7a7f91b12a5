# The programs around PostgreSQL (Redis, the sandbox Stripe, the shim) for tests and the demo; sourced after
# cluster.sh. Each runs as the server user in a session of its own, with $RUN/NAME.pid and $RUN/NAME.log.

# service_start NAME COMMAND…: starts a program in the background.
service_start() {
    local name=$1 run=()
    shift
    [ "$(id -u)" != 0 ] || run=(setpriv --reuid postgres --regid postgres --init-groups --)
    service_stop "$name"
    server_directory "$RUN"
    : >"$RUN/$name.log"  # here, not by the background job: what an earlier run left must not be read as its answer
    setsid "${run[@]}" "$@" >>"$RUN/$name.log" 2>&1 </dev/null &
    echo "$! $(started_at $!)" >"$RUN/$name.pid"
}

# When a process started, in ticks since the machine did (proc(5)): a number another process got later is not it.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# service_pid NAME: its process id.
service_pid() { cut -d' ' -f1 "$RUN/$1.pid"; }

# service_running NAME: whether the program that service_start started is alive.
service_running() {
    local pid started
    { read -r pid started <"$RUN/$1.pid"; } 2>/dev/null && [ -n "$started" ] && [ "$(started_at "$pid")" = "$started" ]
}

# service_stop NAME [signal]: stops a program and waits for its end; no error when it is down already.
service_stop() {
    service_running "$1" || return 0
    kill -s "${2:-TERM}" "$(service_pid "$1")"
    wait_until not_running "$1" || kill -s KILL "$(service_pid "$1")"
    rm -f "$RUN/$1.pid"
}
not_running() { ! service_running "$1"; }

# service_ready NAME COMMAND…: waits until the command succeeds; gives up at once when the program has died.
service_ready() {
    local name=$1
    shift
    wait_until died_or "$name" "$@" && service_running "$name" ||
        die "$name did not start: $(tail -n 1 "$RUN/$name.log")"
}
died_or() {
    local name=$1
    shift
    ! service_running "$name" || "$@"
}

service_stop_all() {
    local file
    for file in "$RUN"/*.pid; do
        [ ! -e "$file" ] || service_stop "$(basename "$file" .pid)"
    done
}

# Prints a TCP port nobody listens on, below the range the kernel hands out by itself.
free_port() {
    local port
    while :; do
        port=$((RANDOM % 12000 + 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# redis_start: sets REDIS_URL.
redis_start() {
    local port
    port=$(free_port)
    service_start redis redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --dir /tmp
    service_ready redis redis-cli -p "$port" ping
    REDIS_URL=redis://127.0.0.1:$port
}

# sandbox_start [flags…]: starts the sandbox Stripe; sets SANDBOX_URL and STRIPE_SETTINGS, what a cluster needs to
# use it: cluster_start main "${STRIPE_SETTINGS[@]}".
sandbox_start() {
    local key=$RUN/stripe.key
    service_start sandbox "$BUILD/cmake/stripe_sandbox" --listen 127.0.0.1:0 "$@"
    service_ready sandbox grep -q 'listening on' "$RUN/sandbox.log"
    SANDBOX_URL=http://127.0.0.1:$(sed -n 's/.*listening on .*:\([0-9]*\).*/\1/p' "$RUN/sandbox.log" | head -n 1)
    (umask 077 && echo sk_test_pg_billing >"$key")
    [ "$(id -u)" != 0 ] || chown postgres "$key"
    STRIPE_SETTINGS=("pg_billing.stripe_api_base=$SANDBOX_URL" "pg_billing.stripe_stream_base=http://localhost:${SANDBOX_URL##*:}"
        "pg_billing.stripe_api_key_file=$key")
}

# sandbox METHOD PATH [curl arguments…]: one request to the sandbox Stripe, its answer on stdout; it meets no faults.
sandbox() {
    local method=$1 path=$2
    shift 2
    curl -sS --fail-with-body --max-time 60 -X "$method" -H 'Authorization: Bearer sk_test_pg_billing' \
        -H 'Sandbox-Faults: none' "$SANDBOX_URL$path" "$@"
}

# shim_start [flags…]: starts the HTTP shim on the database in use (PGDATABASE) and, when a sandbox runs, registers
# it for Stripe's webhooks; sets SHIM_URL.
shim_start() {
    local port secret=$RUN/webhook.secret
    port=$(free_port)
    SHIM_URL=http://127.0.0.1:$port
    echo whsec_none >"$secret"
    [ -z "${SANDBOX_URL:-}" ] ||
        sandbox POST /v1/webhook_endpoints -d "url=$SHIM_URL/api/billing/webhooks/stripe" -d 'enabled_events[0]=*' |
        jq -er .secret >"$secret" || die "the sandbox did not register the webhook endpoint"
    service_start shim "$BUILD/cmake/pg_billing_shim" --listen "127.0.0.1:$port" --webhook-secret-file "$secret" \
        --database "host=$PGHOST dbname=$PGDATABASE user=$PGUSER" "$@"
    service_ready shim curl -sf "$SHIM_URL/healthz"
}
