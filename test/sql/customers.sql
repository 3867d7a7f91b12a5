-- create_customer: every argument it refuses, and what a tenant's row holds.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT billing.create_customer('acme', 'Acme', 'billing@acme.example');
SELECT billing.create_customer('größe/42', 'Größe GmbH', 'rechnung@groesse.example', 'Europe/Berlin', true, 'clock_1');
SELECT billing.create_customer(repeat('x', 128), 'Long', 'l@x', stripe => false) = repeat('x', 128) AS longest;
SELECT left(tenant_id, 10) AS tenant_id, name, email, timezone, stripe, stripe_customer_id, stripe_test_clock,
       created_at BETWEEN billing.now() - interval '1 minute' AND billing.now() AS created_now
  FROM billing.billing_customers ORDER BY created_at;

CALL attempt($$SELECT billing.create_customer('acme', 'Acme', 'billing@acme.example')$$);
CALL attempt($$SELECT billing.create_customer('', 'Acme', 'billing@acme.example')$$);
CALL attempt($$SELECT billing.create_customer(NULL, 'Acme', 'billing@acme.example')$$);
CALL attempt($$SELECT billing.create_customer(repeat('x', 129), 'Acme', 'billing@acme.example')$$);
CALL attempt($$SELECT billing.create_customer(repeat('ü', 65), 'Acme', 'billing@acme.example')$$);
CALL attempt($$SELECT billing.create_customer('b', '', 'billing@acme.example')$$);
CALL attempt($$SELECT billing.create_customer('b', NULL, 'billing@acme.example')$$);
CALL attempt($$SELECT billing.create_customer('b', 'B', 'nobody')$$);
CALL attempt($$SELECT billing.create_customer('b', 'B', NULL)$$);
CALL attempt($$SELECT billing.create_customer('b', 'B', 'b@b.example', 'Mars/Olympus')$$);
CALL attempt($$SELECT billing.create_customer('b', 'B', 'b@b.example', NULL)$$);
SET pg_billing.tenant_id = 'acme';
CALL attempt($$SELECT billing.create_customer('b', 'B', 'b@b.example')$$);
RESET pg_billing.tenant_id;
SELECT count(*) FROM billing.billing_customers;

-- rolled back: the name is free again
BEGIN;
SELECT billing.create_customer('b', 'B', 'b@b.example');
ROLLBACK;
SELECT billing.create_customer('b', 'B', 'b@b.example');
