# Calls of the shim and what came of them; sourced after e2e.sh. KEY is the API key.

# call METHOD PATH [curl arguments…]: prints the status; `body` and `header` show the rest of the answer.
call() {
    local method=$1 path=$2
    shift 2
    curl -sS --max-time 60 -X "$method" -D "$RUN/headers" -o "$RUN/body" -w '%{http_code}' \
        -H "Authorization: Bearer $KEY" "$@" "$SHIM_URL$path"
}
# send METHOD PATH JSON [curl arguments…], post PATH JSON …: the same with a body.
send() {
    local method=$1 path=$2 json=$3
    shift 3
    call "$method" "$path" -H 'Content-Type: application/json' --data-binary "$json" "$@"
}
post() { send POST "$@"; }
body() { jq -r "$1" "$RUN/body"; }
header() { tr -d '\r' <"$RUN/headers" | sed -n "s/^$1: //Ip"; }

# refused CALL…: the status, code and field of a problem; problem STATUS CODE [FIELD]: what it should be.
refused() { echo "$("$@") $(header content-type) $(body '[.code, .field // "-"] | join(" ")')"; }
problem() { echo "$1 application/problem+json $2 ${3:--}"; }
