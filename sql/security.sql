-- Roles, grants and row-level security, applied by install() to every table, partitions included.
--
-- Nobody but the owner writes to a table: writing is done by functions. billing_tenant reads its own rows, billing_app
-- and billing_admin read all, but if their session is bound to a tenant (pg_billing.tenant_id) only that one's.
-- Partitions are granted to nobody, and have row-level security without a policy: asked directly they show nothing.

CREATE FUNCTION billing._install_roles() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['billing_admin', 'billing_app', 'billing_tenant'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
    GRANT USAGE ON SCHEMA billing TO billing_admin, billing_app, billing_tenant;

    CREATE TABLE IF NOT EXISTS billing.tenant_roles (
        tenant_id text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        role_name name PRIMARY KEY      -- a role is one tenant; a tenant may have several roles
    );
    COMMENT ON TABLE billing.tenant_roles IS 'database roles that are a tenant: authoritative, unlike pg_billing.tenant_id';

    -- Not a member of the extension: policies depend on it, and they outlive DROP EXTENSION as the tables do.
    CREATE OR REPLACE FUNCTION billing.current_tenant() RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS
    'SELECT coalesce((SELECT r.tenant_id FROM billing.tenant_roles r WHERE r.role_name = current_user),
                     nullif(current_setting(''pg_billing.tenant_id'', true), ''''))';
    COMMENT ON FUNCTION billing.current_tenant() IS
        'returns the tenant this session is: by its role if billing.tenant_roles has it, else by pg_billing.tenant_id';
    REVOKE ALL ON FUNCTION billing.current_tenant() FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION billing.current_tenant() TO billing_admin, billing_app, billing_tenant;
END $$;

CREATE FUNCTION billing._install_row_security() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT c.relname AS name, c.relispartition AS is_partition,
               c.relname IN ('metrics', 'plans', 'plan_metrics', 'plan_window_limits', 'metric_windows', 'price_tiers', 'plan_versions',
                             'plan_prices', 'plan_features', 'rollup_state') AS is_catalog,
               -- what tells a tenant nothing about itself is for administrators only
               c.relname NOT IN ('stripe_outbox', 'stripe_state', 'webhook_events', 'catalog_drift', 'stripe_meter_errors', 'export_hours', 'export_files', 'export_lines', 'reconciliations', 'reconcile_steps', 'drift', 'api_keys', 'quota_cache_state', 'schema_version') AS readable
          FROM pg_class c
         WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('REVOKE ALL ON billing.%I FROM PUBLIC', t.name);
        IF t.is_catalog THEN
            EXECUTE format('GRANT SELECT ON billing.%I TO billing_admin, billing_app, billing_tenant', t.name);
            CONTINUE;
        END IF;
        PERFORM billing._protect_table(t.name);
        CONTINUE WHEN t.is_partition;
        EXECUTE format('DROP POLICY IF EXISTS tenant ON billing.%I', t.name);
        EXECUTE format('DROP POLICY IF EXISTS service ON billing.%I', t.name);
        EXECUTE format('DROP POLICY IF EXISTS nobody ON billing.%I', t.name);
        IF t.name = 'tenant_roles' THEN
            -- read by billing.current_tenant(), so it cannot call that itself
            CREATE POLICY tenant ON billing.tenant_roles USING (role_name = current_user);
            GRANT SELECT ON billing.tenant_roles TO billing_admin, billing_app, billing_tenant;
        ELSIF t.name = 'notification_secrets' THEN
            CREATE POLICY nobody ON billing.notification_secrets FOR SELECT USING (false);
        ELSIF t.name = 'stripe_sessions' THEN
            -- whoever has a URL acts for the tenant: nobody reads it here
            CREATE POLICY service ON billing.stripe_sessions FOR SELECT TO billing_admin USING (false);
        ELSIF NOT t.readable THEN
            EXECUTE format('CREATE POLICY service ON billing.%I FOR SELECT TO billing_admin USING (true)', t.name);
            EXECUTE format('GRANT SELECT ON billing.%I TO billing_admin', t.name);
        ELSE
            EXECUTE format('CREATE POLICY tenant ON billing.%I FOR SELECT TO billing_tenant
                            USING (tenant_id = (SELECT billing.current_tenant()))', t.name);
            EXECUTE format('CREATE POLICY service ON billing.%I FOR SELECT TO billing_admin, billing_app
                            USING ((SELECT billing.current_tenant()) IS NULL
                                   OR tenant_id = (SELECT billing.current_tenant()))', t.name);
            EXECUTE format('GRANT SELECT ON billing.%I TO billing_admin, billing_app, billing_tenant', t.name);
        END IF;
    END LOOP;
END $$;

-- Functions the groups may call; what no group is given only a superuser may call.
CREATE FUNCTION billing._install_grants() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f record;
BEGIN
    FOR f IN
        SELECT p.oid::regprocedure AS signature,
               p.proname = ANY ('{now,check_quota,explain_decision,get_subscription,get_current_usage,get_usage_summary,is_over_quota,get_usage_percentage,installed_version,_check_bound,_check_tenant,_check_metric,_quota_in_force,_period_at,_period_from,_unbilled_from,_period,_billing_period,_tail,_in_batch,_event_key,_contribution,_dimension,_gauge_peak,_gauge_over,_used,_used_otherwise,_window_at,_window_limits,_used_within,get_billable_usage,get_usage_breakdown,_billable,_usage_hours,_usage_per,get_usage_by_hour,get_usage_by_day,get_usage_history,get_projected_usage,_standing,get_quota,get_quotas,get_remaining_quota,get_effective_plan,get_current_period,get_days_remaining,get_active_alerts,_prices_of,_plan_terms,_rate,_overage,get_overage,get_overage_cost,_invoice,_price_changes,_prices_replaced,_priced_before,_fee_period,_known_prices,_figure_closed,get_upcoming_invoice,get_projected_cost,explain_invoice_line,_credit_for,_credit_currency,get_credit_balance,get_credit_grants,get_credit_ledger,_invoices,get_invoice,get_invoices,get_invoice_lines,_late_usage_in}') AS for_tenant,
               p.proname = ANY ('{record_usage,try_consume,consume,reserve,settle,release,set_usage,void_usage,enforce_quota,record_usage_batch,create_customer,create_subscription,update_subscription,preview_subscription,cancel_subscription,resume_subscription,pause_subscription,end_trial,connect_stripe,create_checkout_session,create_portal_session,get_session_url,begin_request,begin_session,scrape_metrics,authenticate,record_usage_requests,check_quota_requests,_record_usage_decided,receive_webhook,create_alert,delete_alert,create_channel,update_channel,delete_channel,rotate_channel_secret,test_notification,retry_notifications,refresh_invoice,compare_upcoming_invoice}') AS for_app,
               p.proname NOT LIKE '\_%' AND p.proname <> 'install'
                   OR p.proname = ANY ('{_stripe_dead_letter,_stripe_waiting,_stripe_unsubmitted,_stripe_due_hours,_stripe_hint,_adds_up,_meter_adds,_stripe_counts,_stripe_moment,_stat_notifications,_stat_webhooks,_carried,_stripe_drift,_stat_reconcile,_reads_left}') AS for_admin,
               p.proname = ANY ('{_stat_outcomes,_stat_counters,_stat_rollups,_stat_reports,_stat_reset_at,_rollup_lag,_job_state,_stat_quota_cache}') AS for_monitor
          FROM pg_proc p
          JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
          JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_billing'
    LOOP
        IF f.for_tenant THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO billing_tenant, billing_app, billing_admin', f.signature);
        ELSIF f.for_app THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO billing_app, billing_admin', f.signature);
        ELSIF f.for_admin THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO billing_admin', f.signature);
        ELSIF f.for_monitor THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO billing_admin, pg_monitor', f.signature);
        END IF;
    END LOOP;
    GRANT USAGE ON SCHEMA billing TO pg_monitor;
    GRANT EXECUTE ON FUNCTION billing.health(), billing.get_prometheus_metrics() TO pg_monitor;
    GRANT SELECT ON billing.stat_metrics, billing.stat_denials, billing.stat_counters, billing.stat_rollup,
                    billing.stat_progress, billing.stat_workers, billing.stat_quota_cache TO billing_admin, pg_monitor;
    GRANT SELECT ON billing.stripe_dead_letter, billing.stripe_waiting, billing.stripe_unsubmitted,
                    billing.stat_notifications, billing.stat_webhooks, billing.stripe_drift, billing.stat_progress_reconcile
                    TO billing_admin;
END $$;
