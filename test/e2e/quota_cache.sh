#!/usr/bin/env bash
# The quota cache: what the worker writes to Redis, what gateways decide by it, and that what they let through is recorded once,
# whatever dies in between.
source "$(dirname "$0")/../lib/e2e.sh"

redis_start
redis() { redis-cli -p "${REDIS_URL##*:}" "$@"; }
cluster_start main "pg_billing.redis_url=$REDIS_URL" pg_billing.cache_interval=1h pg_billing.rollup_interval=1h
sql 'CREATE EXTENSION pg_billing; SELECT billing.install()' >/dev/null
refresh() { sql "SELECT billing._request_run('cache', 60000)"; }
field() { redis HGET "q:{$1}:$2" "$3"; }
QUOTA=$(redis -x SCRIPT LOAD <gateway/quota.lua)
# edge TENANT METRIC QUANTITY [check]: the answer in one line
edge() { redis EVALSHA "$QUOTA" 4 "q:{$1}:$2" q:dirty q:alive q:stats "$3" "${4:-consume}" 30 | tr '\n' ' ' | sed 's/ *$//'; }
used() { sql "SELECT billing.get_current_usage('$1', '$2')"; }
# The decision, of which resets_in is some number of seconds.
decision() { edge "$@" | sed -E 's/ [0-9]+$/ T/'; }

sql "SELECT billing.create_customer(t, t, 'a@example.com', stripe => false) FROM unnest('{acme,bolt,free}'::text[]) t" >/dev/null
sql "SELECT billing.set_quota('acme', 'api_calls', 1000), billing.create_subscription('free', 'free')" >/dev/null
sql "SELECT billing.record_usage('acme', 'api_calls', 10), billing.record_usage('free', 'api_calls', 1100),
            billing.record_usage('bolt', 'api_calls'), billing.record_usage('acme', 'llm_tokens', 7)" >/dev/null

is 'what nobody wrote is a question to the database' "$(edge acme api_calls 1)" '-1 missing'
refresh >/dev/null
is 'the worker writes what was used' "$(field acme api_calls u) $(field acme api_calls l)" '10 1000'
is 'the edge decides by it' "$(decision acme api_calls 1 check)" '1 within_quota 1000 989 T'
is 'and a check counts nothing' "$(field acme api_calls d)" ''
is 'a tenant without a subscription is denied' "$(edge bolt api_calls 1 check | cut -d' ' -f1,2)" '0 no_subscription'
is 'a soft cap may be exceeded' "$(decision free api_calls 1 check)" '1 soft_cap_exceeded 1000 0 T'
is 'up to its grace' "$(decision free api_calls 101 check)" '0 upgrade_required 1000 0 T'
is 'a quantity in smaller units than the metric has is not decided here' "$(edge acme api_calls 0.0000001)" '-1 inexact'
is 'nor one that is none' "$(edge acme api_calls many)" '-1 inexact'
ok 'an entry expires some time after its period' test "$(redis TTL 'q:{acme}:api_calls')" -gt 86400

# A cap of 1,000, of which 10 are used, from 32 connections.
redis-benchmark -p "${REDIS_URL##*:}" -c 32 -n 5000 -q EVALSHA "$QUOTA" 4 'q:{acme}:api_calls' q:dirty q:alive q:stats 1 consume 30 >/dev/null
is 'exactly the cap is let through' "$(field acme api_calls d)" 990
is 'and then nothing' "$(decision acme api_calls 1)" '0 hard_cap 1000 0 T'
is 'an entry with usage of its own does not expire' "$(redis TTL 'q:{acme}:api_calls')" -1
is 'of which the ledger knows nothing yet' "$(used acme api_calls)" 10
refresh >/dev/null
is 'until it is drained' "$(used acme api_calls)" 1000
is 'after which the entry has it from the ledger' \
    "$(field acme api_calls u) $(field acme api_calls d) $(field acme api_calls f)" '1000 0 '
