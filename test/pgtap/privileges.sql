-- What each group role may read and call; nobody but the owner writes to a table.
BEGIN;
SELECT plan(16);

CREATE TEMP VIEW tables AS
    SELECT c.oid, c.relname, c.relispartition, c.relacl, c.relowner FROM pg_class c
     WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind IN ('r', 'p');
CREATE TEMP VIEW readable AS
    SELECT r.role, t.relname FROM tables t, unnest(ARRAY['billing_tenant', 'billing_app', 'billing_admin']) r (role)
     WHERE has_table_privilege(r.role, t.oid, 'select');
CREATE TEMP VIEW callable AS
    SELECT r.role, p.proname FROM pg_proc p, unnest(ARRAY['billing_tenant', 'billing_app', 'billing_admin']) r (role)
     WHERE p.pronamespace = 'billing'::regnamespace AND has_function_privilege(r.role, p.oid, 'execute');

SELECT is_empty($$SELECT rolname FROM pg_roles WHERE rolname LIKE 'billing\_%' AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)$$,
    'the group roles can neither log in nor anything else');
SELECT is_empty($$SELECT a.roleid::regrole, a.member::regrole FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.member WHERE r.rolname LIKE 'billing\_%'$$,
    'nor are they members of other roles');
SELECT is_empty($$SELECT t.relname, a.grantee::regrole, a.privilege_type FROM tables t, aclexplode(t.relacl) a
    WHERE a.grantee <> t.relowner AND (a.privilege_type <> 'SELECT' OR a.grantee = 0 OR a.is_grantable)$$,
    'tables are granted for reading only, and not to PUBLIC');
SELECT is_empty($$SELECT role, relname FROM readable JOIN tables USING (relname) WHERE relispartition$$, 'partitions are granted to nobody');
SELECT is_empty($$SELECT a.attrelid::regclass, a.attname FROM pg_attribute a JOIN tables t ON t.oid = a.attrelid WHERE a.attacl IS NOT NULL$$,
    'no column is granted by itself');
SELECT is_empty($$SELECT c.relname, a.grantee::regrole FROM pg_class c, aclexplode(c.relacl) a
    WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind = 'S' AND a.grantee <> c.relowner$$, 'no sequence is granted');
SELECT is_empty($$SELECT a.grantee::regrole, a.privilege_type FROM pg_namespace n, aclexplode(n.nspacl) a
    WHERE n.nspname = 'billing' AND a.grantee <> n.nspowner AND (a.privilege_type <> 'USAGE' OR a.grantee = 0)$$,
    'the groups may use the schema, and create nothing in it');

SELECT set_eq($$SELECT relname::text FROM readable WHERE role = 'billing_tenant'$$, ARRAY['metrics', 'plans', 'plan_metrics', 'price_tiers', 'plan_versions', 'plan_prices', 'plan_features',
    'billing_customers', 'subscriptions', 'subscription_items', 'subscription_stretches', 'price_changes', 'tenant_prices', 'quota_overrides', 'usage_quotas', 'usage_event_keys', 'usage_events', 'reservations', 'rollup_state', 'plan_window_limits', 'metric_windows', 'window_limits',
    'usage_aggregates', 'usage_uniques', 'usage_breakdown', 'usage_gauge_changes', 'usage_figures', 'item_periods', 'alert_rules', 'usage_alerts', 'notification_channels', 'notifications', 'invoices', 'invoice_lines', 'audit_log', 'tenant_roles', 'credit_grants', 'credit_ledger', 'late_usage', 'invoice_comparisons'], 'billing_tenant reads these tables');
SELECT set_eq($$SELECT relname FROM readable WHERE role = 'billing_app'$$, $$SELECT relname FROM readable WHERE role = 'billing_tenant'$$,
    'billing_app the same');
SELECT set_eq($$SELECT relname FROM readable WHERE role = 'billing_admin'$$, $$SELECT relname FROM tables WHERE NOT relispartition AND relname NOT IN ('notification_secrets', 'stripe_sessions')$$,
    'billing_admin all, but the secrets that sign webhooks and the URLs of sessions');
