-- A rollback refunds usage: of a transaction, of a savepoint, of a PL/pgSQL block; counter, keys and rows alike.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
CREATE VIEW used AS
    SELECT (billing.check_quota('acme', 'user_seats', 0)).used AS counter,
           billing.get_current_usage('acme', 'user_seats') AS rows;

BEGIN;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 3, 'a');
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 1);
ROLLBACK;
SELECT * FROM used;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 1, 'a');
-- an error
BEGIN;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 2);
SELECT 1 / 0;
ROLLBACK;
SELECT * FROM used;
-- savepoints: rolled back, released, nested
BEGIN;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 1, 'b');
SAVEPOINT one;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 1, 'c');
ROLLBACK TO one;
SELECT * FROM used;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 1, 'c');
SAVEPOINT two;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', -1, 'd');
SAVEPOINT three;
SELECT status, used FROM billing.record_usage('acme', 'user_seats', 10, 'e');
RELEASE three;
SELECT * FROM used;
ROLLBACK TO two;
SELECT * FROM used;
RELEASE one;
COMMIT;
SELECT * FROM used;
-- a released savepoint goes with its transaction
BEGIN;
SAVEPOINT one;
SELECT status, used FROM billing.record_usage('acme', 'user_seats', 5);
RELEASE one;
ROLLBACK;
SELECT * FROM used;
-- what is freed and rolled back stays taken
BEGIN;
SELECT status, used FROM billing.record_usage('acme', 'user_seats', -2);
ROLLBACK;
SELECT * FROM used;
BEGIN;
SAVEPOINT one;
SELECT status, used FROM billing.record_usage('acme', 'user_seats', -2);
RELEASE one;
COMMIT;
SELECT * FROM used;

-- exception blocks, many of them, of several tenants, half failing
SELECT FROM generate_series(1, 50) n,
            billing.create_customer('t' || n, 'T', 't@t.example', stripe => false) \g /dev/null
DO $$
BEGIN
    FOR n IN 1 .. 1000 LOOP
        BEGIN
            PERFORM billing.record_usage('t' || (1 + n % 50), 'api_calls', 1, 'n' || n);
            PERFORM billing.record_usage('acme', 'llm_tokens', 1);
            IF n % 2 = 0 THEN
                RAISE EXCEPTION 'never mind';
            END IF;
        EXCEPTION WHEN raise_exception THEN
            PERFORM billing.record_usage('acme', 'agent_executions', 1);
        END;
    END LOOP;
END $$;
SELECT (billing.check_quota('acme', 'llm_tokens', 0)).used AS tokens, (billing.check_quota('acme', 'agent_executions', 0)).used AS executions;
SELECT count(*), sum(quantity) FROM billing.usage_events WHERE metric = 'api_calls';
SELECT min(used), max(used), sum(used)
  FROM generate_series(1, 50) n, billing.record_usage('t' || n, 'api_calls', 0);
SELECT status, count(*) FROM generate_series(1, 1000) n, billing.record_usage('t' || (1 + n % 50), 'api_calls', 1, 'n' || n)
 GROUP BY 1;
-- consume's own refusal
BEGIN;
SELECT status, used FROM billing.consume('acme', 'user_seats', 2);
SAVEPOINT one;
CALL attempt($$SELECT billing.consume('acme', 'user_seats')$$);
ROLLBACK TO one;
SELECT * FROM used;
COMMIT;
SELECT * FROM used;
-- a duplicate leaves the counter as it was, in a transaction that goes on
BEGIN;
SELECT status, used FROM billing.record_usage('acme', 'llm_tokens', 10, 'x');
SELECT status, used FROM billing.record_usage('acme', 'llm_tokens', 10, 'x');
SAVEPOINT one;
SELECT status, used FROM billing.record_usage('acme', 'llm_tokens', 10, 'x');
ROLLBACK TO one;
SELECT status, used FROM billing.record_usage('acme', 'llm_tokens', 10, 'x');
ROLLBACK;
SELECT status, used FROM billing.record_usage('acme', 'llm_tokens', 10, 'x');
-- statements that fail half way refund all of it
SELECT billing.record_usage('acme', 'llm_tokens', n), 100 / (5 - n) FROM generate_series(1, 9) n;
SELECT used FROM billing.check_quota('acme', 'llm_tokens');
-- what a transaction frees it may use itself, as long as it stays freed
SELECT used FROM billing.record_usage('acme', 'user_seats', 0);
SELECT FROM billing.set_quota('acme', 'user_seats', 4) \g /dev/null
BEGIN;
SELECT status, used FROM billing.try_consume('acme', 'user_seats');
SELECT status, used FROM billing.record_usage('acme', 'user_seats', -2);
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 3);
SAVEPOINT one;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 2);
SELECT status, used FROM billing.try_consume('acme', 'user_seats');
SAVEPOINT two;
SELECT status, used FROM billing.record_usage('acme', 'user_seats', -3, 'freed');
SELECT status, used FROM billing.record_usage('acme', 'user_seats', 3);
RELEASE two;
SELECT status, used FROM billing.try_consume('acme', 'user_seats');
SELECT * FROM used;
ROLLBACK TO one;
SELECT * FROM used;
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 2, 'once');
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 2, 'once');
SELECT status, used FROM billing.record_usage('acme', 'user_seats', 2, 'once');
SELECT * FROM used;
COMMIT;
SELECT * FROM used;
SELECT status, used FROM billing.try_consume('acme', 'user_seats');
-- also above a quota that was lowered meanwhile, because the level does not rise
SELECT FROM billing.set_quota('acme', 'user_seats', 1) \g /dev/null
BEGIN;
SELECT status, used FROM billing.record_usage('acme', 'user_seats', -2);
SELECT status, used FROM billing.check_quota('acme', 'user_seats', 3);
SELECT status, used FROM billing.check_quota('acme', 'user_seats', 2);
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 3);
SELECT status, used FROM billing.try_consume('acme', 'user_seats', 2);
SELECT status, used FROM billing.try_consume('acme', 'user_seats');
SELECT * FROM used;
ROLLBACK;
SELECT * FROM used;
