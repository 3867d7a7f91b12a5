-- Credit of a tenant without Stripe: what it pays for, in which order, how it expires, rolls over and is voided; the ledger.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{acme,bolt,cafe}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
CALL attempt($$SELECT billing.grant_credit('acme', 100)$$);
SELECT billing.get_credit_balance('acme');
SELECT FROM unnest('{acme,bolt,cafe}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
CREATE VIEW upcoming AS
    SELECT kind, metric, description, amount FROM billing.get_upcoming_invoice('acme') WHERE amount <> 0;

-- docs/credits.md, the order: priority, then expiry, then age; some only for certain metrics
SELECT billing.grant_credit('acme', 2000, name => 'Prepaid') AS prepaid \gset
SELECT billing.grant_credit('acme', 500, 'usd', 'promotional', expires_at => '2030-03-10', name => 'Welcome') AS welcome \gset
SELECT billing.grant_credit('acme', 300, priority => 10, name => 'Support') AS support \gset
SELECT billing.grant_credit('acme', 600, priority => 0, metrics => '{user_seats}', name => 'Seats') AS seats \gset
SELECT FROM billing.record_usage('acme', 'agent_executions', 5100, 'a') \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1234567, 'b') \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', 27, 'c') \g /dev/null
SELECT name, status, amount, balance, category, priority, metrics, expires_at FROM billing.get_credit_grants('acme');
SELECT billing.get_credit_balance('acme'), billing.get_credit_balance('acme', 'eur');
TABLE upcoming;
SELECT sum(amount) AS due FROM upcoming;
SELECT * FROM billing.get_upcoming_invoice('acme') WHERE kind = 'credit' AND metric = 'llm_tokens';
-- the projection and what explains a line are of the usage itself
SELECT billing.get_projected_cost('acme', 'user_seats'), count(*) FROM billing.explain_invoice_line('acme', 'user_seats') WHERE step = 'line';
-- nothing is spent before the period is over; then once, whoever notices it
CALL travel('20 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT count(*) FROM billing.credit_ledger WHERE kind = 'applied';
CALL travel('8 days');
SELECT kind, metric, amount FROM billing.get_upcoming_invoice('acme') WHERE kind = 'credit';
SELECT FROM billing.run_rollup() \g /dev/null
SELECT FROM billing.run_rollup() \g /dev/null
SELECT date_trunc('hour', at) AS hour, grant_id - :prepaid AS nth, kind, amount, balance, currency, metric, period_start FROM billing.get_credit_ledger('acme');
SELECT name, status, amount, balance FROM billing.get_credit_grants('acme');
-- that period is paid: late usage of it finds no credit
SELECT FROM billing.record_usage('acme', 'agent_executions', 10, 'late', '2030-02-28 11:59+00') \g /dev/null
SELECT FROM billing.run_rollup() \g /dev/null
SELECT billing.get_credit_balance('acme');

-- expiry: at the moment it says, also of what a period in which it was valid might have used
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1100000, 'd') \g /dev/null
SELECT billing.grant_credit('acme', 70, expires_at => '2030-03-31 12:00', name => 'Ends with the period') AS ends \gset
SELECT billing.grant_credit('acme', 50, expires_at => '2030-03-31 12:00:01', name => 'Outlives it by a second') AS outlives \gset
SELECT metric, description, amount FROM billing.get_upcoming_invoice('acme') WHERE kind = 'credit';
CALL travel('31 days 01:00');
SELECT billing.get_credit_balance('acme');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT at, g.name, e.kind, e.amount, e.metric FROM billing.get_credit_ledger('acme') e JOIN billing.get_credit_grants('acme') g USING (grant_id)
 WHERE at > '2030-03-01' ORDER BY name, metric;

-- docs/credits.md, rollover: up to a maximum, for as long as it was valid itself, as often as told
SELECT billing.now() AS began, billing.grant_credit('bolt', 1000, expires_at => billing.now() + interval '10 days', rollover_max => 400,
                                                   rollover_times => 2, name => 'Monthly') AS monthly \gset
