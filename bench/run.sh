#!/usr/bin/env bash
# make bench [ROWS='hot check …']: pg_billing and its peers, side by side on a private server with durable settings.
# Ends with a table of ratios; every figure is in build/bench/bench.json. docs/benchmarks.md explains the rows.
#
#   bench/run.sh [--write-docs] [row…]     --write-docs puts the table into docs/benchmarks.md
#   BENCH_ROUNDS=5 BENCH_SECONDS=4         how many runs of each, and how long
#   BENCH_QUICK=1                          a smaller preload, and without the rows that need 10 M events
set -euo pipefail
cd "$(dirname "$0")/.."

test/setup.sh bench
source test/lib/cluster.sh
source test/lib/services.sh
source test/lib/build.sh
RUN=$BUILD/bench
source bench/measure.sh
source bench/rows.sh

ROUNDS=${BENCH_ROUNDS:-5} SECONDS_EACH=${BENCH_SECONDS:-4}
PRELOAD=${BENCH_PRELOAD:-4000000} SMALL=${BENCH_SMALL:-1000000} LARGE=${BENCH_LARGE:-10000000}
write_docs=
if [ "${1:-}" = --write-docs ]; then
    write_docs=1
    shift
fi
rows=("${ROWS[@]}")
if [ -n "${BENCH_QUICK:-}" ]; then
    PRELOAD=400000
    rows=(hot uniform skew check batch memory)
fi
[ $# -eq 0 ] || rows=("$@")
for row in "${rows[@]}"; do
    declare -F "row_$row" >/dev/null || die "no row $row; there are: ${ROWS[*]}"
done
[ -z "$write_docs" ] || [ "${rows[*]}" = "${ROWS[*]}" ] ||
    die "only a run of all rows is written into docs/benchmarks.md"

step() { printf '%4d s  %s\n' $SECONDS "$*" >&2; }
bench_end() {
    service_stop_all
    cluster_stop_all
}
trap bench_end EXIT

step "building"
build_step extension build_extension
server_directory "$RUN"
: >"$RUN/runs.jsonl"

# A server as one would run it; the rollup runs often, so that our runs pay for the rollup of their own events.
settings=(fsync=on synchronous_commit=on full_page_writes=on shared_buffers=1GB max_wal_size=8GB
    checkpoint_timeout=30min autovacuum=on pg_billing.rollup_interval=2s)
cluster_start main "${settings[@]}"
sql 'CREATE DATABASE ready'
PGDATABASE=ready cluster_psql -f bench/setup.sql

for row in "${rows[@]}"; do
    "row_$row"
done

# description: the machine and the versions, as JSON.
description() {
    jq -n --arg cpu "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" --argjson cores "$(nproc)" \
        --arg memory "$(awk '/^MemTotal/ { printf "%.0f GB", $2 / 1048576 }' /proc/meminfo)" \
        --arg kernel "$(uname -sr)" --arg postgresql "$(sql 'SHOW server_version')" \
        --arg commit "$(git describe --always --dirty --abbrev=12 --exclude '*')" --arg date "$(date -u +%F)" \
        --argjson fsync_ms "$(fsync_ms)" --argjson rounds "$ROUNDS" --argjson seconds "$SECONDS_EACH" \
        --argjson small "$SMALL" --argjson large "$LARGE" --argjson preload "$PRELOAD" \
        --arg settings "${settings[*]}" '$ARGS.named'
}
description >"$RUN/machine.json"
jq -n --slurpfile runs "$RUN/runs.jsonl" --slurpfile machine "$RUN/machine.json" --slurpfile goals bench/goals.json \
    -f bench/report.jq >"$RUN/bench.json"
jq -r -f bench/table.jq "$RUN/bench.json" >"$RUN/table.md"
printf '\n%s\n\nevery run: %s\n' "$(<"$RUN/table.md")" "$RUN/bench.json"
if [ -n "$write_docs" ]; then
    sed -i -e '/^<!-- results -->$/,/^<!-- end of results -->$/ { /^<!--/!d; }' \
        -e "/^<!-- results -->\$/r $RUN/table.md" docs/benchmarks.md
fi
