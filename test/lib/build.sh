# Builds everything into $BUILD; sourced after cluster.sh. The extension is staged in $PG_BILLING_ROOT, from where private
# servers load it: no right on the system's directories is needed, and nothing installed there is disturbed.

# build_extension: pg_billing.so, pg_billing_worker.so and the SQL script.
build_extension() {
    make -C "$TOP" -j"$(nproc)" --no-print-directory PG_CONFIG="$PG_CONFIG" CXX='ccache g++' all
    rm -rf "$PG_BILLING_ROOT"
    make -C "$TOP" --no-print-directory PG_CONFIG="$PG_CONFIG" CXX='ccache g++' DESTDIR="$PG_BILLING_ROOT" install
}

# build_programs [target…]: the programs CMake builds (all unless told). Compiled lightly: Boost and JSON at -O2 -g take
# more than twice as long, and nothing here is timed.
build_programs() {
    cmake -S "$TOP" -B "$BUILD/cmake" -G Ninja -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
        -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1
    cmake --build "$BUILD/cmake" ${1:+--target "$@"}
}

# build_step NAME COMMAND…: runs a build with its output in a log, shown only when it fails.
build_step() {
    local name=$1 log=$BUILD/build-$1.log
    shift
    mkdir -p "$BUILD"
    "$@" >"$log" 2>&1 || {
        grep -E -A3 'error|Error|FAILED' "$log" | head -n 40 >&2
        die "building the $name failed; all of it is in $log"
    }
}
