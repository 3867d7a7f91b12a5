# Builds everything into $BUILD; sourced after cluster.sh. The extension is staged in $PG_BILLING_ROOT, from where private
# servers load it: no right on the system's directories is needed, and nothing installed there is disturbed.

# build_extension: pg_billing.so, pg_billing_worker.so and the SQL script. With SANITIZE set (see the Makefile) from a
# copy of the sources, since PGXS leaves its objects beside them and those of two kinds must not mix.
build_extension() {
    local source=$TOP
    if [ -n "${SANITIZE:-}" ]; then
        source=$BUILD/source
        rm -rf "$source"
        mkdir -p "$source"
        tar -C "$TOP" --exclude='*.[od]' -c Makefile pg_billing.control extension worker stripe notify sql | tar -C "$source" -x
    fi
    make -C "$source" -j"$(nproc)" --no-print-directory PG_CONFIG="$PG_CONFIG" CXX='ccache g++' \
        SANITIZE="${SANITIZE:-}" all
    rm -rf "$PG_BILLING_ROOT"
    make -C "$source" --no-print-directory PG_CONFIG="$PG_CONFIG" CXX='ccache g++' \
        SANITIZE="${SANITIZE:-}" DESTDIR="$PG_BILLING_ROOT" install
}

# build_programs [target…]: the programs CMake builds (all unless told). Compiled lightly: Boost and JSON at -O2 -g take
# more than twice as long, and no test times them; OPTIMIZE says otherwise. Of sanitizers they get ASan alone: UBSan takes Boost minutes a file.
build_programs() {
    local flags=
    [[ ${SANITIZE:-} != *address* ]] || flags=-fsanitize=address
    cmake -S "$TOP" -B "$BUILD/cmake" -G Ninja -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
        -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="${OPTIMIZE:--O1}" \
        -DCMAKE_CXX_FLAGS="$flags"
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