SELECT FROM billing.record_usage('bolt', 'agent_executions', 5030, 'a') \g /dev/null
CALL travel('35 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT CASE WHEN metric IS NULL THEN at - date_trunc('second', timestamptz :'began') END AS after, grant_id - :monthly AS nth, kind, amount, balance
  FROM billing.get_credit_ledger('bolt');
SELECT grant_id - :monthly AS nth, status, amount, balance, rolled_over_from - :monthly AS of, rollover_max,
       expires_at - date_trunc('second', timestamptz :'began') AS valid FROM billing.get_credit_grants('bolt') ORDER BY 1;
-- for another time; and where several periods have gone by, in the order of time
SELECT billing.grant_credit('cafe', 1000, expires_at => billing.now() + interval '5 days', rollover_max => 1000, rollover_for => '1 year') AS long \gset
SELECT FROM billing.record_usage('cafe', 'agent_executions', 5012, 'a') \g /dev/null
CALL travel('30 days');
SELECT FROM billing.record_usage('cafe', 'agent_executions', 5007, 'b') \g /dev/null
CALL travel('70 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT grant_id - :long AS nth, kind, amount, balance, metric, period_start FROM billing.get_credit_ledger('cafe');

-- void: the rest, once, with a reason; it neither expires nor rolls over afterwards
SELECT billing.grant_credit('cafe', 80, expires_at => billing.now() + interval '1 day', rollover_max => 80, name => 'Mistake') AS mistake \gset
SELECT FROM billing.void_credit(:mistake, 'granted by mistake') \g /dev/null
SELECT FROM billing.void_credit(:mistake, 'again') \g /dev/null
CALL travel('2 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT kind, amount, reason FROM billing.get_credit_ledger('cafe') WHERE grant_id = :mistake;
SELECT status, balance FROM billing.get_credit_grants('cafe') WHERE grant_id = :mistake;
SELECT action, before ->> 'voided_at' IS NULL AS was_valid, after ->> 'void_reason' AS reason FROM billing.audit_log
 WHERE tenant_id = 'cafe' AND action LIKE '%credit' ORDER BY id;
-- the end of a subscription at once is the end of its period
SELECT FROM billing.record_usage('cafe', 'agent_executions', 5003, 'c') \g /dev/null
SELECT FROM billing.cancel_subscription('cafe', false) \g /dev/null
SELECT kind, amount, metric FROM billing.get_credit_ledger('cafe') WHERE metric IS NOT NULL ORDER BY at DESC LIMIT 1;
-- a pause ends the period, too, and what is used during it costs nothing
SELECT billing.grant_credit('bolt', 900) AS paused \gset
SELECT FROM billing.record_usage('bolt', 'agent_executions', 5020, 'b') \g /dev/null
SELECT FROM billing.pause_subscription('bolt') \g /dev/null
SELECT FROM billing.record_usage('bolt', 'agent_executions', 9000, 'c') \g /dev/null
CALL travel('40 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT FROM billing.resume_subscription('bolt') \g /dev/null
SELECT FROM billing.record_usage('bolt', 'agent_executions', 5003, 'd') \g /dev/null
CALL travel('31 days');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT kind, amount FROM billing.get_credit_ledger('bolt') WHERE grant_id = :paused;
-- one on trial is billed no usage
SELECT FROM billing.grant_credit('acme', 5000, name => 'Trial') \g /dev/null
UPDATE billing.subscriptions SET status = 'trialing' WHERE tenant_id = 'acme';
SELECT FROM billing.record_usage('acme', 'agent_executions', 6000, 'e') \g /dev/null
SELECT current_period_end AS trial_end, current_period_end - billing.now() AS left FROM billing.subscriptions WHERE tenant_id = 'acme' \gset
CALL travel(interval :'left' + '1 hour');
SELECT FROM billing.run_rollup() \g /dev/null
SELECT current_period_start = :'trial_end' AS over, billing.get_credit_balance('acme') FROM billing.subscriptions WHERE tenant_id = 'acme';
UPDATE billing.subscriptions SET status = 'active' WHERE tenant_id = 'acme';
-- a plan whose price makes no sense holds up nobody
BEGIN;
UPDATE billing.price_tiers SET up_to = 1 WHERE plan = 'standard' AND metric = 'user_seats' AND ordinal = 2;
SELECT billing.get_credit_balance('acme');
CALL travel('40 days');
SELECT billing._advance_periods() > 0 AS advanced;
SELECT billing.get_credit_balance('acme');
ROLLBACK;

-- once per key
SELECT billing.grant_credit('acme', 10, idempotency_key => 'k') = billing.grant_credit('acme', 10, idempotency_key => 'k') AS once;
CALL attempt($$SELECT billing.grant_credit('acme', 20, idempotency_key => 'k')$$);
SELECT count(*) FROM billing.get_credit_grants('acme') WHERE amount = 10;

-- the ledger is only added to, the balance never below zero
CALL attempt($$UPDATE billing.credit_ledger SET amount = 1$$);
CALL attempt($$DELETE FROM billing.credit_ledger$$);
CALL attempt($$TRUNCATE billing.credit_ledger$$);
SET session_replication_role = replica;
CALL attempt($$DELETE FROM billing.credit_ledger$$);
RESET session_replication_role;
DO $$ BEGIN
    PERFORM billing._credit_entry('acme', id, 'applied', -5000, billing.now(), 'llm_tokens', '-infinity') FROM billing.credit_grants WHERE name = 'Prepaid';
EXCEPTION WHEN check_violation THEN
    RAISE INFO '%', SQLERRM;
END $$;
SELECT billing._credit_entry('acme', :prepaid, 'applied', -5, at, 'llm_tokens', '2030-01-31 12:00+00') AS again
  FROM billing.credit_ledger WHERE metric = 'llm_tokens' ORDER BY id LIMIT 1;

CALL attempt($$SELECT billing.grant_credit('nobody', 1)$$);
CALL attempt($$SELECT billing.grant_credit('acme', NULL)$$);
CALL attempt($$SELECT billing.grant_credit('acme', 0)$$);
CALL attempt($$SELECT billing.grant_credit('acme', 0.5)$$);
CALL attempt($$SELECT billing.grant_credit('acme', 'NaN')$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, 'USD')$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, category => 'gift')$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, priority => 101)$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, expires_at => '2030-01-01')$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, metrics => '{}')$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, metrics => '{nothing}')$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, rollover_max => 1)$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, expires_at => '2040-01-01', rollover_times => 2)$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, expires_at => '2040-01-01', rollover_max => 1.5)$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, name => '')$$);
CALL attempt($$SELECT billing.grant_credit('acme', 1, idempotency_key => '')$$);
CALL attempt($$SELECT billing.void_credit(0, 'none')$$);
CALL attempt(format($$SELECT billing.void_credit(%s, '')$$, :prepaid));
CALL attempt(format($$SELECT billing.void_credit(%s, 'used up')$$, :seats));
SET pg_billing.tenant_id = 'bolt';
CALL attempt(format($$SELECT billing.void_credit(%s, 'not mine')$$, :prepaid));
CALL attempt($$SELECT billing.get_credit_ledger('acme')$$);
