#!/usr/bin/env bash
# Errors cross the border between C++ and PostgreSQL whole, in both directions, and leave nothing behind.
source "$(dirname "$0")/../lib/e2e.sh"

server_directory "$RUN"
module=$RUN/border.so
ok 'the module builds without a warning' \
    ccache g++ -std=c++20 -O2 -g -fPIC -shared -Wall -Wextra -Werror -Wno-register -Wno-missing-field-initializers \
    -I"$TOP" -isystem "$("$PG_CONFIG" --includedir-server)" -o "$module" "$TOP/test/border/border.cpp"
# Under ASan, too, freed memory is to be free again: its size is compared.
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}quarantine_size_mb=0:thread_local_quarantine_size_kb=0
cluster_start main pg_billing.database_workers=off
cluster_psql <<SQL
CREATE SCHEMA border;
CREATE FUNCTION border.throw(kind text) RETURNS text LANGUAGE c AS '$module', 'border_throw';
CREATE FUNCTION border.sql(statement text) RETURNS text LANGUAGE c AS '$module', 'border_sql';
CREATE FUNCTION border.throw_in_call() RETURNS boolean LANGUAGE c AS '$module', 'border_throw_in_call';
CREATE FUNCTION border.live() RETURNS int LANGUAGE c AS '$module', 'border_live';
CREATE FUNCTION border.pending() RETURNS boolean LANGUAGE c AS '$module', 'border_pending';
CREATE FUNCTION border.memory() RETURNS bigint LANGUAGE c AS '$module', 'border_memory';

-- All of an error that a statement raises, and what it left: witnesses alive, exceptions pending.
CREATE FUNCTION border.error(statement text) RETURNS text LANGUAGE plpgsql AS \$\$
DECLARE
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    -- there and back checks the encoding, of which psql would show whole characters only
    RETURN convert_from(convert_to(concat_ws('|', SQLSTATE, SQLERRM, detail, hint, border.live(), border.pending()),
                                   'UTF8'), 'UTF8');
END \$\$;
CREATE FUNCTION border.raise(message text) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'XY999', MESSAGE = message, DETAIL = 'its detail', HINT = 'its hint', TABLE = 'its_table';
END \$\$;
SQL
error() { sql "SELECT border.error(\$s\$$1\$s\$)"; }

# C++ to PostgreSQL
is 'a Failure becomes an error with its SQLSTATE, message, DETAIL and HINT' \
    "$(error "SELECT border.throw('failure')")" 'XY123|the message|the detail|the hint|0|f'
is 'without DETAIL and HINT it has none, and its text is no format' \
    "$(error "SELECT border.throw('failure, message alone')")" 'XY124|just a message: 100 %s|||0|f'
is 'a long one is cut between characters' \
    "$(error "SELECT border.throw('failure, long')" | sed -E 's/(ü)+/ü…/g')" 'XY125|ü…|ü…|ü…|0|f'
is 'a standard exception is an internal error' "$(error "SELECT border.throw('runtime_error')")" 'XX000|something standard|||0|f'
is 'bad_alloc is out of memory' "$(error "SELECT border.throw('bad_alloc')")" '53200|out of memory|||0|f'
is 'whatever else is thrown, too, is an error' "$(error "SELECT border.throw('int')")" 'XX000|unknown C++ exception|||0|f'
is 'an exception may leave a guarded call itself' "$(sql 'SELECT border.throw_in_call()')" t
is 'after which errors find their way' "$(error 'SELECT border.throw_in_call(), 1 / 0')" '22012|division by zero|||0|f'

# PostgreSQL to C++ and back
is 'what a statement returns comes through' "$(sql "SELECT border.sql('SELECT 6 * 7')")" 42
is 'an error comes through whole, and destructors have run' \
    "$(error "SELECT border.sql(\$\$SELECT border.raise('its message')\$\$)")" 'XY999|its message|its detail|its hint|0|f'
nested=$(sql "SELECT format('SELECT border.sql(%L)', format('SELECT border.sql(%L)', format('SELECT border.sql(%L)',
              'SELECT border.raise(''its message'')')))")
is 'through four borders each way' "$(error "$nested")" 'XY999|its message|its detail|its hint|0|f'
is 'so does an exception of C++ below them' \
    "$(error "SELECT border.sql(\$\$SELECT border.sql('SELECT border.throw(''failure'')')\$\$)")" 'XY123|the message|the detail|the hint|0|f'
is 'and a client sees all of it' \
    "$(cluster_psql -v VERBOSITY=verbose -c "SELECT border.sql(\$\$SELECT border.raise('its message')\$\$)" 2>&1 |
        sed -nE 's/^(ERROR|DETAIL|HINT|TABLE NAME): +//p' | paste -sd'|')" 'XY999: its message|its detail|its hint|its_table'
