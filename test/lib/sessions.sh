# Sessions that stay open from one statement to the next; sourced after e2e.sh.

declare -A SESSION_IN SESSION_OUT

# session NAME: opens a psql on the server in use, with NAME as its application_name.
session() {
    local in out
    rm -f "$RUN/$1.in" "$RUN/$1.out"
    mkfifo "$RUN/$1.in" "$RUN/$1.out"
    PGAPPNAME=$1 stdbuf -oL "$PG_BIN/psql" -XqAt <"$RUN/$1.in" >"$RUN/$1.out" 2>&1 &
    exec {in}>"$RUN/$1.in" {out}<"$RUN/$1.out"
    SESSION_IN[$1]=$in SESSION_OUT[$1]=$out
}

# tell NAME STATEMENT: has the session execute it, and goes on.
tell() { printf '%s;\n\\echo END\n' "$2" >&"${SESSION_IN[$1]}"; }

# answer NAME: waits for the result, errors included, and prints it.
answer() {
    local line
    while IFS= read -r line <&"${SESSION_OUT[$1]}" && [ "$line" != END ]; do
        echo "$line"
    done
}

# ask NAME STATEMENT: has the session execute it and prints the result.
ask() {
    tell "$@"
    answer "$1"
}
