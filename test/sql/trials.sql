-- Trials: quotas at once, nothing billed, an end that may be moved, and the first period that begins with it.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{acme,bolt,nemo}'::text[]) t, billing.create_customer(t, t, 'a@a.example', 'Europe/Berlin', stripe => false) \g /dev/null
CREATE VIEW acme AS
    SELECT s.plan, s.status, s.anchor, s.current_period_start, s.current_period_end, s.trial_start, s.trial_end
      FROM billing.subscriptions s WHERE s.tenant_id = 'acme' ORDER BY s.id;

-- days by the tenant's calendar: the second falls behind the change to summer time
SELECT FROM billing.create_subscription('acme', 'standard', trial_days => 14) \g /dev/null
SELECT FROM billing.create_subscription('bolt', 'standard', trial_days => 60) \g /dev/null
SELECT * FROM acme;
SELECT trial_end FROM billing.get_subscription('bolt');
SELECT allowed, quota, resets_at FROM billing.check_quota('acme', 'api_calls');
SELECT status FROM billing.try_consume('acme', 'api_calls', 150000);
-- usage of a trial costs nothing; the fee of the first period is due at its end
SELECT billing.get_overage('acme', 'api_calls'), billing.get_overage_cost('acme', 'api_calls'), billing.get_projected_cost('acme');
SELECT metric, description, amount, period_start, period_end FROM billing.get_upcoming_invoice('acme');

-- an end to come is moved, to a whole hour
SELECT billing.end_trial('acme', '2030-02-20 09:15+00');
SELECT * FROM acme;
SELECT resets_at FROM billing.check_quota('acme', 'api_calls');
CALL attempt($$SELECT billing.end_trial('acme', '2032-01-31 13:00+00')$$);
CALL attempt($$SELECT billing.end_trial('nemo')$$);
CALL attempt($$SELECT billing.create_subscription('nemo', 'standard', trial_days => 0)$$);
CALL attempt($$SELECT billing.create_subscription('nemo', 'standard', trial_days => 731)$$);
CALL attempt($$SELECT billing.create_subscription('nemo', 'standard', trial_days => 7, trial_end => '2030-02-20')$$);
CALL attempt($$SELECT billing.create_subscription('nemo', 'standard', trial_end => '2030-01-31 11:00+00')$$);
CALL attempt($$SELECT billing.create_subscription('nemo', 'standard', trial_days => 7, missing_payment_method => 'barter')$$);
CALL attempt($$SELECT billing.create_subscription('nemo', 'standard', payment_behavior => 'barter')$$);

-- it ends to the moment, whether a rollup runs or not; late usage of the trial stays the trial's
SELECT trial_end - billing.now() - interval '10 minutes' AS before_its_end FROM acme \gset
CALL travel(:'before_its_end');
SELECT used FROM billing.check_quota('acme', 'api_calls');
CALL travel('15 minutes');
SELECT used, resets_at FROM billing.check_quota('acme', 'api_calls');
SELECT FROM billing.record_usage('acme', 'api_calls', 7, occurred_at => '2030-02-20 09:59+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'api_calls', 100100) \g /dev/null
SELECT billing.run_rollup();
SELECT * FROM acme;
SELECT period_start, period_end, quantity FROM billing.get_usage_history('acme', 'api_calls', 2);
SELECT billing.get_overage_cost('acme', 'api_calls'), billing.get_overage_cost('acme', 'api_calls', 'previous');
SELECT metric, quantity, amount FROM billing.get_upcoming_invoice('acme') WHERE amount > 0;
CALL attempt($$SELECT billing.end_trial('acme')$$);

-- at once: the first period begins with this hour
SELECT FROM billing.record_usage('bolt', 'api_calls', 5) \g /dev/null
SELECT billing.end_trial('bolt');
SELECT status, anchor, current_period_start, trial_end BETWEEN billing.now() - interval '1 minute' AND billing.now() AS ended_now
  FROM billing.subscriptions WHERE tenant_id = 'bolt';
SELECT status, used FROM billing.try_consume('bolt', 'api_calls', 2);
SELECT billing.get_current_usage('bolt', 'api_calls', 'previous');
-- of one that ends in its first hour nothing is left
SELECT FROM billing.create_subscription('nemo', 'standard', trial_days => 7) \g /dev/null
SELECT FROM billing.record_usage('nemo', 'api_calls', 3) \g /dev/null
SELECT billing.end_trial('nemo');
SELECT status, trial_start, current_period_end - current_period_start AS period FROM billing.subscriptions WHERE tenant_id = 'nemo';
SELECT used FROM billing.check_quota('nemo', 'api_calls');
-- one that is canceled ends with the trial
SELECT billing.cancel_subscription('nemo', false);
SELECT FROM billing.create_subscription('nemo', 'standard', trial_days => 7) \g /dev/null
SELECT billing.cancel_subscription('nemo');
CALL travel('8 days');
SELECT reason FROM billing.check_quota('nemo', 'api_calls');
SELECT billing.run_rollup();
SELECT status, ended_at = trial_end AS ended_with_it FROM billing.subscriptions WHERE tenant_id = 'nemo' ORDER BY id DESC LIMIT 1;
SELECT action, count(*) FROM billing.audit_log WHERE tenant_id IN ('acme', 'bolt') GROUP BY 1 ORDER BY 1;
