-- Changes of plan, cancellations and resumptions of subscriptions that are not billed through Stripe.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{acme,bolt,nemo}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
CREATE VIEW acme AS
    SELECT s.plan, s.status, s.anchor, s.current_period_end, s.cancel_at_period_end AS ends, s.ended_at
      FROM billing.subscriptions s WHERE s.tenant_id = 'acme' ORDER BY s.id;

-- another plan: its quotas hold for the usage of the whole period, which stays what it is
SELECT FROM billing.record_usage('acme', 'api_calls', 900) \g /dev/null
SELECT billing.run_rollup();
SELECT FROM billing.record_usage('acme', 'api_calls', 50) \g /dev/null
SELECT billing.update_subscription('acme', 'enterprise');
SELECT * FROM acme;
SELECT used, quota, cap, resets_at FROM billing.check_quota('acme', 'api_calls');
SELECT period_start, quota, cap, used FROM billing.usage_quotas WHERE tenant_id = 'acme' AND metric = 'api_calls';
SELECT quota FROM billing.check_quota('acme', 'user_seats');
BEGIN;
SELECT billing.update_subscription('acme', 'free');
ROLLBACK;
SELECT quota FROM billing.check_quota('acme', 'api_calls');
SELECT billing.update_subscription('acme', 'free');
SELECT status, used, quota, cap FROM billing.try_consume('acme', 'api_calls', 250);
SELECT status, reason, used FROM billing.try_consume('acme', 'api_calls', 1);
SELECT billing.run_rollup();
SELECT billing.get_current_usage('acme', 'api_calls');
-- an upgrade opens it again; the same plan once more is no change
SELECT billing.update_subscription('acme', 'standard', 'none');
SELECT billing.update_subscription('acme', 'standard', 'always_invoice');
SELECT status, used FROM billing.try_consume('acme', 'api_calls', 1);
SELECT proration_behavior FROM billing.subscriptions WHERE tenant_id = 'acme';

CREATE TABLE audited AS SELECT count(*) FROM billing.audit_log;
INSERT INTO billing.plans (name, display_name, price, interval_months) VALUES ('yearly', 'Yearly', 99000, 12);
INSERT INTO billing.plans (name, display_name, price, currency) VALUES ('euro', 'Euro', 9900, 'eur');
CALL attempt($$SELECT billing.update_subscription('acme', 'platinum')$$);
CALL attempt($$SELECT billing.update_subscription('acme', NULL)$$);
CALL attempt($$SELECT billing.update_subscription('acme', 'free', 'some')$$);
CALL attempt($$SELECT billing.update_subscription('acme', 'free', NULL)$$);
CALL attempt($$SELECT billing.update_subscription('acme', 'yearly')$$);
CALL attempt($$SELECT billing.update_subscription('acme', 'euro')$$);
CALL attempt($$SELECT billing.update_subscription('nemo', 'free')$$);
CALL attempt($$SELECT billing.cancel_subscription('nemo')$$);
CALL attempt($$SELECT billing.resume_subscription('nemo')$$);
CALL attempt($$SELECT billing.update_subscription('nobody', 'free')$$);
SET pg_billing.tenant_id = 'nemo';
CALL attempt($$SELECT billing.update_subscription('acme', 'free')$$);
CALL attempt($$SELECT billing.cancel_subscription('acme')$$);
CALL attempt($$SELECT billing.resume_subscription('acme')$$);
RESET pg_billing.tenant_id;
SELECT count(*) - (SELECT count FROM audited) AS audited_meanwhile FROM billing.audit_log;

-- an end with the period can be taken back; both change nothing when there is nothing to change
SELECT billing.cancel_subscription('acme');
SELECT billing.cancel_subscription('acme', NULL);
SELECT * FROM acme;
SELECT billing.resume_subscription('acme');
SELECT billing.resume_subscription('acme');
SELECT ends, ended_at, (SELECT canceled_at FROM billing.subscriptions WHERE tenant_id = 'acme') FROM acme;
SELECT action, count(*) FROM billing.audit_log WHERE action ~ '^(cancel|resume)' GROUP BY 1 ORDER BY 1;

-- it lasts until the period is over, to the moment, whether a rollup runs or not
SELECT billing.cancel_subscription(t) FROM unnest('{acme,bolt}'::text[]) t \g /dev/null
SELECT current_period_end - billing.now() - interval '10 minutes' AS before_its_end FROM acme \gset
CALL travel(:'before_its_end');
SELECT status FROM billing.check_quota('acme', 'api_calls');
SELECT billing.run_rollup();
SELECT plan FROM billing.get_subscription('acme');
CALL travel('15 minutes');
SELECT status, reason FROM billing.check_quota('acme', 'api_calls');
SELECT status, reason FROM billing.check_quota('acme', 'storage_gb');
SELECT * FROM billing.get_subscription('acme');
CALL attempt($$SELECT billing.resume_subscription('acme')$$);
CALL attempt($$SELECT billing.update_subscription('acme', 'free')$$);
SELECT billing.create_subscription('acme', 'free') > 0 AS created;
SELECT * FROM acme;
SELECT status, used FROM billing.try_consume('acme', 'api_calls', 1);
SELECT status FROM billing.subscriptions WHERE tenant_id = 'bolt';
SELECT billing.run_rollup();
SELECT status, current_period_end, ended_at FROM billing.subscriptions WHERE tenant_id = 'bolt';
SELECT quota, cap FROM billing.usage_quotas WHERE tenant_id = 'bolt' AND metric = 'api_calls' AND period_end > billing.now();

-- at once
SELECT billing.cancel_subscription('acme', at_period_end => false);
SELECT plan, status, ends, ended_at BETWEEN billing.now() - interval '1 minute' AND billing.now() AS ended_now FROM acme;
SELECT status, reason FROM billing.check_quota('acme', 'api_calls');
CALL attempt($$SELECT billing.cancel_subscription('acme')$$);
SELECT billing.create_subscription('acme', 'standard') > 0 AS created;
SELECT status, used FROM billing.check_quota('acme', 'api_calls');
SELECT action, count(*) FROM billing.audit_log WHERE tenant_id = 'acme' GROUP BY 1 ORDER BY 1;
