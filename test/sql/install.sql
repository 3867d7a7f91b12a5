-- install(): what it makes, that it may be run again, that DROP EXTENSION leaves rows and policies.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT billing.installed_version();
SELECT c.relname AS "table", obj_description(c.oid, 'pg_class') AS comment
  FROM pg_class c
 WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
 ORDER BY c.relname COLLATE "C";
SELECT p.oid::regprocedure AS function
  FROM pg_proc p
 WHERE p.pronamespace = 'billing'::regnamespace AND p.proname NOT LIKE '\_%'
 ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT rolname, rolcanlogin, rolsuper FROM pg_roles WHERE rolname LIKE 'billing\_%' ORDER BY 1;

-- the plans and metrics, as sold
SELECT name, kind, unit, scale, stripe_event_name FROM billing.metrics ORDER BY name;
SELECT name, price, currency, interval_months, past_due_grace FROM billing.plans ORDER BY price;
SELECT pm.plan, pm.metric, pm.allowance, pm.cap, pm.grace,
       string_agg(concat(t.unit_amount, ' to ', coalesce(t.up_to::text, 'inf')), ', ' ORDER BY t.ordinal) AS tiers
  FROM billing.plan_metrics pm JOIN billing.plans p ON p.name = pm.plan
       LEFT JOIN billing.price_tiers t USING (plan, metric)
 GROUP BY p.price, pm.plan, pm.metric ORDER BY p.price, pm.metric;

-- again: nothing changes, not even what an operator changed
UPDATE billing.plan_metrics SET allowance = 77 WHERE plan = 'free' AND metric = 'api_calls';
SELECT FROM billing.create_customer('acme', 'Acme', 'billing@acme.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT status, used, quota FROM billing.record_usage('acme', 'api_calls', 5, 'first');
CREATE VIEW objects AS
    SELECT count(*) FILTER (WHERE kind = 'table') AS tables, count(*) FILTER (WHERE kind = 'policy') AS policies,
           md5(string_agg(kind || name, ',' ORDER BY kind, name)) AS all_of_them
      FROM (SELECT 'table' AS kind, c.oid || ' ' || c.relname || c.relacl::text AS name
              FROM pg_class c WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind IN ('r', 'p')
            UNION ALL
            SELECT 'policy', concat(tablename, policyname, roles, cmd, qual)
              FROM pg_policies WHERE schemaname = 'billing') o;
SELECT * FROM objects \gset
SELECT FROM billing.install() \g /dev/null
SELECT tables = :tables AS same_tables, policies = :policies AS same_policies, all_of_them = :'all_of_them' AS same
  FROM objects;
SELECT allowance FROM billing.plan_metrics WHERE plan = 'free' AND metric = 'api_calls';

-- the extension goes without CASCADE; the rows and what protects them stay
DROP EXTENSION pg_billing;
SELECT tables = :tables AS same_tables, policies = :policies AS same_policies, all_of_them = :'all_of_them' AS same
  FROM objects;
SELECT tenant_id, plan, status FROM billing.subscriptions;
SELECT tenant_id, metric, quantity, idempotency_key FROM billing.usage_events;
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'billing'::regnamespace;
SET ROLE billing_tenant;
SET pg_billing.tenant_id = 'other';
SELECT tenant_id FROM billing.subscriptions;
SET pg_billing.tenant_id = 'acme';
SELECT tenant_id FROM billing.subscriptions;
RESET pg_billing.tenant_id;
RESET ROLE;

-- and it comes back to them
CREATE EXTENSION pg_billing;
SELECT FROM billing.install() \g /dev/null
SELECT tables = :tables AS same_tables, policies = :policies AS same_policies, all_of_them = :'all_of_them' AS same
  FROM objects;
SELECT status, used, quota FROM billing.record_usage('acme', 'api_calls', 5, 'first');
SELECT status, used, quota FROM billing.record_usage('acme', 'api_calls', 2, 'second');
SELECT has_function_privilege('billing_app', 'billing.record_usage(text,text,numeric,text,timestamptz,jsonb)', 'execute');

-- tables lost and made anew: no counter of the old ones is mistaken for one of theirs
SET client_min_messages = warning;
DROP SCHEMA billing CASCADE;
RESET client_min_messages;
CREATE EXTENSION pg_billing;
CALL attempt($$SELECT billing.installed_version()$$);
CALL attempt($$SELECT billing.record_usage('acme', 'api_calls')$$);
CALL attempt($$SELECT billing.check_quota('acme', 'api_calls')$$);
SELECT FROM billing.install() \g /dev/null
SELECT FROM billing.create_customer('acme', 'Acme', 'billing@acme.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT status, used, quota FROM billing.record_usage('acme', 'api_calls', 1, 'first');

-- who may not
CREATE ROLE regress_plain;
SET ROLE regress_plain;
CALL attempt($$SELECT billing.install()$$);
RESET ROLE;
GRANT USAGE ON SCHEMA billing TO regress_plain;
GRANT EXECUTE ON FUNCTION billing.install() TO regress_plain;
SET ROLE regress_plain;
CALL attempt($$SELECT billing.install()$$);
RESET ROLE;
DROP EXTENSION pg_billing;
ALTER SCHEMA billing OWNER TO regress_plain;
CALL attempt($$CREATE EXTENSION pg_billing$$);
ALTER SCHEMA billing OWNER TO postgres;
CALL attempt($$CREATE EXTENSION pg_billing SCHEMA public$$);
SELECT FROM pg_extension WHERE extname = 'pg_billing';
DROP OWNED BY regress_plain;
DROP ROLE regress_plain;
