# How things are measured; sourced by run.sh. Each figure is a line of $RUN/runs.jsonl: its series (ROW/VARIANT), round,
# value and unit.
#
# Variants of a row take turns (A B C A B C …), so that what disturbs the machine for a while disturbs all of them.
# Every run begins with new connections, whose first two seconds are not counted.

# interleave ROW UNIT VARIANT…: calls measure_VARIANT, which prints one number, BENCH_ROUNDS times each.
interleave() {
    local row=$1 unit=$2 round variant value
    shift 2
    for ((round = 1; round <= ROUNDS; round++)); do
        for variant; do
            value=$("measure_$variant") || die "$row/$variant could not be measured"
            record "$row/$variant" "$unit" "$round" "$value"
        done
    done
}

# record SERIES UNIT ROUND VALUE
record() {
    [[ $4 =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "$1 is no number: $4"
    printf '{"series":"%s","unit":"%s","round":%d,"value":%s}\n' "$1" "$2" "$3" "$4" >>"$RUN/runs.jsonl"
    printf '%4d s  %-28s round %d %14.2f %s\n' $SECONDS "$1" "$3" "$4" "$2" >&2
}

# pgbench FLAG…: as the application's role, over the socket; its report on stdout.
pgbench() {
    "$PG_BIN/pgbench" -U bench_app -n -M prepared "$@" 2>&1 ||
        { echo "pgbench failed: $*" >&2 && return 1; }
}

# script PART…: one pgbench script out of files in bench/scripts; prints its name.
script() {
    local file=$RUN/$(IFS=-; echo "$*").sql part
    for part; do cat "$TOP/bench/scripts/$part.sql"; done >"$file"
    echo "$file"
}

# transactions_per_second PART…: of 16 clients at once.
transactions_per_second() {
    # progress: 2.0 s, 9512.4 tps, lat … once a second, but perhaps not at the very end
    pgbench -c 16 -j 2 -P 1 -T $((SECONDS_EACH + 3)) -D warm=0 -f "$(script "$@")" >"$RUN/pgbench.out" || return 1
    awk -v n="$SECONDS_EACH" '/^progress: / && ++second > 2 && second <= n + 2 { sum += $4 }
        END { printf "%.1f\n", sum / n }' "$RUN/pgbench.out"
}

# statement_ms FILE: the mean latency of a script's last statement, the only one that is timed, on one connection.
statement_ms() {
    pgbench -c 1 -r -T "$SECONDS_EACH" -D warm=0 -f "$1" >"$RUN/pgbench.out" || return 1
    awk '/^statement latencies/ { found = 1; next } found { last = $1 } END { print last }' "$RUN/pgbench.out"
}

# query_ms STATEMENT: how long it takes, in a transaction that is rolled back: the next round finds the same tables.
query_ms() {
    cluster_psql -c 'BEGIN' -c '\timing on' -c "$1" -c '\timing off' -c 'ROLLBACK' |
        sed -nE 's/^Time: ([0-9.]+) ms.*/\1/p'
}

# ratio A B SCALE: A / B * SCALE.
ratio() { awk -v a="$1" -v b="$2" -v scale="$3" 'BEGIN { printf "%.4f\n", a / b * scale }'; }

# fresh_database NAME: a copy of what setup.sql made, in use from now on.
fresh_database() {
    export PGDATABASE=postgres
    sql "DROP DATABASE IF EXISTS $1" 2>"$RUN/drop.log"
    sql "CREATE DATABASE $1 TEMPLATE ready"
    PGDATABASE=$1
    sql 'CHECKPOINT'
}

# A durable write of 8 kB, in milliseconds: what every commit here waits for at least.
fsync_ms() {
    local start=$EPOCHREALTIME
    as_server_user dd if=/dev/zero of="$RUN/fsync" bs=8k count=500 oflag=dsync status=none
    awk -v start="$start" -v end="$EPOCHREALTIME" 'BEGIN { printf "%.3f\n", (end - start) * 1000 / 500 }'
    rm -f "$RUN/fsync"
}
