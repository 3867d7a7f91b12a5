CREATE EXTENSION pg_billing;
SELECT billing.install();
