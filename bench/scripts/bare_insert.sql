INSERT INTO peer.events (tenant_id, metric, quantity, occurred_at, recorded_at, period_start, tick,
    idempotency_key)
VALUES (:tenant, 'api_calls', 1, now(), now(), now(), now(), to_hex(:high::bigint) || to_hex(:low::bigint));
