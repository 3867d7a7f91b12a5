-- The rollup: events become aggregates, each once. It opens a new tick and folds the closed ones that nobody writes in
-- any more, whole, in one transaction with the note that they are folded. So its cost follows new events, not history; a
-- row that commits late keeps only its own tick waiting; a long transaction that writes no usage holds up nothing.

-- Which events are meant: those of ticks from folded_before to `before`, and of the earlier ones in `unfolded`, without
-- those in `busy`. `since` is the first of all these ticks, so that older partitions are not looked at.
CREATE TYPE billing._batch AS (
    since timestamptz, folded_before timestamptz, unfolded timestamptz[], before timestamptz, busy timestamptz[]
);

CREATE FUNCTION billing._in_batch(tick timestamptz, batch billing._batch) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT $1 >= ($2).since AND $1 < ($2).before AND ($1 >= ($2).folded_before OR $1 = ANY (($2).unfolded))
       AND $1 <> ALL (($2).busy)
$$;

-- A tick before which all ticks had been closed at a given time, so that what is in them was recorded until then: the
-- first that was opened on the last possible day. -infinity if none is known.
CREATE FUNCTION billing._closed_by(at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(max(d), '-infinity') FROM billing.rollup_state s, unnest(s.days) d WHERE d <= $1
$$;

-- One pass over a batch: hours, periods and alerts of what adds up. Returns how many events and which metrics they were.
-- How many groups there will be nobody can estimate; they are hashed, for sorting all events takes several times as long.
CREATE FUNCTION billing._roll_up_hours(batch billing._batch, OUT folded bigint, OUT touched text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_sort = off SET enable_incremental_sort = off SET work_mem = '32MB' AS $$
BEGIN
    WITH hours AS (
        SELECT e.tenant_id, e.metric, e.period_start, date_bin('1 hour', e.occurred_at, 'epoch') AS hour,
               sum(e.quantity) AS total, count(*) AS events, count(e.void_reason) AS voids
          FROM billing.usage_events e
         WHERE billing._in_batch(e.tick, batch)
         GROUP BY 1, 2, 3, 4
    ), counted AS (
        -- What does not add up is rolled up afterwards, and until then nothing.
        SELECT h.*, CASE WHEN m.kind = 'gauge' OR m.aggregation = 'sum' THEN h.total
                         WHEN m.aggregation = 'count' THEN h.events - 2 * h.voids ELSE 0 END AS quantity
          FROM hours h LEFT JOIN billing.metrics m ON m.name = h.metric
    ), aggregated AS (
        INSERT INTO billing.usage_aggregates AS a (tenant_id, metric, period_start, hour, quantity, events)
        SELECT c.tenant_id, c.metric, c.period_start, c.hour, c.quantity, c.events FROM counted c
        ON CONFLICT ON CONSTRAINT usage_aggregates_pkey
        DO UPDATE SET quantity = a.quantity + excluded.quantity, events = a.events + excluded.events
    ), used AS (
        INSERT INTO billing.usage_quotas AS u (tenant_id, metric, period_start, period_end, quota, cap, grace, used)
        SELECT g.tenant_id, g.metric, g.period_start, upper(q.period), q.quota, q.cap, q.grace, g.quantity
          FROM (SELECT c.tenant_id, c.metric, c.period_start, sum(c.quantity) AS quantity, max(c.hour) AS hour
                  FROM counted c GROUP BY 1, 2, 3) g,
               LATERAL billing._quota_in_force(g.tenant_id, g.metric, greatest(g.hour, g.period_start)) q
         ORDER BY g.tenant_id, g.period_start, g.metric     -- as _refresh_quotas() does, beside which this runs
        ON CONFLICT ON CONSTRAINT usage_quotas_pkey
        DO UPDATE SET used = u.used + excluded.used
        RETURNING *
    ), alerts AS (
        -- A gauge's alerts are of the billing period: its own has no end.
        INSERT INTO billing.usage_alerts (tenant_id, metric, period_start, kind, threshold, used, quota, raised_at)
        SELECT u.tenant_id, u.metric, CASE WHEN isfinite(u.period_start) THEN u.period_start
                   ELSE (SELECT lower(q.billing_period)
                           FROM billing._quota_in_force(u.tenant_id, u.metric, billing.now()) q) END,
               r.kind, r.threshold, u.used, CASE r.kind WHEN 'percent' THEN u.quota END, billing.now()
          FROM used u, billing._rules_reached(u.tenant_id, u.metric, u.used, u.quota) r
        ON CONFLICT DO NOTHING
    )
    SELECT coalesce(sum(h.events), 0), array_agg(DISTINCT h.metric) INTO folded, touched FROM hours h;
END $$;

-- Plans are made for the batch at hand, so that they hold only the partitions it lies in, and are not worth compiling.
CREATE FUNCTION billing.run_rollup() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off AS $$
DECLARE
    state billing.rollup_state;
    ticks timestamptz[];
    batch billing._batch;
    folded bigint;
    touched text[];
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
    ticks := billing._open_tick(state.folded_before);
    batch := ROW(state.tail, state.folded_before, state.unfolded, ticks[1],
                 ARRAY(SELECT t FROM unnest(ticks[2:]) t
                        WHERE t >= state.folded_before OR t = ANY (state.unfolded) ORDER BY t));

    PERFORM billing._report_progress('rollup', 'folding events', 0, NULL);
    SELECT h.folded, h.touched INTO folded, touched FROM billing._roll_up_hours(batch) h;
    PERFORM billing._roll_up_kinds(batch, touched);

    UPDATE billing.rollup_state s
       SET folded_before = batch.before, unfolded = batch.busy, tail = least(batch.before, batch.busy[1]),
           days = CASE WHEN s.days[cardinality(s.days)] >= date_trunc('day', batch.before, 'UTC') THEN s.days
                       ELSE s.days || batch.before END;
    PERFORM billing._report_progress('rollup', 'advancing periods', folded, folded);
    PERFORM billing._advance_periods();
    PERFORM billing._expire_credits();
    PERFORM billing._raise_forecasts(batch);
    PERFORM billing._note_rollup(folded, began);
    RETURN folded;
END $$;
COMMENT ON FUNCTION billing.run_rollup() IS
    'rolls up the usage of all transactions that have ended, now, in this session, and returns how many events that was; waits for a rollup under way';
