-- The rules that every table and function of schema billing keeps, asked of the catalogue: what is added later is
-- held to them, too.
BEGIN;
SELECT plan(19);

CREATE TEMP VIEW tables AS
    SELECT c.oid, c.relname, c.relkind, c.relispartition, c.relrowsecurity, c.relforcerowsecurity, c.relowner, c.relacl,
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped) AS of_tenants
      FROM pg_class c
     WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind IN ('r', 'p');
-- Every other table is the business of tenants, and must say whose by a column tenant_id.
CREATE TEMP TABLE exceptions (relname name, why text);
INSERT INTO exceptions VALUES
    ('metrics', 'catalogue, the same for all'), ('plans', 'catalogue, the same for all'),
    ('plan_metrics', 'catalogue, the same for all'), ('plan_window_limits', 'catalogue, the same for all'), ('metric_windows', 'catalogue, the same for all'),
    ('price_tiers', 'catalogue, the same for all'),
    ('plan_versions', 'catalogue, the same for all'), ('plan_prices', 'catalogue, the same for all'),
    ('plan_features', 'catalogue, the same for all'),
    ('schema_version', 'one row about the tables'), ('rollup_state', 'one row about the rollup'), ('stripe_state', 'one row about the database'), ('quota_cache_state', 'one row about the quota cache'),
    ('reconciliations', 'one row about many tenants, or about one'), ('export_files', 'a file has lines of many tenants'),
    ('webhook_events', 'whose an event is becomes known only after it is stored'),
    ('catalog_drift', 'about the catalogue'), ('stripe_meter_errors', 'a report of Stripe''s is of many tenants'' usage'),
    ('tenant_roles', 'found by its role before the tenant is known; a role is one tenant'),
    ('api_keys', 'found by its hash before the tenant is known; a service''s key has no tenant');

SELECT tables_are('billing', ARRAY(
    SELECT relname FROM tables WHERE relispartition
    UNION ALL
    SELECT unnest(ARRAY['metrics', 'plans', 'plan_metrics', 'plan_window_limits', 'metric_windows', 'price_tiers', 'plan_versions', 'plan_prices', 'plan_features', 'billing_customers', 'subscriptions', 'subscription_items', 'subscription_stretches', 'price_changes', 'tenant_prices',
        'quota_overrides', 'window_limits', 'usage_quotas', 'usage_event_keys', 'usage_events', 'reservations', 'rollup_state', 'usage_aggregates', 'usage_uniques', 'usage_breakdown', 'usage_gauge_changes', 'usage_figures', 'item_periods', 'alert_rules', 'usage_alerts', 'notification_channels', 'notification_secrets', 'notifications',
        'stripe_outbox', 'stripe_sessions', 'stripe_state', 'webhook_events', 'catalog_drift', 'stripe_meter_errors', 'quota_cache_state', 'invoices', 'invoice_lines', 'api_keys', 'audit_log', 'tenant_roles', 'schema_version', 'credit_grants', 'credit_ledger', 'invoice_comparisons', 'late_usage', 'reconciliations', 'reconcile_steps', 'drift', 'export_hours', 'export_files', 'export_lines'])),
    'these are the tables');

SELECT is_empty($$SELECT relname FROM tables WHERE NOT of_tenants AND relname NOT IN (SELECT relname FROM exceptions)$$,
    'every table has a tenant_id, or a reason to have none');
SELECT set_eq($$SELECT DISTINCT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN tables t ON t.oid = a.attrelid WHERE a.attname = 'tenant_id'$$,
    ARRAY['text'], 'a tenant_id is text');
SELECT is_empty($$SELECT t.relname, i.indexrelid::regclass
    FROM tables t JOIN pg_index i ON i.indrelid = t.oid
    WHERE i.indisunique AND t.of_tenants AND t.relname NOT IN (SELECT relname FROM exceptions)
      AND (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum = i.indkey[0]) IS DISTINCT FROM 'tenant_id'$$,
    'tenant_id comes first in every primary key and unique index');
SELECT is_empty($$SELECT t.relname FROM tables t
    WHERE t.relname <> 'usage_events' AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = t.oid AND h.inhparent = 'billing.usage_events'::regclass)
      AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisprimary)$$,
    'every table has a primary key, but for the one that is only ever added to');
