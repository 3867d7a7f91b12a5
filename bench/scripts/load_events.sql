-- 10,000 events of the past day, of the tenants that scripts/skew.sql has; in the month that is, so that all of them
-- are in one billing period. With keyed=1 each has a key.
SELECT count(*) FILTER (WHERE status = 'recorded')
  FROM (SELECT array_agg((CASE WHEN random() < 0.35 THEN 1001 ELSE 1001 + floor(power(1000, random())) END)::text)
                   AS tenants,
               array_agg('api_calls'::text) AS metrics,
               array_agg(1 + floor(random() * 100)::numeric) AS quantities,
               array_agg(CASE WHEN :keyed = 1 THEN md5(n || ' ' || random()) END) AS keys,
               array_agg(greatest(now() - random() * interval '1 day', date_trunc('month', now()))) AS times
          FROM generate_series(1, 10000) n) e,
       LATERAL billing.record_usage_batch(e.tenants, e.metrics, e.quantities, e.keys, e.times);
