-- Reservations: quantity held before the work and settled after (C++, extension/reservations.cpp).

CREATE FUNCTION billing._install_reservations() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.reservations (
        tenant_id        text COLLATE "C" NOT NULL,
        id               uuid NOT NULL,
        metric           text NOT NULL,
        quantity         numeric NOT NULL,      -- what is held, as it counts: an event of a metric that counts events is one
        state            text NOT NULL CHECK (state IN ('held', 'settled', 'released', 'expired')),
        period_start     timestamptz NOT NULL,  -- as in usage_events
        reserved_at      timestamptz NOT NULL,
        expires_at       timestamptz NOT NULL,  -- held until somebody marks it as expired, and no less
        settled_quantity numeric,               -- null: not settled
        idempotency_key  text,
        PRIMARY KEY (tenant_id, id)
    );
    CREATE UNIQUE INDEX IF NOT EXISTS reservations_key ON billing.reservations (tenant_id, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE INDEX IF NOT EXISTS reservations_id ON billing.reservations (id);
    CREATE INDEX IF NOT EXISTS reservations_held ON billing.reservations (tenant_id, metric, period_start)
        WHERE state = 'held';
    CREATE INDEX IF NOT EXISTS reservations_due ON billing.reservations (expires_at) WHERE state = 'held';
    CREATE INDEX IF NOT EXISTS reservations_ended ON billing.reservations (expires_at) WHERE state <> 'held';
    COMMENT ON TABLE billing.reservations IS 'quantity held for work under way, until it is settled, released or expired';
END $$;

-- What is held of a billing period, and of a stretch of whole hours. It is no usage: only counters know of it.
CREATE FUNCTION billing._held(tenant_id text, metric text, period_start timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(r.quantity), 0) FROM billing.reservations r
     WHERE r.tenant_id = $1 AND r.metric = $2 AND r.period_start = $3 AND r.state = 'held'
$$;

CREATE FUNCTION billing._held_within(tenant_id text, metric text, starts timestamptz, ends timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(r.quantity), 0) FROM billing.reservations r
     WHERE r.tenant_id = $1 AND r.metric = $2 AND r.reserved_at >= $3 AND r.reserved_at < $4 AND r.state = 'held'
$$;

CREATE FUNCTION billing.reserve(tenant_id text, metric text, quantity numeric DEFAULT 1,
                                ttl interval DEFAULT '10 minutes', idempotency_key text DEFAULT NULL)
RETURNS billing.reservation
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_reserve';
COMMENT ON FUNCTION billing.reserve(text, text, numeric, interval, text) IS
    'checks the quota as try_consume does and holds the quantity until it is settled or released or the time to live, at most 7 days, is over; a denial holds nothing and has no id; a known idempotency key answers with the same reservation. Raises UB010, UB011, UB020, UB021, UB023, UB024, UB027, UB032, UB040, UB050, UB051';

CREATE FUNCTION billing.settle(reservation_id uuid, quantity numeric, properties jsonb DEFAULT NULL)
RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_settle';
COMMENT ON FUNCTION billing.settle(uuid, numeric, jsonb) IS
    'records what was used of a reservation, or beyond it, in the period it was made in, and ends it: never denied, once; its event has the reservation''s idempotency key, or its id. Raises UB020, UB021, UB022 if it expired too long ago, UB025, UB028, UB029 if it was released, UB050, UB051';

CREATE FUNCTION billing.release(reservation_id uuid) RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_release';
COMMENT ON FUNCTION billing.release(uuid) IS
    'gives back what a reservation holds and ends it, nothing used; "duplicate" if it was released or has expired already. Raises UB028, UB029 if it was settled, UB050, UB051';

CREATE FUNCTION billing.expire_reservations() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_expire_reservations';
COMMENT ON FUNCTION billing.expire_reservations() IS
    'frees what reservations that have expired hold and forgets those that ended long ago, some at a time; returns how many that were: 0 when there is none left. The rollup worker calls it. Raises UB050, UB051';
