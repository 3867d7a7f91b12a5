# Test results as TAP ("ok 1 - name", "not ok 2 - name"); sourced. A script ends with done_testing, and counts as
# failed when it ends without.

TAP_COUNT=0 TAP_FAILED=0 TAP_DONE=
TAP_OUTPUT=$(mktemp)

# ok NAME COMMAND…: passes when the command succeeds; shows its output when not.
ok() {
    local name=$1
    shift
    TAP_COUNT=$((TAP_COUNT + 1))
    if "$@" >"$TAP_OUTPUT" 2>&1; then
        echo "ok $TAP_COUNT - $name"
        return 0
    fi
    TAP_FAILED=$((TAP_FAILED + 1))
    echo "not ok $TAP_COUNT - $name"
    echo "#   failed: $*"
    tail -n 40 "$TAP_OUTPUT" | sed 's/^/#   /'
}

# not COMMAND…: succeeds when the command fails.
not() { ! "$@"; }

# is NAME GOT EXPECTED: passes when both are the same text.
is() {
    TAP_COUNT=$((TAP_COUNT + 1))
    if [ "$2" = "$3" ]; then
        echo "ok $TAP_COUNT - $1"
        return 0
    fi
    TAP_FAILED=$((TAP_FAILED + 1))
    echo "not ok $TAP_COUNT - $1"
    sed 's/^/#   /' <<<"     got: $2
expected: $3"
}

# like NAME GOT REGEX: passes when the text matches the extended regular expression.
like() {
    TAP_COUNT=$((TAP_COUNT + 1))
    if [[ $2 =~ $3 ]]; then
        echo "ok $TAP_COUNT - $1"
        return 0
    fi
    TAP_FAILED=$((TAP_FAILED + 1))
    echo "not ok $TAP_COUNT - $1"
    sed 's/^/#   /' <<<"     got: $2
expected to match: $3"
}

done_testing() {
    TAP_DONE=1
    echo "1..$TAP_COUNT"
    [ $TAP_FAILED -eq 0 ]
}

# The last line of a script that stopped half way.
tap_end() {
    rm -f "$TAP_OUTPUT"
    [ -n "$TAP_DONE" ] || echo "not ok $((TAP_COUNT + 1)) - $(basename "$0") ran to its end"
}
