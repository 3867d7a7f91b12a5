#!/usr/bin/env bash
# Runs pg_billing_proof on a server of its own. Sourced by e2e/proof.sh, and `make proof` when run by itself.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/e2e.sh"

# proof CLIENTS OPTIONS…: one proof, on a new server. There are so few counters that they are evicted all the time, and a
# commit takes its time, so that others come in between what it does before and after.
proof() {
    local clients=$1
    shift
    cluster_start proof pg_billing.rollup_interval=1 "pg_billing.max_counters=$((clients * 12))" \
        fsync=on commit_delay=1000 commit_siblings=1
    sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
    as_server_user "$BUILD/cmake/pg_billing_proof" --database "host=$PGHOST dbname=$PGDATABASE user=$PGUSER" \
        --clients "$clients" --tenants "$((clients * 8))" --restart \
        "'$PG_BIN/pg_ctl' -D '$RUN/proof/data' -l '$RUN/proof/log' -m immediate -w restart >/dev/null" "$@"
}

if [ "$0" = "${BASH_SOURCE[0]}" ]; then
    "$TOP/test/setup.sh" check
    source "$LIB/build.sh"
    trap cluster_stop_all EXIT
    build_step extension build_extension
    build_step program build_programs pg_billing_proof
    proof "$@"
fi
