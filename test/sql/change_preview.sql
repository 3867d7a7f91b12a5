-- A change of plan previewed: the lines that it leads to, and nothing else.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
CALL attempt($$SELECT billing.preview_subscription('acme', 'standard')$$);
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
CALL travel('7 days');
SELECT FROM billing.record_usage('acme', 'api_calls', 150000, 'a') \g /dev/null
CREATE VIEW tables AS
    SELECT (SELECT count(*) FROM billing.audit_log) AS audited, (SELECT count(*) FROM billing.plan_versions) AS versions,
           (SELECT count(*) FROM billing.stripe_outbox) AS requests, s.plan, s.plan_version, q.quota
      FROM billing.subscriptions s, billing.usage_quotas q WHERE q.metric = 'api_calls';
CREATE TABLE before AS TABLE tables;
SELECT metric, description, quantity, amount, currency FROM billing.preview_subscription('acme', 'standard')
 WHERE metric IS NULL OR metric = 'api_calls';
SELECT count(*) FROM billing.preview_subscription('acme', 'standard', 'none');
SELECT count(*) AS changed FROM (TABLE before EXCEPT TABLE tables) d;
SELECT reason, quota FROM billing.check_quota('acme', 'api_calls');
-- it is what the change does
CREATE TABLE previewed AS SELECT * FROM billing.preview_subscription('acme', 'standard');
BEGIN;
SELECT FROM billing.update_subscription('acme', 'standard') \g /dev/null
SELECT count(*) AS differences
  FROM ((TABLE previewed EXCEPT SELECT * FROM billing.get_upcoming_invoice('acme'))
        UNION ALL (SELECT * FROM billing.get_upcoming_invoice('acme') EXCEPT TABLE previewed)) d;
ROLLBACK;
-- in a transaction with usage of its own
BEGIN;
SELECT used, quota FROM billing.record_usage('acme', 'user_seats', 2, 'b');
SELECT count(*) > 0 AS previewed FROM billing.preview_subscription('acme', 'enterprise');
SELECT used, quota, reason FROM billing.try_consume('acme', 'user_seats', 1, 'c');
COMMIT;
SELECT used, quota, reason FROM billing.check_quota('acme', 'user_seats', 1);
-- as who may change it
CALL attempt($$SELECT billing.preview_subscription('acme', 'gold')$$);
CALL attempt($$SELECT billing.preview_subscription('acme', 'standard', 'sometimes')$$);
CALL attempt($$SELECT billing.preview_subscription('nobody', 'standard')$$);
SET ROLE billing_app;
SET pg_billing.tenant_id = 'bolt';
CALL attempt($$SELECT billing.preview_subscription('acme', 'standard')$$);
SET pg_billing.tenant_id = 'acme';
SELECT count(*) > 0 AS previewed FROM billing.preview_subscription('acme', 'standard');
RESET ROLE;
SET ROLE billing_tenant;
CALL attempt($$SELECT billing.preview_subscription('acme', 'standard')$$);
