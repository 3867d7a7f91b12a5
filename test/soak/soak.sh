#!/usr/bin/env bash
# Random life cycles against the sandbox Stripe: model.sql says what may happen, verify.sql what has to be true at the
# end. Sourced by e2e/soak.sh, and `make soak` when run by itself.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/e2e.sh"
source "$LIB/clock.sh"

CLIENTS=3
START=2031-10-29T22:17:00Z      # before month ends of 31, 30 and 29 days, and changes of the clocks in both directions
# Everything that may go wrong with a request, each with its share; together they strike one request in five.
FAULTS=('"429", "retry_after": 1' '"429"' '"409"' '"500"' '"500", "effect": true' '"timeout"' '"timeout", "effect": true'
    '"drop_before"' '"drop_after"' '"slow", "delay_ms": 300')
STORED_FAULTS=('"500", "stored": true' '"500", "stored": true, "effect": true')

# soak SEED TENANTS MONTHS MEAN-HOURS-OF-A-STEP SHARE-OF-TENANTS-ACTIVE-IN-A-STEP: runs it all on a server and a sandbox of its
# own, and prints what differs at the end.
soak() {
    SEED=$1
    local tenants=$2 months=$3 hours=$4 share=$5 step at settled chaos fault
    echo "# seed $SEED: $tenants tenants, $months months"
    sandbox_start --seed "$((16#$(md5sum <<<"$SEED" | head -c 8)))"
    cluster_start soak "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=1 pg_billing.stripe_rate=10000 \
        pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600 max_connections=80
    sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
    # each metric in one mode, but not all in the same
    sql "UPDATE billing.metrics SET export = CASE name WHEN 'api_calls' THEN 'delta' ELSE 'delta_stream' END
          WHERE name IN ('api_calls', 'agent_executions')"
    shim_start
    clock_to "$(date -u -d "$START" +%s)"
    cluster_psql -q -f "$SOAK/model.sql" >/dev/null
    sql "INSERT INTO soak.run VALUES ('$SEED', '$STRIPE_CLOCK', $CLIENTS)"
    sql "CALL soak.set_up($tenants, '$START', timestamptz '$START' + interval '$months months', $hours)"
    for fault in "${FAULTS[@]}"; do inject "$fault" 0.02; done
    for fault in "${STORED_FAULTS[@]}"; do inject "$fault" 0.01; done
    while IFS='|' read -r step at settled chaos <&3; do
        [ "$step" = 0 ] || clock_to "$at"
        sql "CALL soak.plan_step($step, $share)"
        take_step "$step" "$settled" "$chaos"
    done 3<<<"$(sql 'SELECT step, extract(epoch FROM at)::bigint, settled, chaos FROM soak.steps ORDER BY step')"
    finish
    compare
}
inject() { sandbox POST /_sandbox/faults -d "{\"fault\": $1, \"probability\": $2}" >/dev/null; }

# take_step STEP SETTLED CHAOS: what tenants do, from several sessions at once, and what follows from it at Stripe, while
# something is killed.
take_step() {
    local client jobs=() job striker=
    for client in $(seq $CLIENTS); do
        act "$1" "$client" &
        jobs+=($!)
    done
    [ -z "$3" ] || { strike "$1" "$3" & striker=$!; }
    for job in "${jobs[@]}"; do wait "$job" || die "step $1 failed: $(cat "$RUN"/act.*.log)"; done
    [ "$2" = f ] || settle
    [ -z "$striker" ] || wait $striker || die "step $1: nothing was killed"
    wait_until sql 'SELECT 1'
    [ "$2" = f ] || cards "$1"
    [ $(($1 % 25)) -ne 0 ] || echo "# step $1: $(sql "SELECT to_char(billing.now(), 'YYYY-MM-DD HH24:MI')"), $((SECONDS - BEGAN)) s"
}

# act STEP CLIENT: the session's actions, each a transaction of its own; what a broken connection left undone is done anew.
act() {
    local status deadline=$((SECONDS + 120))
    while :; do
        status=0
        echo "SELECT format('SELECT soak.perform(%s)', id) FROM soak.actions
               WHERE step = $1 AND client = $2 AND outcome IS NULL ORDER BY id \gexec" |
            PGAPPNAME=soak cluster_psql >"$RUN/act.$2.log" 2>&1 || status=$?
        [ $status != 0 ] || return 0
        [ $status = 2 ] && [ $SECONDS -lt $deadline ] || return 1      # 2: the connection broke
        wait_until sql 'SELECT 1' || return 1
    done
}

# persist STATEMENT: its result, even if the server is killed meanwhile.
persist() {
    local result deadline=$((SECONDS + 60))
    until result=$(sql "$1" 2>"$RUN/persist.log"); do
        [ $SECONDS -lt $deadline ] || die "in vain: $1: $(<"$RUN/persist.log")"
        wait_until sql 'SELECT 1'
    done
    echo "$result"
}