is 'and the edge decides the same' "$(decision acme api_calls 1)" '0 hard_cap 1000 0 T'
is 'the database, too' "$(sql "SELECT reason FROM billing.check_quota('acme', 'api_calls')")" hard_cap
refresh >/dev/null
is 'nothing is left to be drained' "$(redis SCARD q:dirty)" 0
is 'hits, misses and denials are counted' \
    "$(sql "SELECT hits > 5000, misses, denials > 4000, hit_rate > 0.99, events_drained, error FROM billing.stat_quota_cache")" 't|3|t|t|1|'

# Changes
sql "SELECT billing.set_quota('acme', 'api_calls', 2000)" >/dev/null
refresh >/dev/null
is 'a changed quota is written' "$(decision acme api_calls 1 check)" '1 within_quota 2000 999 T'
sql "UPDATE billing.plan_metrics SET allowance = 5000 WHERE plan = 'free' AND metric = 'api_calls'"
refresh >/dev/null
is 'so is a changed plan' "$(decision free api_calls 1 check)" '1 within_quota 5000 3899 T'
redis HSET 'q:{acme}:api_calls' v 9007199254740000 >/dev/null
sql "SELECT billing.set_quota('acme', 'api_calls', 1)" >/dev/null
refresh >/dev/null
is 'what is older than what stands is not written' "$(field acme api_calls l)" 2000
redis HSET 'q:{acme}:api_calls' v 0 >/dev/null
sql "SELECT billing.set_quota('acme', 'api_calls', 2000)" >/dev/null
refresh >/dev/null

sql "INSERT INTO billing.metrics (name, kind, display_name, unit, scale, stripe_event_name) VALUES ('gb', 'counter', 'Data', 'GB', 2, 'gb')" >/dev/null
sql "SELECT billing.set_quota('acme', 'gb', 1.5); SELECT billing.record_usage('acme', 'gb', 0.25)" >/dev/null
refresh >/dev/null
is 'decimals are exact' "$(decision acme gb 1.25)" '1 within_quota 1.50 0.00 T'
is '… and so is the cap' "$(decision acme gb 0.01)" '0 hard_cap 1.50 0.00 T'
refresh >/dev/null
is '… and what is drained' "$(used acme gb)" 1.50
sql "SELECT billing.set_quota('acme', 'user_seats', 3); SELECT billing.record_usage('acme', 'user_seats', 2)" >/dev/null
refresh >/dev/null
is 'a level never resets' "$(edge acme user_seats 1)" '1 within_quota 3 0'
sql "SELECT billing.reserve('acme', 'gb', 0.5)" >/dev/null
sql "SELECT billing.set_quota('acme', 'gb', 3); SELECT billing.reserve('acme', 'gb', 0.5)" >/dev/null
refresh >/dev/null
is 'what is reserved is taken' "$(decision acme gb 0 check)" '1 within_quota 3.00 1.00 T'
sql "SELECT billing.set_quota('acme', 'llm_tokens', 100); SELECT billing.record_usage('acme', 'llm_tokens')" >/dev/null
refresh >/dev/null
is 'a cap of the period alone is decided here' "$(decision acme llm_tokens 1 check)" '1 within_quota 100 91 T'
sql "SELECT billing.set_quota('acme', 'llm_tokens', 5, per => 'hour'); SELECT billing.record_usage('acme', 'llm_tokens')" >/dev/null
refresh >/dev/null
is 'a limit per hour is not' "$(edge acme llm_tokens 1)" '-1 missing'

# What was recorded before its entry heard of it
before=$(used acme api_calls)
redis HSET 'q:{acme}:api_calls' f 5 fi lost-1 >/dev/null && redis SADD q:dirty 'q:{acme}:api_calls' >/dev/null
refresh >/dev/null
is 'what an earlier run took is recorded' "$(used acme api_calls)" $((before + 5))
redis HSET 'q:{acme}:api_calls' f 5 fi lost-1 >/dev/null && redis SADD q:dirty 'q:{acme}:api_calls' >/dev/null
refresh >/dev/null
is 'once' "$(used acme api_calls) $(field acme api_calls f)" "$((before + 5)) "

redis SREM q:dirty 'q:{acme}:api_calls' >/dev/null && redis HSET 'q:{acme}:api_calls' d 2 >/dev/null && redis EXPIRE 'q:{acme}:api_calls' 100 >/dev/null
sql "SELECT billing.record_usage('acme', 'api_calls')" >/dev/null
refresh >/dev/null
is 'an entry with something left does not expire' "$(redis TTL 'q:{acme}:api_calls') $(field acme api_calls d)" '-1 2'
redis SADD q:dirty 'q:{acme}:api_calls' >/dev/null && refresh >/dev/null

