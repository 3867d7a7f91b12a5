# What is measured: one function per row, run by name; sourced by run.sh. docs/benchmarks.md explains each of them.

ROWS=(hot uniform skew check batch http rollup crash memory stripe)

## One call at a time, 16 clients

row_hot() {
    redis_start
    consume_row hot try_consume counter_row bare_insert redis_incr
}
row_uniform() { consume_row uniform try_consume counter_row bare_insert; }
row_skew() { consume_row skew try_consume counter_row bare_insert; }

# consume_row PROFILE VARIANT…
consume_row() {
    PROFILE=$1
    fresh_database "$1"
    interleave "$1" tps "${@:2}"
    same "events of the hot tenant and its counter" \
        "SELECT sum(quantity) FROM billing.usage_events WHERE tenant_id = '1001'" \
        "SELECT used FROM billing.check_quota('1001', 'api_calls')"
    same "events and counters of the peer" \
        'SELECT sum(quantity) FROM peer.keyed_events' 'SELECT sum(used) FROM peer.counters'
}
measure_try_consume() { transactions_per_second warm "$PROFILE" key try_consume; }
measure_counter_row() { transactions_per_second "$PROFILE" key counter_row; }
measure_bare_insert() { transactions_per_second "$PROFILE" key bare_insert; }
measure_redis_incr() {
    redis-benchmark -p "${REDIS_URL##*:}" -c 16 --threads 2 -n $((SECONDS_EACH * 50000)) --csv -t incr |
        sed -nE 's/^"INCR","([0-9.]+)".*/\1/p'
}

row_check() {
    fresh_database check_quota
    for PROFILE in hot uniform; do
        interleave "check_$PROFILE" tps select_1 check_quota check_allowed
    done
    interleave check_first µs first_of_tenant
}
measure_select_1() { transactions_per_second "$PROFILE" select_1; }
measure_check_quota() { transactions_per_second warm "$PROFILE" check_quota; }
measure_check_allowed() { transactions_per_second warm "$PROFILE" check_allowed; }
# Milliseconds for 1,000 tenants in a new connection are microseconds for one.
measure_first_of_tenant() { PGUSER=bench_app query_ms "$(<bench/scripts/every_tenant.sql)"; }

## Batches of 1,000 events, one connection

row_batch() {
    fresh_database batch
    preload_keys
    sql "COPY (SELECT * FROM billing.usage_events LIMIT 1000) TO '$RUN/main/events.copy'"
    interleave batch events/s array jsonb bulk_insert on_conflict copy
    same "events and their keys" \
        'SELECT count(*) FROM billing.usage_events' 'SELECT count(*) FROM billing.usage_event_keys'
}
measure_array() { events_per_second warm events_as_arrays batch_array; }
measure_jsonb() { events_per_second warm events_as_jsonb batch_jsonb; }
measure_bulk_insert() { events_per_second events_as_arrays bulk_insert; }
measure_on_conflict() { events_per_second events_as_arrays on_conflict; }
measure_copy() {
    echo "COPY peer.events FROM '$RUN/main/events.copy';" >"$RUN/copy.sql"
    ratio 1000 "$(statement_ms "$RUN/copy.sql")" 1000
}
events_per_second() { ratio 1000 "$(statement_ms "$(script "$@")")" 1000; }

# Fills our table of keys and the peer's with as many of them, and has the events rolled up.
preload_keys() {
    local calls=$((PRELOAD / 2 / 10000))
    step "preloading $PRELOAD keys"
    pgbench -c 2 -j 2 -t $calls -D keyed=1 -f "$(script load_events)" >"$RUN/pgbench.out"
    sql "INSERT INTO peer.keyed_events SELECT * FROM billing.usage_events" >/dev/null
    sql 'SELECT billing.run_rollup()' >/dev/null
    sql 'VACUUM ANALYZE'
    sql 'CHECKPOINT'
}

## The shim: 64 connections of wrk, on the same two processors

row_http() {
    local BUILD=$BUILD/optimized
    export KEY
    OPTIMIZE='-O2 -DNDEBUG' build_step programs build_programs pg_billing_shim
    fresh_database http
    KEY=$(sql "SELECT billing.create_api_key('1001')")
    PGUSER=bench_app shim_start
    wait_until curl -sf "$SHIM_URL/readyz"
    interleave http_ingest tps posts single_calls
    interleave http_check tps http_check constant
    CHECK_RATE=$(jq -s 'map(select(.series == "http_check/http_check").value) | sort | .[length / 2 | floor]' "$RUN/runs.jsonl")
    interleave http_check_half ms p99_of_check
    same "events of the hot tenant and its counter" \
        "SELECT sum(quantity) FROM billing.usage_events WHERE tenant_id = '1001'" \
        "SELECT used FROM billing.check_quota('1001', 'api_calls')"
    service_stop shim
}
measure_posts() { requests_per_second post_usage /api/billing/events; }
measure_single_calls() { transactions_per_second hot key record_usage; }
measure_http_check() { requests_per_second check '/api/billing/check?metric=api_calls'; }
measure_constant() { requests_per_second check /healthz; }
# Each of 64 connections pauses so that they ask for half of what there can be.
measure_p99_of_check() {
    DELAY=$(awk -v rate="$CHECK_RATE" 'BEGIN { printf "%d\n", 64 / (rate / 2) * 1000 + 0.5 }') \
        requests_per_second check '/api/billing/check?metric=api_calls' >"$RUN/rate" || return 1
    sed -n 's/^p99 //p' "$RUN/wrk.out"
}

