#!/usr/bin/env bash
# Runs pg_billing_proof on a server of its own. Sourced by e2e/proof.sh, and `make proof` when run by itself.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/e2e.sh"

# proof_start CLIENTS: a server for that many clients. It has so few counters that they are evicted all the time, and a
# commit takes its time, so that others come in between what it does before and after.
proof_start() {
    CLIENTS=$1
    cluster_start proof pg_billing.rollup_interval=1 "pg_billing.max_counters=$((CLIENTS * 12))" \
        fsync=on commit_delay=1000 commit_siblings=1 deadlock_timeout=100ms
}

# proof DATABASE OPTIONS…: one proof, in a new database.
proof() {
    local database=$1
    shift
    sql "CREATE DATABASE $database"
    cluster_psql -d "$database" -c 'CREATE EXTENSION pg_billing' -c 'SELECT billing.install()' >/dev/null
    as_server_user "$BUILD/cmake/pg_billing_proof" --database "host=$PGHOST dbname=$database user=$PGUSER" \
        --clients "$CLIENTS" --tenants "$((CLIENTS * 8))" --restart \
        "'$PG_BIN/pg_ctl' -D '$RUN/proof/data' -l '$RUN/proof/log' -m immediate -w restart >/dev/null" "$@"
}

if [ "$0" = "${BASH_SOURCE[0]}" ]; then
    "$TOP/test/setup.sh" check
    source "$LIB/build.sh"
    trap cluster_stop_all EXIT
    build_step extension build_extension
    build_step program build_programs pg_billing_proof
    proof_start "$1"
    shift
    proof proof "$@"
fi
