-- 10,000 events of the past day, of the tenants that scripts/skew.sql has; in the month that is, so that all of them
-- are in one billing period. With keyed=1 each has a key.
SELECT count(*) FROM billing.record_usage_batch((
    SELECT jsonb_agg(event)
      FROM (SELECT CASE WHEN random() < 0.35 THEN 1001 ELSE 1001 + floor(power(1000, random()))::int END::text AS tenant_id,
                   'api_calls' AS metric, 1 + floor(random() * 100)::numeric AS quantity,
                   CASE WHEN :keyed = 1 THEN md5(n || ' ' || random()) END AS idempotency_key,
                   greatest(now() - random() * interval '1 day', date_trunc('month', now())) AS occurred_at
              FROM generate_series(1, 10000) n) event));