# requests_per_second SCRIPT PATH: after two seconds that do not count. None may fail.
requests_per_second() {
    wrk -t 2 -c 64 -d 2s -s "bench/scripts/$1.lua" "$SHIM_URL$2" >"$RUN/wrk.out" &&
        wrk -t 2 -c 64 -d "${SECONDS_EACH}s" -s "bench/scripts/$1.lua" "$SHIM_URL$2" >"$RUN/wrk.out" &&
        grep -q '^failed 0$' "$RUN/wrk.out" || return 1
    sed -n 's/^Requests\/sec: *//p' "$RUN/wrk.out"
}

## The rollup, by hand: no worker

row_rollup() {
    rollup_database small "$SMALL"
    rollup_database large "$LARGE"
    workers off
    local round size
    for ((round = 1; round <= ROUNDS; round++)); do
        for size in small large; do
            PGDATABASE=rollup_$size
            per_event "$size/rollup" $round 'SELECT billing.run_rollup()'
            PGOPTIONS="$HASHED -c max_parallel_workers_per_gather=0" per_event "$size/group_by" $round "$GROUP_BY"
            PGOPTIONS=$HASHED per_event "$size/group_by_parallel" $round "$GROUP_BY"
        done
    done
    for size in small large; do
        PGDATABASE=rollup_$size
        same "events and what a rollup folds" 'SELECT count(*) FROM billing.usage_events' 'SELECT billing.run_rollup()'
    done
    workers on
}
# Every sum is computed, but not sent. The planner expects as many groups as events; allowed that much memory it hashes,
# which is best.
HASHED='-c work_mem=2GB'
GROUP_BY="SELECT sum(used)
            FROM (SELECT tenant_id, metric, date_bin('1 hour', occurred_at, 'epoch') AS hour, sum(quantity) AS used
                    FROM billing.usage_events GROUP BY 1, 2, 3) bare"

# per_event SERIES ROUND STATEMENT: microseconds per event.
per_event() {
    local events=$SMALL
    [ "$PGDATABASE" = rollup_small ] || events=$LARGE
    record "rollup_$1" 'µs/event' "$2" "$(ratio "$(query_ms "$3")" "$events" 1000)"
}

# rollup_database NAME EVENTS: a database with that many events of the past day, none of them rolled up.
rollup_database() {
    workers off
    [ "$(sql "SELECT count(*) FROM pg_database WHERE datname = 'rollup_$1'")" = 0 ] || return 0
    fresh_database "rollup_$1"
    step "recording $2 events"
    pgbench -c 2 -j 2 -t $(($2 / 2 / 10000)) -D keyed=0 -f "$(script load_events)" >"$RUN/pgbench.out"
    sql 'VACUUM ANALYZE'
    sql 'CHECKPOINT'
}

# workers on|off, and those that run end first.
workers() {
    cluster_reload main "pg_billing.database_workers=$1"
    [ "$1" = on ] || wait_until -t 120 no_worker
}
no_worker() {
    [ "$(sql "SELECT count(*) FROM pg_stat_activity
               WHERE backend_type IN ('pg_billing rollup', 'pg_billing stripe', 'pg_billing notify')")" = 0 ]
}

## The first check after a crash

row_crash() {
    rollup_database large "$LARGE"
    PGDATABASE=rollup_large
    step "rolling them up, and recording 100,000 more"
    sql 'SELECT billing.run_rollup()' >/dev/null
    pgbench -c 2 -j 2 -t 5 -D keyed=0 -f "$(script load_events)" >"$RUN/pgbench.out"
    local round
    for ((round = 1; round <= ROUNDS; round++)); do
        cluster_restart main immediate
        pgbench -c 1 -t 1 -f "$(script hot check_quota)" >"$RUN/pgbench.out"
        record crash/connection ms $round "$(reported 'initial connection time')"
        record crash/first_check ms $round "$(reported 'latency average')"
    done
    same "events of the hot tenant and its counter" \
        "SELECT sum(quantity) FROM billing.usage_events WHERE tenant_id = '1001'" \
        "SELECT used FROM billing.check_quota('1001', 'api_calls')"
    workers on
}

