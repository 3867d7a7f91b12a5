-- The rollup: events become aggregates, each once. It opens a new tick and folds the closed ones that nobody writes in
-- any more, whole, in one transaction with the note that they are folded. So its cost follows new events, not history; a
-- row that commits late keeps only its own tick waiting; a long transaction that writes no usage holds up nothing.

CREATE FUNCTION billing._install_alerts() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.usage_alerts (
        tenant_id    text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
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
    state billing.rollup_state;
    busy timestamptz[];
    opened timestamptz;
    folded bigint;
    began timestamptz := clock_timestamp();
BEGIN
    -- Every statement here has to see what was committed before it, not before the transaction.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'cannot roll up in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = 'active_sql_transaction', HINT = 'Call billing.run_rollup() in READ COMMITTED.';
    END IF;
    -- One at a time: two would fold the same ticks.
    PERFORM billing._report_progress('rollup', 'waiting for another rollup', 0, NULL);
    PERFORM pg_advisory_xact_lock(hashtext('pg_billing.run_rollup'));
    SELECT * INTO STRICT state FROM billing.rollup_state;
    busy := billing._open_tick(state.folded_before);
    opened := busy[1];
    busy := ARRAY(SELECT t FROM unnest(busy[2:]) t WHERE t >= state.folded_before OR t = ANY (state.unfolded) ORDER BY t);

    PERFORM billing._report_progress('rollup', 'folding events', 0, NULL);
    WITH hours AS (
        SELECT e.tenant_id, e.metric, e.period_start, date_bin('1 hour', e.occurred_at, 'epoch') AS hour,
               sum(e.quantity) AS quantity, count(*) AS events
          FROM billing.usage_events e
         WHERE e.tick >= state.tail AND e.tick < opened
           AND (e.tick >= state.folded_before OR e.tick = ANY (state.unfolded))
           AND e.tick <> ALL (busy)
         GROUP BY 1, 2, 3, 4
    ), aggregated AS (
        INSERT INTO billing.usage_aggregates AS a (tenant_id, metric, period_start, hour, quantity, events)
        SELECT h.tenant_id, h.metric, h.period_start, h.hour, h.quantity, h.events FROM hours h
        ON CONFLICT ON CONSTRAINT usage_aggregates_pkey
        DO UPDATE SET quantity = a.quantity + excluded.quantity, events = a.events + excluded.events
    ), touched AS (
        INSERT INTO billing.usage_quotas AS u (tenant_id, metric, period_start, period_end, quota, cap, grace, used)
        SELECT g.tenant_id, g.metric, g.period_start, upper(q.period), q.quota, q.cap, q.grace, g.quantity
          FROM (SELECT h.tenant_id, h.metric, h.period_start, sum(h.quantity) AS quantity, max(h.hour) AS hour
                  FROM hours h GROUP BY 1, 2, 3) g,
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
    SELECT coalesce(sum(h.events), 0) INTO folded FROM hours h;

    UPDATE billing.rollup_state
       SET folded_before = opened, unfolded = busy, tail = least(opened, busy[1]);
    PERFORM billing._report_progress('rollup', 'advancing periods', folded, folded);
    PERFORM billing._advance_periods();
    PERFORM billing._note_rollup(folded, began);
    RETURN folded;
END $$;
COMMENT ON FUNCTION billing.run_rollup() IS
    'rolls up the usage of all transactions that have ended, now, in this session, and returns how many events that was; waits for a rollup under way';
