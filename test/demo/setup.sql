-- The demo's database: pg_billing, an application role without special rights, and where the replay leaves its log.
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION pg_billing;
SELECT billing.install() \g /dev/null
DROP ROLE IF EXISTS demo_app;
CREATE ROLE demo_app LOGIN IN ROLE billing_app;

CREATE SCHEMA demo;
CREATE TABLE demo.requests (number int PRIMARY KEY, tenant_id text NOT NULL, tokens numeric NOT NULL, allowed boolean NOT NULL);
GRANT USAGE ON SCHEMA demo TO demo_app;
GRANT INSERT ON demo.requests TO demo_app;

-- Tenant 1 has a third of all traffic and has outgrown Standard; five more are large, fourteen middling, forty try Free.
CREATE FUNCTION demo.create_tenant(n int, clock text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    tenant text := 'tenant-' || to_char(n, 'FM00');
BEGIN
    PERFORM billing.create_customer(tenant, 'Tenant ' || n, 'billing@' || tenant || '.example',
                                    stripe => true, stripe_test_clock => clock);
    RETURN billing.create_subscription(tenant,
        CASE WHEN n BETWEEN 2 AND 6 THEN 'enterprise' WHEN n <= 20 THEN 'standard' ELSE 'free' END,
        collection_method => 'send_invoice', days_until_due => 30);
END $$;