reported() { sed -nE "s/^$1 = ([0-9.]+) ms.*/\1/p" "$RUN/pgbench.out"; }

## Memory: what a larger pg_billing.max_counters adds to the server's shared memory, all told

row_memory() {
    local few=1000000 many=3000000
    cluster_init memory
    record memory/counter bytes 1 "$(ratio $(($(megabytes $many) - $(megabytes $few))) $((many - few)) 1048576)"
}
megabytes() {
    as_server_user "$PG_BIN/postgres" -D "$RUN/memory/data" -c pg_billing.max_counters="$1" -C shared_memory_size \
        2>/dev/null
}

## Submission to a Stripe that answers in 200 ms and refuses what is above its limit: 100,200 totals of customers, meters
## and hours are due, and how fast they go is measured in windows of 15 s

row_stripe() {
    build_step programs build_programs stripe_sandbox
    submission 100  # Stripe's limit for an account
    submission 1000 # Stripe's limit for meter events
}
submission() {
    local rate=$1 lanes=$(($1 * 2 / 5)) round pid before ticks start
    service_stop sandbox
    sandbox_start --rate "$rate"
    fresh_database "stripe_$rate"
    sql 'SELECT billing.adopt()'    # it is a copy
    step "making 334 subscriptions, and 100 hours of usage of each in 3 metrics"
    # they began five days ago
    cluster_reload main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_rate="$rate" pg_billing.stripe_concurrency=$lanes \
        pg_billing.submit_interval=86400 pg_billing.time_shift=-432000
    wait_until in_the_past
    sql "SELECT billing.create_customer('s' || n, 'S', 's@example.com', stripe => true),
                billing.create_subscription('s' || n, 'standard', 'send_invoice', 30) FROM generate_series(1, 334) n" >/dev/null
    sql "SELECT billing.run_stripe_sync('5 minutes')" >/dev/null
    cluster_reload main pg_billing.time_shift=0
    wait_until in_the_present
    sql "SELECT count(*) FROM (SELECT array_agg('s' || n) t, array_agg(m) m, array_agg(7::numeric) q, array_agg(NULL::text) k,
                array_agg(date_trunc('hour', now()) - make_interval(hours => h)) a
           FROM generate_series(1, 334) n, unnest('{llm_tokens,api_calls,agent_executions}'::text[]) m, generate_series(1, 100) h) e,
         billing.record_usage_batch(e.t, e.m, e.q, e.k, e.a)" >/dev/null
    sql 'SELECT billing.run_rollup()' >/dev/null
    sql 'VACUUM ANALYZE'
    sandbox POST /_sandbox/faults -d '{"fault": "slow", "delay_ms": 200, "times": -1}' >/dev/null
    sql "SELECT billing._wake_worker('stripe')" >/dev/null
    wait_until -t 60 submitting
    pid=$(sql "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_billing stripe' AND datname = current_database()")
    for ((round = 1; round <= ROUNDS; round++)); do
        before=$(submitted) ticks=$(processor_ticks "$pid") start=$EPOCHREALTIME
        sleep 15
        record "stripe_$rate/rate" '/s' $round \
            "$(awk -v n=$(($(submitted) - before)) -v s="$start" -v e="$EPOCHREALTIME" 'BEGIN { printf "%.1f", n / (e - s) }')"
        record "stripe_$rate/cpu" '% of a core' $round \
            "$(awk -v n=$(($(processor_ticks "$pid") - ticks)) -v s="$start" -v e="$EPOCHREALTIME" 'BEGIN { printf "%.1f", n / (e - s) }')"
        record "stripe_$rate/allowed" '/s' $round "$rate"
    done
    step "refused for the rate: $(sandbox GET /_sandbox/state | jq .refused_for_rate)"
    same 'requests that failed and none' "SELECT count(*) FROM billing.stripe_outbox WHERE state = 'failed'" 'SELECT 0'
    cluster_reload main pg_billing.stripe_api_key_file=
    sql "SELECT pg_terminate_backend($pid)" >/dev/null
    export PGDATABASE=postgres
}
in_the_past() { [ "$(sql "SELECT billing.now() < now() - interval '1 hour'")" = t ]; }
in_the_present() { ! in_the_past; }
# hours and, of gauges, figures of the period
submitted() { sql "SELECT count(*) FROM billing.stripe_outbox WHERE kind = 'meter_event' AND state = 'delivered'"; }
submitting() { [ "$(submitted)" -gt 500 ]; }
# user and system time of a process, in hundredths of a second
processor_ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }

# same WHAT QUERY QUERY: both must answer the same, or what was measured is not what it is called.
same() {
    local one other
    one=$(sql "$2") other=$(sql "$3")
    [ -n "$one" ] && [ "$one" = "$other" ] || die "$1 differ: $one, $other"
}
