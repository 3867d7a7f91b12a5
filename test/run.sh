#!/usr/bin/env bash
# Builds pg_billing and runs its tests: test/run.sh [suite…] (default: all), ending with "N passed, N failed".
# Every suite speaks TAP; N counts test cases. A suite that ends badly or runs nothing is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
suites=(e2e checks unit regress isolation ubsan pgtap client)    # the longest first
all=${suites[*]}
[ $# -eq 0 ] || suites=("$@")

[ "${PG_BILLING_ROOT-staged}" = '' ] || test/setup.sh check    # make installcheck takes the machine as it is
source test/lib/sanitizer.sh
source test/lib/cluster.sh
source test/lib/build.sh
PREFIX=    # before the names of tests that a suite runs a second time

# report NAME RESULT [file]: one TAP line; RESULT is the exit status, the file is shown when it is not 0.
report() {
    if [ "$2" -eq 0 ]; then
        echo "ok - $PREFIX$1"
    else
        echo "not ok - $PREFIX$1"
        [ -z "${3:-}" ] || sed 's/^/# /' "$3"
    fi
}

# Each check is a script that prints what breaks its rule; the rule is the second line of the script.
suite_checks() {
    local check result
    for check in test/checks/*.sh; do
        result=0
        bash "$check" >"$RUN/check.out" 2>&1 || result=$?
        report "$(sed -n '2s/^# //p' "$check")" $result "$RUN/check.out"
    done
}

suite_unit() {
    ctest --test-dir "$BUILD/cmake" --output-on-failure -j"$(nproc)" >"$RUN/unit.out" 2>&1 || true
    sed -nE -e 's/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: (.*[^ .]) \.+ +Passed .*/ok - \1/p' \
        -e 's/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: (.*[^ .]) \.*\*\*\*.*/not ok - \1/p' "$RUN/unit.out"
    grep -E 'Failure|^ +(Expected|Actual|Which)' "$RUN/unit.out" | sed 's/^/# /' || true
}

# regress PROGRAM INPUT EXTENSION EXPECTED: one call of pg_regress per file, each in a fresh, empty database.
regress() {
    local program=$PG_LIB/pgxs/src/test/$1 input=$2 extension=$3 expected=$4 file name out
    cluster_start "$(basename "$program")" pg_billing.database_workers=off
    for file in "$input"/*."$extension"; do
        [ -e "$file" ] || continue
        name=$(basename "$file" ".$extension")
        out=$RUN/$(basename "$program").out/$name
        rm -rf "$out"
        server_directory "$out"
        if [ ! -e "$expected/$name.out" ]; then
            report "$name (no expected output $expected/$name.out)" 1
            continue
        fi
        ln -s "$TOP/$expected" "$out/expected"
        wait_until sql 'SELECT 1'    # the last test may have crashed it
        sql "DROP DATABASE IF EXISTS \"$name\"" 2>/dev/null
        sql "CREATE DATABASE \"$name\""
        if as_server_user "$program" --use-existing --bindir="$PG_BIN" --host="$PGHOST" --port=5432 --user=postgres \
            --dbname="$name" --inputdir="$(dirname "$input")" --outputdir="$out" "$name" \
            >"$out/log" 2>&1; then
            report "$name" 0
        else
            cat "$out/regression.diffs" >>"$out/log" 2>/dev/null || true
            report "$name (result: $out/results/$name.out)" 1 "$out/log"
        fi
    done
    cluster_stop "$CLUSTER"
}

# test/sql/X.sql against expected/X.out
suite_regress() { regress regress/pg_regress test/sql sql expected; }

# test/isolation/specs/X.spec against test/isolation/expected/X.out
suite_isolation() { regress isolation/pg_isolation_regress test/isolation/specs spec test/isolation/expected; }

# What sanitizers and assertions said in processes whose end no test noticed; last of the suites of sanitize.sh.
suite_reports() {
    local reported=0
    ! sanitizer_reports "$BUILD/run" >"$RUN/reports" || reported=1
    report 'no sanitizer and no assertion reported anything' $reported "$RUN/reports"
}

# Both again, the extension alone compiled with UBSan: undefined behaviour ends the backend, and fails its test.
suite_ubsan() {
    SANITIZE=undefined PREFIX='ubsan: ' BUILD=$BUILD/ubsan RUN=$BUILD/run
    PG_BILLING_ROOT=$BUILD/root
    server_directory "$RUN"
    build_step extension build_extension
    trap 'cluster_stop_all; suite_reports' EXIT
    suite_regress
    suite_isolation
}

# test/pgtap/X.sql, each in a database where pgtap and pg_billing are created and install() has run.
suite_pgtap() {
    local file name result
    cluster_start pgtap pg_billing.database_workers=off
    sql 'CREATE DATABASE ready'
    PGDATABASE=ready cluster_psql -c 'CREATE EXTENSION pgtap' -c 'CREATE EXTENSION pg_billing' \
        -c 'SELECT billing.install()' >/dev/null
    for file in test/pgtap/*.sql; do
        name=$(basename "$file" .sql) result=0
        sql "CREATE DATABASE \"$name\" TEMPLATE ready"
        pg_prove --verbose --dbname "$name" "$file" >"$RUN/pgtap.out" 2>&1 || result=$?
        sed -nE "s/^(not )?ok [0-9]+( - )?/\1ok - $name: /p; /^#/p" "$RUN/pgtap.out"
        # A wrong plan or a script that died shows only in the status.
        [ $result -eq 0 ] || grep -q '^not ok' "$RUN/pgtap.out" || report "$name" 1 "$RUN/pgtap.out"
    done
    cluster_stop "$CLUSTER"
}

# The official Stripe client against the sandbox Stripe.
suite_client() {
    local client=$BUILD/stripe_client
    mkdir -p "$client"
    cp -r test/e2e/stripe_client/. "$client/"
    (cd "$client" && npm install --no-audit --no-fund --loglevel=error) >"$RUN/npm.out" 2>&1 || {
        report "npm install" 1 "$RUN/npm.out"
        return
    }
    (cd "$client" && SANDBOX="$BUILD/cmake/stripe_sandbox" node --test --test-reporter=tap) >"$RUN/client.out" 2>&1 ||
        true
    # Subtests are indented below their parent; only what has no subtests of its own is a test case.
    awk '/^ *(not )?ok /   { indent = match($0, /[^ ]/); if (indent >= last) { sub(/^ */, ""); print }; last = indent }
         /^ *(error|expected|actual|stack):/ { print "#" $0 }' "$RUN/client.out"
}

