-- The audit log: what is written by whom, who reads it, and that nobody changes it.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
CREATE ROLE audit_operator LOGIN IN ROLE billing_admin, billing_app;
CREATE ROLE audit_app LOGIN IN ROLE billing_app;
CREATE ROLE audit_acme LOGIN IN ROLE billing_tenant;
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_customer(t, 'Secret Name', 'secret@mail.example', stripe => false) \g /dev/null
INSERT INTO billing.tenant_roles VALUES ('acme', 'audit_acme');
SET SESSION AUTHORIZATION audit_operator;
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT billing.update_subscription('acme', 'standard');
SET ROLE billing_app;
SELECT billing.cancel_subscription('acme');
SELECT billing.resume_subscription('acme');
RESET ROLE;
SELECT billing.cancel_subscription('acme', false);
SELECT billing.set_quota('acme', 'api_calls', 10);
SELECT billing.set_quota('acme', 'api_calls', 20, cap => 'soft');
SELECT billing.set_quota('acme', 'api_calls', 5, per => 'day');
SELECT billing.clear_quota('acme', 'api_calls');
SELECT billing.clear_quota('acme', 'api_calls');
SELECT billing.clear_quota('acme', 'api_calls', per => 'day');
-- who reads what; the administrator all
SELECT tenant_id, at >= '2030-01-31 12:30+00' AS at_business_time, CASE actor WHEN session_user THEN 'operator' ELSE 'another' END AS actor, role,
       action, before ->> 'plan' AS plan_before, after ->> 'plan' AS plan_after, before ->> 'quota' AS quota_before, after ->> 'quota' AS quota_after,
       after ->> 'status' AS status, after ->> 'cancel_at_period_end' AS ends
  FROM billing.audit_log ORDER BY id;
SELECT count(*) AS names_and_addresses FROM billing.audit_log a WHERE a::text ~* 'secret';
SET SESSION AUTHORIZATION audit_acme;
SELECT DISTINCT tenant_id FROM billing.audit_log;
CALL attempt($$INSERT INTO billing.audit_log (tenant_id, at, actor, action) VALUES ('acme', billing.now(), 'me', 'nothing')$$);
SET SESSION AUTHORIZATION audit_app;
CALL attempt($$UPDATE billing.audit_log SET action = 'nothing'$$);
CALL attempt($$SELECT billing._audit('acme', 'nothing', NULL, NULL)$$);
RESET SESSION AUTHORIZATION;
-- nobody changes it, the owner and its functions included
CALL attempt($$UPDATE billing.audit_log SET action = 'nothing'$$);
CALL attempt($$UPDATE billing.audit_log SET action = 'nothing' WHERE false$$);
CALL attempt($$DELETE FROM billing.audit_log$$);
CALL attempt($$TRUNCATE billing.audit_log$$);
CALL attempt($$MERGE INTO billing.audit_log a USING (SELECT 1) one ON true WHEN MATCHED THEN DELETE$$);
SET session_replication_role = replica;
CALL attempt($$DELETE FROM billing.audit_log$$);
RESET session_replication_role;
CREATE FUNCTION of_the_owners() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM billing.audit_log';
CALL attempt($$SELECT of_the_owners()$$);
-- installing once more neither opens it nor loses it; without the extension it stays closed
SELECT FROM billing.install() \g /dev/null
CALL attempt($$DELETE FROM billing.audit_log$$);
DROP EXTENSION pg_billing;
CALL attempt($$DELETE FROM billing.audit_log$$);
SELECT count(*) FROM billing.audit_log;
DROP OWNED BY audit_operator, audit_app, audit_acme;
DROP ROLE audit_operator, audit_app, audit_acme;
