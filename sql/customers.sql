-- Tenants: who is billed, and which Stripe customer that is.

CREATE FUNCTION billing._install_customers() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.billing_customers (
        tenant_id          text COLLATE "C" PRIMARY KEY CHECK (octet_length(tenant_id) BETWEEN 1 AND 128),
        name               text NOT NULL,
        email              text NOT NULL,
        timezone           text NOT NULL DEFAULT 'UTC',
        stripe             boolean NOT NULL,    -- billed through Stripe
        stripe_customer_id text,
        stripe_test_clock  text,
        stripe_deleted_at  timestamptz,         -- when it was seen that the customer is deleted at Stripe
        created_at         timestamptz NOT NULL
    );
    CREATE INDEX IF NOT EXISTS billing_customers_stripe ON billing.billing_customers (stripe_customer_id);
    COMMENT ON TABLE billing.billing_customers IS 'one row per tenant, with its Stripe customer if it has one';
END $$;

CREATE FUNCTION billing.create_customer(tenant_id text, name text, email text, timezone text DEFAULT 'UTC',
                                        stripe boolean DEFAULT NULL, stripe_test_clock text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wants_stripe boolean := coalesce(stripe, current_setting('pg_billing.stripe_api_key_file') <> '');
BEGIN
    IF tenant_id IS NULL OR octet_length(tenant_id) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION 'tenant id "%" is empty or longer than 128 bytes', left(tenant_id, 64)
            USING ERRCODE = 'UB024', HINT = 'Use the identifier your application already has for the tenant.';
    END IF;
    PERFORM billing._check_bound(tenant_id);
    IF coalesce(name, '') = '' OR coalesce(email, '') !~ '^[^@[:space:]]+@[^@[:space:]]+$' THEN
        RAISE EXCEPTION 'name "%" or e-mail address "%" of tenant "%" is not valid', name, email, tenant_id
            USING ERRCODE = 'UB032', HINT = 'Both are needed: Stripe prints them on invoices.';
    END IF;
    BEGIN       -- PostgreSQL would take a POSIX rule, too; a list of names to look into is slow to make
        PERFORM billing.now() AT TIME ZONE CASE WHEN timezone ~ '^[A-Za-z_]+(/[A-Za-z0-9_+-]+)*$' THEN timezone ELSE '?' END;
    EXCEPTION WHEN invalid_parameter_value THEN
        RAISE EXCEPTION 'unknown time zone "%"', timezone
            USING ERRCODE = 'UB032', HINT = 'Use an IANA name such as Europe/Berlin.';
    END;
    INSERT INTO billing.billing_customers AS c
        VALUES (create_customer.tenant_id, create_customer.name, create_customer.email, create_customer.timezone,
                wants_stripe, NULL, create_customer.stripe_test_clock, NULL, billing.now())
        ON CONFLICT ON CONSTRAINT billing_customers_pkey DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'tenant "%" exists already', tenant_id
            USING ERRCODE = 'UB030', HINT = 'Choose another tenant id.';
    END IF;
    PERFORM billing._audit(c.tenant_id, 'create_customer', NULL, to_jsonb(c) - '{name,email}'::text[])
       FROM billing.billing_customers c WHERE c.tenant_id = create_customer.tenant_id;
    IF wants_stripe THEN
        PERFORM billing._wake_worker('stripe');
    END IF;
    RETURN tenant_id;
END $$;
COMMENT ON FUNCTION billing.create_customer(text, text, text, text, boolean, text) IS
    'creates a tenant; stripe null means: billed through Stripe if a key file is configured. Raises UB024, UB030, UB032, UB040';
