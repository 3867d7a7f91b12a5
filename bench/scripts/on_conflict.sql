INSERT INTO peer.keyed_events (tenant_id, metric, quantity, occurred_at, recorded_at, period_start, tick,
    idempotency_key)
SELECT e.tenant, e.metric, e.quantity, e.at, now(), e.at, now(), e.key
  FROM unnest(:tenant_ids::text[], :metrics::text[], :quantities::numeric[], :idempotency_keys::text[],
              :occurred_ats::timestamptz[]) e (tenant, metric, quantity, key, at)
    ON CONFLICT DO NOTHING;
