-- 1,000 new events as one JSON array, of the tenants that scripts/skew.sql has. Only what follows this is timed.
SELECT jsonb_agg(event) AS events
  FROM (SELECT CASE WHEN random() < 0.35 THEN 1001 ELSE 1001 + floor(power(1000, random()))::int END::text AS tenant_id,
               'api_calls' AS metric, 1 + floor(random() * 100)::numeric AS quantity,
               md5(n || ' ' || random()) AS idempotency_key,
               now() - random() * interval '10 minutes' AS occurred_at
          FROM generate_series(1, 1000) n) event \gset
