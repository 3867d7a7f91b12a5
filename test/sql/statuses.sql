-- Every status of Stripe's: what is in force, what is recorded, and how it is left again.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE PROCEDURE becomes(status text, changes jsonb DEFAULT '{}') LANGUAGE sql AS $$
    SELECT billing._apply_subscription(s.tenant_id, answer(s.tenant_id, 'subscription_update', s.id::text, '{}')
                                                    || jsonb_build_object('status', becomes.status) || changes, true)
      FROM billing.subscriptions s WHERE s.ended_at IS NULL
$$;
CREATE VIEW standing AS
    SELECT s.status, s.past_due_since IS NOT NULL AS owes, c.allowed, c.reason, billing.get_effective_plan('acme') AS plan
      FROM billing.subscriptions s, billing.check_quota('acme', 'api_calls') c WHERE s.ended_at IS NULL;
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT * FROM standing;
CALL stripe();
SELECT * FROM standing;

-- past due: the plan's grace counts from the first report, and ends to the moment
CALL becomes('past_due');
SELECT * FROM standing;
SELECT detail LIKE 'plan standard, past_due since %; the plan is kept until %' AS told FROM billing.explain_decision('acme', 'api_calls') WHERE step = 'subscription';
CALL travel('6 days 23 hours 58 minutes');
CALL becomes('past_due');
SELECT * FROM standing;
CALL travel('5 minutes');
SELECT * FROM standing;
SELECT status FROM billing.record_usage('acme', 'api_calls', 1);
-- a plan with a longer grace has it at once, for this debt, too
UPDATE billing.plans SET past_due_grace = '10 days' WHERE name = 'standard';
SELECT * FROM standing;
UPDATE billing.plans SET past_due_grace = '0' WHERE name = 'standard';
SELECT * FROM standing;
-- paid; a later debt has a grace of its own
CALL becomes('active');
SELECT * FROM standing;
UPDATE billing.plans SET past_due_grace = DEFAULT WHERE name = 'standard';
CALL becomes('past_due');
SELECT * FROM standing;

-- unpaid: Stripe has given up collecting; the usage is recorded and submitted all the same
CALL becomes('unpaid');
SELECT * FROM standing;
SELECT status FROM billing.record_usage('acme', 'api_calls', 1);
SELECT billing.run_rollup();
SELECT count(*) FROM billing._stripe_due_hours();
CALL attempt($$SELECT billing.pause_subscription('acme')$$);
CALL becomes('active');
SELECT * FROM standing;

-- incomplete: the first invoice waits for its payment, for a day
CALL becomes('incomplete');
SELECT * FROM standing;
CALL becomes('active');
SELECT * FROM standing;
CALL becomes('incomplete');
CALL becomes('incomplete_expired');
SELECT * FROM standing;
SELECT status, ended_at IS NOT NULL AS ended FROM billing.subscriptions;
SELECT reason FROM billing.check_quota('acme', 'api_calls');
SELECT billing._stripe_plan();

-- then another one may begin
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
SELECT * FROM standing;
CALL becomes('canceled', '{"ended_at": 1896093000}');
SELECT status FROM billing.subscriptions ORDER BY id;
SELECT status, reason FROM billing.check_quota('acme', 'api_calls');
