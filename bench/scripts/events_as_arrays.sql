-- 1,000 new events as arrays, of the tenants that scripts/skew.sql has. Only what follows this is timed.
SELECT array_agg(tenant) AS tenant_ids, array_agg('api_calls'::text) AS metrics, array_agg(quantity) AS quantities,
       array_agg(key) AS idempotency_keys, array_agg(at) AS occurred_ats
  FROM (SELECT CASE WHEN random() < 0.35 THEN 1001 ELSE 1001 + floor(power(1000, random()))::int END::text AS tenant,
               1 + floor(random() * 100)::numeric AS quantity, md5(n || ' ' || random()) AS key,
               now() - random() * interval '10 minutes' AS at
          FROM generate_series(1, 1000) n) event \gset