# e2e_script SCRIPT: runs one, with its result as TAP in $RUN/e2e/.
e2e_script() {
    local name result=0
    name=$(basename "$1" .sh)
    timeout 600 bash "$1" >"$RUN/e2e/$name.out" 2>&1 || result=$?
    {
        sed -E "s/^(not )?ok [0-9]+ - /\1ok - $name: /" "$RUN/e2e/$name.out"
        [ $result -eq 0 ] || grep -q '^not ok' "$RUN/e2e/$name.out" || report "$name.sh" 1 "$RUN/e2e/$name.out"
        # A script that stopped half way said why on its last lines.
        ! grep -q '^not ok .* ran to its end' "$RUN/e2e/$name.out" || tail -n 6 "$RUN/e2e/$name.out" | sed 's/^/# /'
    } >"$RUN/e2e/$name.tap"
}

# Two scripts at a time: each has servers of its own, and waits for them, most of the time.
suite_e2e() {
    local script
    rm -rf "$RUN/e2e"
    mkdir -p "$RUN/e2e"
    for script in test/e2e/*.sh; do
        while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n || true; done
        e2e_script "$script" &
    done
    wait
    cat "$RUN"/e2e/*.tap
}

server_directory "$RUN"
echo "building"
[ -z "$PG_BILLING_ROOT" ] || build_step extension build_extension
[[ " ${suites[*]} " != *\ @(unit|client|e2e)\ * ]] || build_step programs build_programs

# run_suite SUITE: its result on stdout, how many passed and failed in a file.
run_suite() {
    local suite=$1 log=$RUN/suite-$1.tap started=$SECONDS status good bad
    set +e
    (set -e; trap cluster_stop_all EXIT; "suite_$suite") >"$log" 2>&1
    status=$?
    set -e
    [ $status -eq 0 ] || echo "not ok - suite $suite ran to its end" >>"$log"
    good=$(grep -c '^ok ' "$log" || true) bad=$(grep -c '^not ok ' "$log" || true)
    if [ $((good + bad)) -eq 0 ]; then
        echo "not ok - suite $suite ran no test" >>"$log"
        bad=1
    fi
    echo "$good $bad" >"$RUN/$suite.counts"
    printf '%s\n' "$([ "$bad" -eq 0 ] || grep -A40 '^not ok ' "$log" | grep -v '^ok ' | head -n 200
        echo "$suite: $good passed, $bad failed ($((SECONDS - started)) s)")"
}

# One suite for each processor at a time: the tests wait for conditions, most of the time. `reports` looks at what the
# others have left behind.
for suite in "${suites[@]}"; do
    declare -F "suite_$suite" >/dev/null || die "no suite $suite; there are: $all"
done
rm -f "$RUN"/*.counts
trap 'trap "" TERM; kill -TERM 0; wait; exit 130' INT TERM     # what runs in the background is deaf to an interrupt
for suite in "${suites[@]}"; do
    [ "$suite" != reports ] || wait
    while [ "$(jobs -pr | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
    run_suite "$suite" &
done
wait
passed=0 failed=0
for suite in "${suites[@]}"; do
    read -r good bad <"$RUN/$suite.counts" || die "suite $suite did not run to its end"
    passed=$((passed + good)) failed=$((failed + bad))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
