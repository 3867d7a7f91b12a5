-- install() creates the tables, which belong to whoever runs it and not to the extension: DROP EXTENSION keeps them, and
-- pg_dump treats them as any others. It is idempotent; a later version migrates by the number in schema_version.

CREATE FUNCTION billing.install() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
BEGIN
    IF NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        RAISE EXCEPTION 'billing.install() must be run by a superuser'
            USING ERRCODE = 'insufficient_privilege', HINT = 'It makes roles, tables and row-level security.';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('pg_billing.install'));
    CREATE TABLE IF NOT EXISTS billing.schema_version (
        only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        version      int NOT NULL,
        installed_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    COMMENT ON TABLE billing.schema_version IS 'the version of the tables; billing.install() migrates them';

    PERFORM billing._install_catalog();
    PERFORM billing._install_prices();
    PERFORM billing._install_audit();
    PERFORM billing._install_customers();
    PERFORM billing._install_tenant_prices();
    PERFORM billing._install_subscriptions();
    PERFORM billing._install_credits();
    PERFORM billing._install_quotas();
    PERFORM billing._install_usage();
    PERFORM billing._install_reservations();
    IF to_regclass('billing.usage_events_default') IS NULL THEN
        CREATE TABLE billing.usage_events_default PARTITION OF billing.usage_events DEFAULT;
    END IF;
    PERFORM billing._install_alerts();
    PERFORM billing._install_rollup_kinds();
    PERFORM billing._install_quota_triggers();
    PERFORM billing._install_stripe();
    PERFORM billing._install_price_changes();
    PERFORM billing._install_export_figures();
    PERFORM billing._install_export_deltas();
    PERFORM billing._install_export_items();
    PERFORM billing._install_export_files();
    PERFORM billing._install_sessions();
    PERFORM billing._install_stripe_catalog();
    PERFORM billing._install_webhooks();
    PERFORM billing._install_webhook_objects();
    PERFORM billing._install_meter_errors();
    PERFORM billing._install_invoices();
    PERFORM billing._install_invoice_preview();
    PERFORM billing._install_late_usage();
    PERFORM billing._install_reconcile();
    PERFORM billing._install_notifications();
    PERFORM billing._install_events();
    PERFORM billing._install_quota_cache();
    PERFORM billing._install_api_keys();
    PERFORM billing._install_roles();
    PERFORM billing.maintain();
    PERFORM billing._install_row_security();
    PERFORM billing._install_grants();

    INSERT INTO billing.schema_version (version) VALUES (1) ON CONFLICT DO NOTHING;
    PERFORM billing._wake_worker('rollup');
END $$;
COMMENT ON FUNCTION billing.install() IS
    'creates the tables, roles, policies and grants in schema billing, or migrates older tables; idempotent; superuser only';

CREATE FUNCTION billing.installed_version() RETURNS int
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('billing.schema_version') IS NULL THEN
        RAISE EXCEPTION 'pg_billing has no tables in this database'
            USING ERRCODE = 'UB050', HINT = 'Run SELECT billing.install() as a superuser.';
    END IF;
    RETURN (SELECT version FROM billing.schema_version);
END $$;
COMMENT ON FUNCTION billing.installed_version() IS 'returns the version of the installed tables. Raises UB050';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA billing FROM PUBLIC;