# strike STEP CHAOS: at some moment kills the stripe worker, amid its requests if there are any, or a session, or stops the
# server at once.
strike() {
    local done
    done=$(persist "SELECT ceil(count(*) * soak.rnd('strike $1')) FROM soak.actions WHERE step = $1")
    wait_until -t 60 true_in_sql "(SELECT count(outcome) FROM soak.actions WHERE step = $1) >= $done"
    case $2 in
    worker)
        wait_until -t 1 true_in_sql "EXISTS (SELECT FROM billing.stripe_outbox WHERE state = 'sending')" 2>/dev/null || true
        wait_until -t 1 killed "backend_type = 'pg_billing stripe'" 2>/dev/null || true
        ;;
    backend) wait_until -t 1 killed "application_name = 'soak'" 2>/dev/null || true ;;
    server)
        cluster_crash soak
        cluster_up soak
        ;;
    esac
}
true_in_sql() { [ "$(sql "SELECT $1")" = t ]; }
killed() { kill -9 "$(sql "SELECT pid FROM pg_stat_activity WHERE $1 LIMIT 1")"; }

# settle: rolls up, and has the worker talk to Stripe until there is nothing left to say.
settle() {
    local deadline=$((SECONDS + 300))
    persist 'SELECT billing.run_rollup()' >/dev/null
    until [ "$(sandbox GET /_sandbox/pending | jq .deliveries)" = 0 ] && [ "$(persist 'SELECT soak.quiet()')" = t ]; do
        [ $SECONDS -lt $deadline ] ||
            die "Stripe is not done: $(sql "SELECT kind, subject, state, attempts, error FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending') LIMIT 5")"
        persist "SELECT billing._request_run('stripe', 20000)" >/dev/null
    done
}

# cards STEP: customers who pay by card have one; now and then it is declined for some time. What is open is then paid.
cards() {
    local customer card invoice
    while IFS='|' read -r customer card <&4; do
        [ -n "$customer" ] || continue
        sandbox POST "/v1/customers/$customer" -d "invoice_settings[default_payment_method]=$card" >/dev/null
        [ "$card" = pm_card_visa ] || continue
        for invoice in $(sandbox GET "/v1/invoices?customer=$customer&status=open&limit=100" | jq -r '.data[].id'); do
            sandbox POST "/v1/invoices/$invoice/pay" >/dev/null
        done
    done 4<<<"$(sql "SELECT * FROM soak.turn_cards($1)")"
    settle
}

# finish: no more faults; a month and more passes, so that whatever was used is billed.
finish() {
    local now
    sandbox DELETE /_sandbox/faults >/dev/null
    settle
    now=$(sql 'SELECT extract(epoch FROM max(at))::bigint FROM soak.steps')
    for days in 11 22 33; do
        clock_to $((now + days * 86400))
        settle
    done
}

# compare: loads what Stripe has, and prints all that differs; also to $RUN/differences.
compare() {
    local kind
    cluster_psql -q -f "$SOAK/verify.sql" >/dev/null
    for kind in customer subscription invoice price; do
        load "$kind" "/_sandbox/objects?kind=$kind" '.[]'
    done
    load request /_sandbox/requests '.[]'
    load hour /_sandbox/state '.meters | to_entries[] | .key as $metric | .value.customers // {} | to_entries[] |
        .key as $customer | .value.hours // {} | to_entries[] | {$metric, $customer, hour: .key, value}'
    sql 'CALL soak.take_stock()'
    sql 'SELECT * FROM soak.summary'
    sql "SELECT format('%s: %s: expected %s, found %s', what, which, coalesce(expected, 'none'), coalesce(found, 'none'))
           FROM soak.differences" >"$RUN/differences"
    head -n 40 "$RUN/differences" | sed 's/^/# /'
}
# load KIND PATH FILTER: the objects that the filter finds in the sandbox's answer.
load() {
    sandbox GET "$2" | jq -c "$3" | sed 's/\\/\\\\/g; s/^/'"$1"'\t/' | cluster_psql -c 'COPY soak.loaded (kind, doc) FROM STDIN'
}

SOAK=$TOP/test/soak BEGAN=$SECONDS
if [ "$0" = "${BASH_SOURCE[0]}" ]; then
    "$TOP/test/setup.sh" check
    source "$LIB/build.sh"
    trap 'service_stop_all; cluster_stop_all' EXIT
    build_step extension build_extension
    build_step programs build_programs stripe_sandbox pg_billing_shim
    soak "${1:-$RANDOM$RANDOM}" 200 12 30 0.12
    [ ! -s "$RUN/differences" ] || die "$(wc -l <"$RUN/differences") differences"
fi