is 'a session goes on after an error' \
    "$("$PG_BIN/psql" -XqAt -c "SELECT border.sql('SELECT 1 / 0')" -c "SELECT border.sql('SELECT 7'), border.live()" 2>/dev/null)" '7|0'

# Cancellation below C++ frames
endless='WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT 1 FROM r) SELECT count(*) FROM r'
is 'a time-out inside a guarded call is one, and destructors have run' \
    "$(cluster_psql -c "SET statement_timeout = '200ms'" -c "SELECT border.error(\$\$SELECT border.sql('$endless')\$\$)")" \
    '57014|canceling statement due to statement timeout|||0|f'

# Nothing accumulates: ten thousand of each, after a warm-up, in one backend.
cluster_psql -o "$RUN/growth" <<'SQL'
CREATE FUNCTION border.repeat(statement text, times int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. times LOOP
        BEGIN
            EXECUTE statement;
            RAISE 'no error';
        EXCEPTION WHEN SQLSTATE 'XY999' OR SQLSTATE 'XY123' THEN
        END;
    END LOOP;
END $$;
CREATE FUNCTION border.resident() RETURNS bigint LANGUAGE sql AS
    $$SELECT 4096 * split_part(pg_read_file('/proc/self/statm', 0, 100), ' ', 2)::bigint$$;
SELECT border.repeat($$SELECT border.sql('SELECT border.raise(''its message'')')$$, 500) \g /dev/null
SELECT border.repeat($$SELECT border.throw('failure')$$, 500) \g /dev/null
SELECT border.memory() AS memory, border.resident() AS resident \gset
SELECT border.repeat($$SELECT border.sql('SELECT border.raise(''its message'')')$$, 10000) \g /dev/null
SELECT border.repeat($$SELECT border.throw('failure')$$, 10000) \g /dev/null
SELECT border.memory() - :memory, border.resident() - :resident, border.live(), border.pending();
SQL
IFS='|' read -r memory resident live pending <"$RUN/growth"
ok "20,000 errors leave no memory allocated ($memory bytes)" test "$memory" -lt 1000000
ok "the backend does not grow ($resident bytes)" test "$resident" -lt 4000000
is 'no object and no exception is left' "$live $pending" '0 f'

# Below the real hot path: an error while the event is written arrives whole, and the reservation is given back.
cluster_psql <<'SQL' >/dev/null
CREATE EXTENSION pg_billing;
SELECT billing.install();
SELECT billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false);
SELECT billing.create_subscription('acme', 'free');
CREATE FUNCTION border.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'XY777', MESSAGE = 'no tens', DETAIL = 'The quantity is 10.', HINT = 'Use 9.';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON billing.usage_events FOR EACH ROW WHEN (new.quantity = 10)
    EXECUTE FUNCTION border.refuse();
ALTER TABLE billing.usage_events ADD CONSTRAINT no_elevens CHECK (quantity <> 11);
SQL
used() { sql "SELECT (billing.check_quota('acme', 'llm_tokens', 0)).used, billing.get_current_usage('acme', 'llm_tokens')"; }
sql "SELECT billing.record_usage('acme', 'llm_tokens', 5, 'first')" >/dev/null
for verb in record_usage try_consume consume; do
    is "$verb: a trigger's error arrives whole" "$(error "SELECT billing.$verb('acme', 'llm_tokens', 10, 'key')")" \
        'XY777|no tens|The quantity is 10.|Use 9.|0|f'
    like "$verb: a constraint's, too" "$(error "SELECT billing.$verb('acme', 'llm_tokens', 11, 'key')")" \
        '^23514\|new row for relation "usage_events_[0-9]+" violates check constraint "no_elevens"\|Failing row contains '
    is "$verb: the reservation was given back" "$(used)" '5|5'
done
is 'the key was not used up' "$(sql "SELECT status, used FROM billing.record_usage('acme', 'llm_tokens', 9, 'key')")" 'recorded|14'
is 'whoever called is himself again, with his own search_path' "$(cluster_psql <<'SQL'
CREATE ROLE caller;
GRANT billing_app TO caller;
GRANT USAGE ON SCHEMA border TO caller;
SET ROLE caller;
SET search_path = border, public;
BEGIN;
SELECT border.error($$SELECT billing.record_usage('acme', 'llm_tokens', 10)$$) \g /dev/null
SELECT current_user, current_setting('search_path');
COMMIT;
SQL
)" 'caller|border, public'
is 'and the counter is right' "$(used)" '14|14'
done_testing
