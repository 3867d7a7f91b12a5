-- The rollup: deltas become aggregates, exactly once, in one transaction. Its cost follows new events, not history:
-- no watermark, so neither a row that commits late nor a long transaction leaves a hole or a stall.

CREATE FUNCTION billing._install_alerts() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.usage_alerts (
        tenant_id    text NOT NULL REFERENCES billing.billing_customers,
        metric       text NOT NULL REFERENCES billing.metrics,
        period_start timestamptz NOT NULL,
        threshold    int NOT NULL,          -- percent of the quota
        used         numeric NOT NULL,
        quota        numeric NOT NULL,
        raised_at    timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, metric, period_start, threshold)
    );
    COMMENT ON TABLE billing.usage_alerts IS 'thresholds crossed: once per tenant, metric, period and threshold';
END $$;

CREATE FUNCTION billing.run_rollup() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    folded bigint;
BEGIN
    -- One at a time: two would wait on each other's aggregates.
    PERFORM pg_advisory_xact_lock(hashtext('pg_billing.run_rollup'));

    WITH gone AS (
        DELETE FROM billing.usage_deltas RETURNING *
    ), hours AS (
        INSERT INTO billing.usage_aggregates AS a (tenant_id, metric, period_start, hour, quantity, events)
        SELECT g.tenant_id, g.metric, g.period_start, g.hour, sum(g.quantity), count(*)
          FROM gone g GROUP BY 1, 2, 3, 4
        ON CONFLICT ON CONSTRAINT usage_aggregates_pkey
        DO UPDATE SET quantity = a.quantity + excluded.quantity, events = a.events + excluded.events
    ), touched AS (
        INSERT INTO billing.usage_quotas AS u (tenant_id, metric, period_start, period_end, quota, cap, grace, used)
        SELECT g.tenant_id, g.metric, g.period_start, upper(q.period), q.quota, q.cap, q.grace, g.quantity
          FROM (SELECT d.tenant_id, d.metric, d.period_start, sum(d.quantity) AS quantity, max(d.hour) AS hour
                  FROM gone d GROUP BY 1, 2, 3) g,
               LATERAL billing._quota_in_force(g.tenant_id, g.metric, greatest(g.hour, g.period_start)) q
        ON CONFLICT ON CONSTRAINT usage_quotas_pkey
        DO UPDATE SET used = u.used + excluded.used
        RETURNING *
    ), alerts AS (
        INSERT INTO billing.usage_alerts (tenant_id, metric, period_start, threshold, used, quota, raised_at)
        SELECT t.tenant_id, t.metric, t.period_start, p.threshold, t.used, t.quota, billing.now()
          FROM touched t, (VALUES (80), (100), (120)) p (threshold)
         WHERE t.quota > 0 AND t.used * 100 >= t.quota * p.threshold
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO folded FROM gone;

    PERFORM billing._advance_periods();
    RETURN folded;
END $$;
COMMENT ON FUNCTION billing.run_rollup() IS
    'rolls up all committed usage now, in this session, and returns how many events that was; waits for a rollup under way';