SELECT set_eq($$SELECT proname::text FROM callable WHERE role = 'billing_tenant' AND proname NOT LIKE '\_%'$$, ARRAY['now', 'current_tenant', 'installed_version',
    'check_quota', 'explain_decision', 'get_subscription', 'get_current_usage', 'get_usage_summary', 'is_over_quota', 'get_usage_percentage', 'get_billable_usage', 'get_usage_breakdown',
    'get_usage_by_hour', 'get_usage_by_day', 'get_usage_history', 'get_projected_usage', 'get_quota', 'get_quotas', 'get_remaining_quota', 'get_effective_plan', 'get_current_period', 'get_days_remaining', 'get_active_alerts',
    'get_overage', 'get_overage_cost', 'get_upcoming_invoice', 'get_projected_cost', 'explain_invoice_line', 'get_credit_balance', 'get_credit_grants', 'get_credit_ledger', 'get_invoice', 'get_invoices', 'get_invoice_lines'],
    'billing_tenant calls what looks at its own');
SELECT set_eq($$SELECT proname::text FROM callable WHERE role = 'billing_app' EXCEPT SELECT proname FROM callable WHERE role = 'billing_tenant'$$,
    ARRAY['record_usage', 'try_consume', 'consume', 'enforce_quota', 'reserve', 'settle', 'release', 'set_usage', 'void_usage', 'record_usage_batch', 'create_customer', 'create_subscription', 'update_subscription', 'preview_subscription', 'cancel_subscription', 'resume_subscription', 'pause_subscription', 'end_trial', 'connect_stripe', 'create_checkout_session', 'create_portal_session', 'get_session_url', 'begin_request', 'begin_session', 'scrape_metrics', 'authenticate', 'record_usage_requests', 'check_quota_requests', '_record_usage_decided', 'receive_webhook', 'create_alert', 'delete_alert',
    'create_channel', 'update_channel', 'delete_channel', 'rotate_channel_secret', 'test_notification', 'retry_notifications', 'refresh_invoice', 'compare_upcoming_invoice'],
    'billing_app records and creates as well');
SELECT set_eq($$SELECT proname::text FROM callable WHERE role = 'billing_admin' EXCEPT SELECT proname FROM callable WHERE role = 'billing_app'$$,
    ARRAY['health', 'get_prometheus_metrics', '_stat_outcomes', '_stat_counters', '_stat_rollups', '_stat_reports', '_stat_reset_at', '_rollup_lag', '_job_state', '_stat_quota_cache', 'stat_reset', 'set_quota', 'clear_quota', 'create_api_key', 'revoke_api_key', 'run_rollup', 'expire_reservations', 'maintain', 'prune_keys', 'run_stripe_sync', 'adopt', 'resume_stripe', 'get_top_tenants', 'get_tenants_near_quota', 'retry_failed', 'upgrade_subscribers', 'sync_plans', 'rewrite_export_files', 'set_price', 'clear_price', 'grant_credit', 'void_credit', 'reconcile', 'repair', 'replay_webhooks',
    '_stripe_dead_letter', '_stripe_waiting', '_stripe_unsubmitted', '_stripe_due_hours', '_stripe_hint', '_adds_up', '_meter_adds', '_stripe_counts', '_stripe_moment', '_stat_notifications', '_stat_webhooks', '_carried', '_stripe_drift', '_stat_reconcile', '_reads_left'],
    'billing_admin administers as well');
SELECT is_empty($$SELECT proname FROM callable WHERE role = 'billing_app' EXCEPT SELECT proname FROM callable WHERE role = 'billing_admin'$$,
    'and does all that billing_app does');
SELECT set_eq($$SELECT DISTINCT proname::text FROM callable JOIN pg_proc p USING (proname) WHERE proname LIKE '\_%' AND p.prosecdef$$,
    ARRAY['_rollup_lag', '_stat_quota_cache'], 'no private function that anybody may call has raised rights, but for two that tell how far workers are');
SELECT set_eq($$SELECT p.proname::text FROM pg_proc p WHERE p.pronamespace = 'billing'::regnamespace AND p.proname NOT LIKE '\_%'
      AND p.proname NOT IN (SELECT proname FROM callable)$$, ARRAY['install'], 'only a superuser installs');

SELECT * FROM finish();
ROLLBACK;
