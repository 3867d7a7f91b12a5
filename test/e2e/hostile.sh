#!/usr/bin/env bash
# Requests that mean harm: SQL in every field of every operation, bodies of a hundred megabytes, and answers that must not tell.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/http.sh"

cluster_start main pg_billing.database_workers=off log_min_messages=error log_error_verbosity=verbose log_line_prefix='%m [%p] %u %e '
sql 'CREATE EXTENSION pg_billing; SELECT billing.install(); CREATE ROLE shim LOGIN IN ROLE billing_app' >/dev/null
sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false), billing.create_subscription(t, 'standard'), billing.record_usage(t, 'api_calls', 7)
       FROM unnest('{acme,globex}'::text[]) t" >/dev/null
KEY=$(sql "SELECT billing.create_api_key(NULL, '{usage:read,usage:write,subscription:read,subscription:write,sessions:create,metrics:read}')")
printf '%032d\n' 7 >"$RUN/token.secret"
server_directory "$RUN"
PGUSER=shim shim_start --token-secret-file "$RUN/token.secret" --tenant-rate 0 --wait-seconds 1
wait_until curl -sf "$SHIM_URL/readyz"

schema() { "$PG_BIN/pg_dump" --schema-only --no-comments postgres | grep -v '^\\' | md5sum; }
# What no request of acme's may change.
others() {
    sql "SELECT billing.get_current_usage('globex', 'api_calls'), (SELECT count(*) FROM billing.api_keys), (SELECT count(*) FROM billing.billing_customers),
                (SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles), (SELECT plan || status FROM billing.subscriptions WHERE tenant_id = 'globex')"
}
before=$(schema) others=$(others)
statuses=$(node "$LIB/hostile.mjs" "$SHIM_URL" "$KEY" acme 2>"$RUN/wrong") || true
is 'SQL in every field is refused, or taken for the text that it is' "$(<"$RUN/wrong")" ''
like 'there were requests of all kinds' "$statuses" '"200":[0-9]{3}.*"400":[0-9]{4}.*"422":'
is 'the database is as it was' "$(schema)" "$before"
is 'and so is what others have' "$(others)" "$others"
ok 'none of it was parsed as SQL' not grep -E ' (42601|42P01|42703|XX[0-9A-Z]{3}) ' "$(cluster_log)"
ok 'nor logged' not grep -E 'DROP TABLE|create_api_key' "$RUN/shim.log"

# Large bodies, announced and not: refused, and not kept in memory
used_memory() { sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$(service_pid shim)/status"; }
flood() { # the status of a post of 100 MB, with these arguments of curl
    head -c 100000000 /dev/zero | curl -sS -o "$RUN/body" -D "$RUN/headers" -w '%{http_code}' -X POST -H "Authorization: Bearer $KEY" -H 'X-Tenant-Id: acme' -H 'Content-Type: application/json' -H 'Expect:' "$@" "$SHIM_URL/api/billing/events" 2>/dev/null || true
}
memory=$(used_memory)
is 'a body of 100 MB' "$(flood --data-binary @-) $(body .code)" '413 body_too_large'
is '… that does not say how long it is' "$(flood -T - -H 'Transfer-Encoding: chunked') $(body .code)" '413 body_too_large'
flood -T - -H 'Transfer-Encoding: chunked' >/dev/null &
other=$!
flood --data-binary @- >/dev/null
wait $other
ok "takes no memory to speak of (was $memory kB, is $(used_memory) kB)" test "$(used_memory)" -lt $((memory + 20000))
is 'and harms no other request' "$(call GET /api/billing/usage -H 'X-Tenant-Id: acme')" 200
done_testing
