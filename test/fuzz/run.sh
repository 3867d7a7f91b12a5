#!/usr/bin/env bash
# Fuzzes what reads bytes from outside with libFuzzer: test/fuzz/run.sh [libFuzzer's flags…]; a million runs each unless told.
# Begins with the corpus that is kept, and adds to build/fuzz/corpus. `make check` has a short form that needs no clang: the
# unit tests WebhookForgery.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${PG_BILLING_BUILD:-build}/fuzz
flags=("$@")
[ $# -gt 0 ] || flags=(-runs=1000000)

mkdir -p "$OUT"
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }' >"$OUT/probe.cpp"
clang++ -fsanitize=fuzzer "$OUT/probe.cpp" -o "$OUT/probe" 2>/dev/null || {
    echo "fuzz: libFuzzer is missing; install clang with its runtime (Debian: clang, libclang-rt-dev)" >&2
    exit 1
}
# fuzz NAME SOURCES…
fuzz() {
    local name=$1
    shift
    clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. "test/fuzz/$name.cpp" "$@" \
        -lcrypto -o "$OUT/$name"
    mkdir -p "$OUT/corpus/$name"
    echo "fuzzing $name"
    "$OUT/$name" -artifact_prefix="$OUT/" -max_len=4096 -print_final_stats=1 "${flags[@]}" "$OUT/corpus/$name" "test/fuzz/corpus/$name" \
        >"$OUT/$name.log" 2>&1 || { tail -n 30 "$OUT/$name.log" >&2; exit 1; }
    grep -E '^stat::(number_of_executed_units|new_units_added)' "$OUT/$name.log"
}
fuzz signature stripe/signature.cpp
fuzz json shim/json.cpp shim/problem.cpp
fuzz token shim/tokens.cpp shim/secret_file.cpp shim/json.cpp shim/problem.cpp
fuzz post shim/{events,cloud_events,caller,tokens,secret_file,decision,rate_limit,json,problem,http_request}.cpp
fuzz key shim/{caller,tokens,secret_file,json,problem,http_request,throttle,trace}.cpp