SELECT is_empty($$SELECT c.conrelid::regclass, c.conname
    FROM pg_constraint c JOIN tables f ON f.oid = c.conrelid JOIN tables t ON t.oid = c.confrelid
    WHERE c.contype = 'f' AND t.of_tenants AND NOT EXISTS (
        SELECT FROM unnest(c.conkey, c.confkey) k (here, there)
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = here AND a.attname = 'tenant_id'
          JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = there AND b.attname = 'tenant_id')$$,
    'a reference from one tenant''s row to another row includes the tenant');

SELECT is_empty($$SELECT relname FROM tables
    WHERE NOT (relrowsecurity AND relforcerowsecurity) AND relname NOT IN ('metrics', 'plans', 'plan_metrics', 'plan_window_limits', 'metric_windows', 'price_tiers', 'plan_versions', 'plan_prices', 'plan_features', 'rollup_state')$$,
    'row-level security is enabled and forced on every table and partition but the catalogue''s');
SELECT is_empty($$SELECT relname FROM tables t WHERE relrowsecurity AND NOT relispartition
    AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid)$$, 'with a policy on each table');
SELECT is_empty($$SELECT relname FROM tables t WHERE relispartition AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid)$$,
    'and none on a partition: asked directly it shows nothing');
SELECT is_empty($$SELECT polrelid::regclass, polname FROM pg_policy p JOIN tables t ON t.oid = p.polrelid
    WHERE polcmd <> 'r' AND t.relname <> 'tenant_roles'$$, 'policies are for reading');

SELECT is_empty($$SELECT attrelid::regclass, attname FROM pg_attribute JOIN tables t ON t.oid = attrelid
    WHERE atttypid IN ('float4'::regtype, 'float8'::regtype, 'money'::regtype, 'json'::regtype)$$, 'no number is a float');
SELECT is_empty($$SELECT attrelid::regclass, attname FROM pg_attribute JOIN tables t ON t.oid = attrelid
    WHERE attnum > 0 AND (atttypid IN ('timestamp'::regtype, 'date'::regtype, 'time'::regtype)
           OR attname ~ '(_at|_start|_end|_since|_until|_before|^hour|^anchor|_date)$' AND attname <> 'cancel_at_period_end'
              AND NOT attisdropped AND atttypid <> 'timestamptz'::regtype)$$, 'every time is a timestamptz');
SELECT is_empty($$SELECT c.oid::regclass FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind IN ('r', 'p', 'S')$$,
    'no table and no sequence belongs to the extension: dropping it drops no data');
SELECT is_empty($$SELECT d.objid::regprocedure FROM pg_depend d WHERE d.deptype = 'n' AND d.refclassid = 'pg_proc'::regclass
      AND d.classid IN ('pg_policy'::regclass, 'pg_attrdef'::regclass, 'pg_trigger'::regclass, 'pg_constraint'::regclass)
      AND EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = d.refobjid AND e.deptype = 'e'
                    AND e.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_billing'))$$,
    'no table depends on a function of the extension');

-- functions
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p
    WHERE p.pronamespace = 'billing'::regnamespace AND has_function_privilege('public', p.oid, 'execute')$$,
    'PUBLIC may execute nothing');
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'billing'::regnamespace
    AND (p.prosecdef OR p.prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql'))
    AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)$$,
    'every function with raised rights, and every one in PL/pgSQL, pins search_path');
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'billing'::regnamespace
    AND p.prolang = (SELECT oid FROM pg_language WHERE lanname = 'c') AND p.proparallel <> 'u' AND p.proname NOT IN ('now', '_event_key', '_quota_group')$$,
    'what touches counters never runs in a parallel worker');
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p
    WHERE p.pronamespace = 'billing'::regnamespace AND p.proname NOT LIKE '\_%' AND obj_description(p.oid, 'pg_proc') IS NULL$$,
    'every public function has a comment');
SELECT is_empty($$SELECT relname FROM tables WHERE NOT relispartition AND obj_description(oid, 'pg_class') IS NULL$$,
    'and every table');

SELECT * FROM finish();
ROLLBACK;
