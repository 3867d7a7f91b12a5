-- What every other part builds on: the clock, and the forms of a time and an idempotency key.

CREATE FUNCTION billing.now() RETURNS timestamptz
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_billing_now';
COMMENT ON FUNCTION billing.now() IS
    'returns the time of the current statement, shifted by pg_billing.time_shift: the one clock of all business rules';

CREATE FUNCTION billing._event_key(idempotency_key text) RETURNS uuid
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_billing_event_key';

-- The tick that is open now, followed by the closed ones that other transactions are still writing in.
CREATE FUNCTION billing._open_tick(not_before timestamptz) RETURNS timestamptz[]
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_open_tick';

CREATE FUNCTION billing._usage_pending() RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_usage_pending';

-- Has every backend look at a tenant's quota terms again once this transaction has committed; null: at all tenants'.
CREATE FUNCTION billing._quotas_changed(tenant_id text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_quotas_changed';

CREATE FUNCTION billing._wake_worker(job text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_wake_worker';

CREATE FUNCTION billing._request_run(job text, timeout_ms bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_request_run';

CREATE FUNCTION billing._register_database() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_register_database';
SELECT billing._register_database();

-- A time as JSON has it (RFC 3339); null where there is none.
CREATE FUNCTION billing._iso_time(at timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN isfinite($1) THEN to_char($1 AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') END
$$;

-- Raises if the session is bound to another tenant.
CREATE FUNCTION billing._check_bound(tenant_id text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bound text := billing.current_tenant();
BEGIN
    IF bound <> tenant_id THEN
        RAISE EXCEPTION 'session of tenant "%" may not act for tenant "%"', bound, tenant_id
            USING ERRCODE = 'UB040', HINT = 'Reset pg_billing.tenant_id or name the session''s own tenant.';
    END IF;
END $$;

-- Raises if the tenant is unknown, or the session is bound to another one.
CREATE FUNCTION billing._check_tenant(tenant_id text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_bound(tenant_id);
    IF NOT EXISTS (SELECT FROM billing.billing_customers c WHERE c.tenant_id = _check_tenant.tenant_id) THEN
        RAISE EXCEPTION 'unknown tenant "%"', left(tenant_id, 64)
            USING ERRCODE = 'UB010', HINT = 'Create it first with billing.create_customer().';
    END IF;
END $$;
