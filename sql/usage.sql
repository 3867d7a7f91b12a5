-- Usage: events, their keys, what is rolled up of them, and the functions of the hot path (C++, extension/usage.cpp).

CREATE FUNCTION billing._install_usage() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Exactly-once does not depend on a client resending the same time, so keys live apart from the events.
    IF to_regclass('billing.usage_event_keys') IS NULL THEN
        CREATE TABLE billing.usage_event_keys (
            tenant_id text COLLATE "C" NOT NULL,
            key       uuid NOT NULL,            -- billing._event_key(idempotency_key)
            tick      timestamptz NOT NULL,     -- of the event
            voided_at timestamptz,              -- null: it was not
            PRIMARY KEY (tenant_id, key)
        ) PARTITION BY HASH (key);
        FOR i IN 0 .. 15 LOOP
            EXECUTE format('CREATE TABLE billing.usage_event_keys_%s PARTITION OF billing.usage_event_keys
                            FOR VALUES WITH (MODULUS 16, REMAINDER %s)', i, i);
        END LOOP;
    END IF;
    COMMENT ON TABLE billing.usage_event_keys IS 'the idempotency keys already counted';

    -- A tick is a stretch between two rollups. Events are in the order of their arrival, whenever they occurred, so a
    -- day of ticks is complete once it is over: partitions need no unique index and no room for late events. The
    -- columns of fixed width come first, which saves their padding.
    CREATE TABLE IF NOT EXISTS billing.usage_events (
        tick            timestamptz NOT NULL,
        occurred_at     timestamptz NOT NULL,
        recorded_at     timestamptz NOT NULL,
        period_start    timestamptz NOT NULL,   -- of the billing period it counts into; -infinity for a gauge
        tenant_id       text COLLATE "C" NOT NULL,
        metric          text NOT NULL,
        quantity        numeric NOT NULL,
        idempotency_key text,
        properties      jsonb,
        void_reason     text                    -- of a row that takes back an earlier one; null for any other
    ) PARTITION BY RANGE (tick);
    CREATE INDEX IF NOT EXISTS usage_events_tenant ON billing.usage_events (tenant_id, tick);
    -- The rollup's way to the end of the table. Without autosummarize it would read all that was added since the last
    -- vacuum, each minute; large ranges keep the requests for it few.
    CREATE INDEX IF NOT EXISTS usage_events_tick ON billing.usage_events USING brin (tick)
        WITH (pages_per_range = 512, autosummarize = on);
    COMMENT ON TABLE billing.usage_events IS 'every fact of usage, once; partitioned by the UTC day it was recorded in';

    -- What has been rolled up: the events of all ticks before folded_before but those in `unfolded`, whose writers were
    -- still running. In the rows' own transaction, so a snapshot sees an event either here or in the aggregates.
    CREATE TABLE IF NOT EXISTS billing.rollup_state (
        only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        folded_before timestamptz NOT NULL,
        unfolded      timestamptz[] NOT NULL,
        tail          timestamptz NOT NULL,     -- no tick before this one is unfolded
        days          timestamptz[] NOT NULL DEFAULT '{}',   -- of each day, the first tick opened: see _closed_by()
        sweep_part    int NOT NULL DEFAULT 0,   -- of usage_event_keys, and the block in it: where prune_keys() goes on
        sweep_block   bigint NOT NULL DEFAULT 0,
        held_back     boolean NOT NULL DEFAULT false        -- retention waits for Stripe, and has said so
    );
    INSERT INTO billing.rollup_state (folded_before, unfolded, tail) VALUES ('-infinity', '{}', '-infinity')
    ON CONFLICT DO NOTHING;
    COMMENT ON TABLE billing.rollup_state IS 'which ticks of usage_events the rollup has folded into usage_aggregates';

    CREATE TABLE IF NOT EXISTS billing.usage_aggregates (
        tenant_id    text COLLATE "C" NOT NULL,
        metric       text NOT NULL,
        period_start timestamptz NOT NULL,
        hour         timestamptz NOT NULL,          -- UTC hour
        quantity     numeric NOT NULL,              -- of a gauge, by how much its level changed
        events       bigint NOT NULL,
        submitted    numeric,                       -- the total Stripe has confirmed; null: none yet
        blocked      boolean NOT NULL DEFAULT false,  -- Stripe refused it for good: see stripe_dead_letter
        last_at      timestamptz,                   -- when the gauge changed last; of a max or last: when the event that
        recorded_at  timestamptz,                   -- decides occurred, and when it was recorded
        weighted     numeric,                       -- of a gauge: each change times the seconds to the hour's end, and the
        peak         numeric,                       -- highest level within the hour, above that before it
        PRIMARY KEY (tenant_id, metric, period_start, hour)
    );
    CREATE INDEX IF NOT EXISTS usage_aggregates_due ON billing.usage_aggregates (tenant_id, metric, hour)
        WHERE submitted IS DISTINCT FROM quantity AND NOT blocked;
    COMMENT ON TABLE billing.usage_aggregates IS 'usage per tenant, metric, billing period and UTC hour';
END $$;

CREATE FUNCTION billing.record_usage(tenant_id text, metric text, quantity numeric DEFAULT 1,
                                     idempotency_key text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL,
                                     properties jsonb DEFAULT NULL)
RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_record_usage';
COMMENT ON FUNCTION billing.record_usage(text, text, numeric, text, timestamptz, jsonb) IS
    'records usage that already happened: never denied; a known idempotency key changes nothing. Raises UB010, UB011, UB020 to UB025, UB040, UB050, UB051';

CREATE FUNCTION billing.try_consume(tenant_id text, metric text, quantity numeric DEFAULT 1,
                                    idempotency_key text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL,
                                    properties jsonb DEFAULT NULL)
RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_try_consume';
COMMENT ON FUNCTION billing.try_consume(text, text, numeric, text, timestamptz, jsonb) IS
    'checks the quota and records the usage in one step, or answers "denied" and records nothing. Raises as record_usage does';

CREATE FUNCTION billing.consume(tenant_id text, metric text, quantity numeric DEFAULT 1,
                                idempotency_key text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL,
                                properties jsonb DEFAULT NULL)
RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_consume';
COMMENT ON FUNCTION billing.consume(text, text, numeric, text, timestamptz, jsonb) IS
    'does what try_consume does, but raises UB001 where that answers "denied"';

CREATE FUNCTION billing.check_quota(tenant_id text, metric text, quantity numeric DEFAULT 1)
RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_check_quota';
COMMENT ON FUNCTION billing.check_quota(text, text, numeric) IS
    'decides whether try_consume would be allowed now, without any effect. Raises UB010, UB011, UB020, UB021, UB040, UB050, UB051';

CREATE FUNCTION billing.enforce_quota() RETURNS trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_enforce_quota';
COMMENT ON FUNCTION billing.enforce_quota() IS
    'trigger function (''metric'', ''tenant column'' [, ''quantity column'']): counts the rows of a table, or the sum of a column, against each tenant''s quota. Raises UB001, and as record_usage does; UB027, UB032';

CREATE FUNCTION billing.record_usage_batch(events jsonb)
RETURNS TABLE (ordinal int, idempotency_key text, status text, reason text)
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_record_usage_batch_jsonb';
COMMENT ON FUNCTION billing.record_usage_batch(jsonb) IS
    'records an array of events {tenant_id, metric, quantity, idempotency_key, occurred_at, properties}, each with its own result: recorded, duplicate, or rejected with SQLSTATE and message as reason. Raises UB026 if it is no array, UB050';

CREATE FUNCTION billing.record_usage_batch(tenant_ids text[], metrics text[], quantities numeric[] DEFAULT NULL,
                                           idempotency_keys text[] DEFAULT NULL, occurred_ats timestamptz[] DEFAULT NULL,
                                           properties jsonb[] DEFAULT NULL)
RETURNS TABLE (ordinal int, idempotency_key text, status text, reason text)
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_record_usage_batch_arrays';
COMMENT ON FUNCTION billing.record_usage_batch(text[], text[], numeric[], text[], timestamptz[], jsonb[]) IS
    'records one event for each element, as the form with jsonb does; an array that is null, as an element that is, stands for the default. Raises UB026 if the arrays differ in length, UB050';

-- The same, with the decision that record_usage() would answer: for billing.record_usage_requests().
CREATE FUNCTION billing._record_usage_decided(tenant_ids text[], metrics text[], quantities numeric[], idempotency_keys text[],
                                              occurred_ats timestamptz[], properties jsonb[])
RETURNS TABLE (ordinal int, idempotency_key text, status text, allowed boolean, reason text, used numeric, quota numeric,
               remaining numeric, cap text, resets_at timestamptz, warning text)
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_record_usage_decided';
