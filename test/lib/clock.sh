# Business time of the server in use and a test clock of the sandbox Stripe, moved together; sourced after services.sh.

# clock_to SECONDS: moves both to the same moment (Unix time); they then agree to the second. Sets STRIPE_CLOCK.
# No worker runs meanwhile: what it would send between the two is from Stripe's future.
clock_to() {
    cluster_reload "$CLUSTER" pg_billing.database_workers=off
    wait_until stripe_worker_gone
    cluster_reload "$CLUSTER" "pg_billing.time_shift=$(($1 - $(date +%s)))"
    wait_until clock_reached "$1"
    if [ -z "${STRIPE_CLOCK:-}" ]; then
        STRIPE_CLOCK=$(sandbox POST /v1/test_helpers/test_clocks -d "frozen_time=$1" -d name=test | jq -er .id)
    else
        sandbox POST "/v1/test_helpers/test_clocks/$STRIPE_CLOCK/advance" -d "frozen_time=$1" >/dev/null
        wait_until -t 60 stripe_clock_ready
    fi
    cluster_reload "$CLUSTER" pg_billing.database_workers=on
}
stripe_worker_gone() { [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_billing stripe'")" = 0 ]; }
clock_reached() { [ "$(sql "SELECT abs(extract(epoch FROM billing.now()) - $1) < 30")" = t ]; }
stripe_clock_ready() {
    [ "$(sandbox GET "/v1/test_helpers/test_clocks/$STRIPE_CLOCK" | jq -r .status)" = ready ]
}

sync_stripe() {
    sql "SELECT billing.run_stripe_sync('2 minutes')" >/dev/null
    local refused
    refused=$(sql "SELECT kind || ': ' || error FROM billing.stripe_outbox WHERE state = 'failed' LIMIT 1")
    [ -z "$refused" ] || die "Stripe refuses a request: $refused"
}
# sync_until QUERY: has the worker talk to Stripe until the query answers t.
sync_until() {
    local deadline=$((SECONDS + 120))
    sync_stripe
    until [ "$(sql "$1")" = t ]; do
        [ $SECONDS -lt $deadline ] || die "waited in vain for: $1"
        sync_stripe
    done
}