# Crashes of the server under load: nothing is lost, nothing counted twice.
sql "SELECT billing.create_customer('load', 'load', 'a@example.com', stripe => false), billing.set_quota('load', 'api_calls', NULL),
            billing.record_usage('load', 'api_calls')" >/dev/null
refresh >/dev/null
cluster_configure main pg_billing.cache_interval=1s && cluster_reload main
redis-benchmark -p "${REDIS_URL##*:}" -c 8 -n 300000 -q EVALSHA "$QUOTA" 4 'q:{load}:api_calls' q:dirty q:alive q:stats 1 consume 3600 >/dev/null &
load=$!
drains() { sql 'SELECT events_drained FROM billing.quota_cache_state' 2>/dev/null; }
more_drained() { [ "$(drains)" -gt "$1" ]; }
crashes=0
while kill -0 $load 2>/dev/null; do
    wait_until more_drained "$(drains)"
    cluster_crash main
    cluster_up main
    crashes=$((crashes + 1))
done
wait $load
ok 'the server crashes while the edge lets calls through' test $crashes -gt 1
drained() { refresh >/dev/null && [ "$(field load api_calls d)$(field load api_calls f)" = 0 ]; }
ok 'after crashes all is drained' wait_until drained
is 'each call once' "$(used load api_calls)" 300001
cluster_configure main pg_billing.cache_interval=1h && cluster_reload main

# Redis loses everything
warmed() { sql 'SELECT warmed_at FROM billing.stat_quota_cache'; }
before=$(warmed)
redis FLUSHALL >/dev/null
is 'an empty Redis knows nothing' "$(edge acme api_calls 1 check)" '-1 missing'
refresh >/dev/null
is 'and is filled again' "$(decision acme gb 0 check) $(decision free api_calls 1 check)" \
    '1 within_quota 3.00 1.00 T 1 within_quota 5000 3899 T'
ok '… as a whole' test "$(warmed)" != "$before"
sql "SELECT billing.record_usage('acme', 'api_calls')" >/dev/null
before=$(warmed) version=$(field free api_calls v)
refresh >/dev/null
is 'what does not change is not written again' "$(field free api_calls v) $(warmed)" "$version $before"
service_stop redis
is 'without Redis the database decides as ever' "$(sql "SELECT status FROM billing.try_consume('acme', 'api_calls')")" recorded
refresh >/dev/null
like 'and the operator sees why' "$(sql 'SELECT error FROM billing.stat_quota_cache')" 'cannot reach Redis: Connection refused'

# With a password, on a unix socket, with another prefix
echo 's3cret' >"$RUN/redis.password" && chmod 600 "$RUN/redis.password"
[ "$(id -u)" != 0 ] || chown postgres "$RUN/redis.password"
service_start redis redis-server --port 0 --unixsocket "$RUN/redis.socket" --requirepass s3cret --save '' --dir /tmp
redis() { redis-cli -s "$RUN/redis.socket" --no-auth-warning -a s3cret "$@"; }
service_ready redis redis ping
cluster_configure main "pg_billing.redis_url=unix:$RUN/redis.socket?3" pg_billing.redis_prefix=other: && cluster_reload main
refresh >/dev/null
like 'a wrong password is told' "$(sql 'SELECT error FROM billing.stat_quota_cache')" 'NOAUTH'
cluster_configure main "pg_billing.redis_password_file=$RUN/redis.password" && cluster_reload main
refresh >/dev/null
is 'the right one lets it work' "$(redis -n 3 HGET 'other:{acme}:gb' l) $(sql 'SELECT error FROM billing.stat_quota_cache')" '300 '
is 'the password is in no log' "$(grep -c s3cret "$RUN/main/log")" 0
cluster_configure main pg_billing.redis_url=redis://u:s3cret@localhost && cluster_reload main
refresh >/dev/null
like 'a URL with a password is refused' "$(sql 'SELECT error FROM billing.stat_quota_cache')" 'redis_password_file'
done_testing
