-- 1,000 tenants, all alike.
\set tenant random(1001, 2000)
