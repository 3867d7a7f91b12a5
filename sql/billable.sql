-- What a billing period bills so far, and what its usage is made of. Like all readers of usage these run with the
-- caller's rights, and are exact as of the caller's snapshot.

-- A gauge from the start of an hour on: its average over time, or its highest level.
--
-- A change counts from the moment it occurred. So the integral of the level is the level at the start times the whole
-- stretch, plus every change times what is left of the stretch after it; the rollup has summed that up to the hour's end.
CREATE FUNCTION billing._gauge_over(own text, what text, starts timestamptz, ends timestamptz, peak boolean)
RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    tail billing._batch := billing._tail();
    base numeric;       -- the level before the start
    f record;
BEGIN
    base := billing._used(own, what, '-infinity')
          - coalesce((SELECT sum(a.quantity) FROM billing.usage_aggregates a
                       WHERE a.tenant_id = own AND a.metric = what AND a.period_start = '-infinity'
                         AND a.hour >= starts), 0)
          - coalesce((SELECT sum(e.quantity) FROM billing.usage_events e
                       WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail) AND e.metric = what
                         AND e.occurred_at >= starts), 0);
    WITH recent AS (
        SELECT t.hour, sum(t.quantity) AS quantity, max(t.occurred_at) AS last_at,
               sum(t.quantity * extract(epoch FROM t.hour + interval '1 hour' - t.occurred_at)) AS weighted
          FROM (SELECT date_bin('1 hour', e.occurred_at, 'epoch') AS hour, e.occurred_at, e.quantity
                  FROM billing.usage_events e
                 WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail) AND e.metric = what
                   AND e.occurred_at >= starts AND e.occurred_at < ends) t
         GROUP BY 1
    ), rolled_up AS (
        SELECT a.hour, a.quantity, a.last_at, a.weighted, a.peak FROM billing.usage_aggregates a
         WHERE a.tenant_id = own AND a.metric = what AND a.period_start = '-infinity'
           AND a.hour >= starts AND a.hour < ends
    ), hours AS (
        SELECT hour, coalesce(a.quantity, 0) + coalesce(r.quantity, 0) AS quantity,
               coalesce(a.weighted, 0) + coalesce(r.weighted, 0) AS weighted,
               greatest(a.last_at, r.last_at) AS last_at,
               CASE WHEN NOT _gauge_over.peak THEN NULL
                    WHEN r.quantity IS NULL THEN a.peak ELSE billing._gauge_peak(own, what, hour, tail) END AS peak
          FROM rolled_up a FULL JOIN recent r USING (hour)
    ), levels AS (
        SELECT h.*, base + sum(h.quantity) OVER (ORDER BY h.hour) - h.quantity AS level FROM hours h
    ), stretch AS (
        -- up to the present, or to a change that is a little ahead of it
        SELECT greatest(least(ends, billing.now()), max(l.last_at)) AS until FROM levels l
    )
    SELECT s.until, extract(epoch FROM s.until - starts) AS seconds, max(l.level + l.peak) AS highest,
           bool_or(l.hour = starts) AS changed_at_once,
           coalesce(sum(l.weighted + l.quantity * extract(epoch FROM s.until - l.hour - interval '1 hour')), 0) AS changes
      INTO f FROM stretch s LEFT JOIN levels l ON true GROUP BY 1, 2;
    IF _gauge_over.peak THEN
        -- without a change in the first hour the level before lasts into it
        RETURN greatest(f.highest, CASE WHEN f.changed_at_once THEN NULL ELSE base END);
    ELSIF f.seconds > 0 THEN
        RETURN base + f.changes / f.seconds;
    END IF;
    RETURN base;
END $$;

CREATE FUNCTION billing._billable(own text, what text, period tstzrange) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m record;
BEGIN
    SELECT x.kind, x.aggregation, x.scale INTO m FROM billing.metrics x WHERE x.name = what;
    IF m.kind = 'counter' THEN
        RETURN billing._used(own, what, lower(period));
    END IF;
    -- a level, which has no hour of its own: one that two subscriptions share counts in both
    RETURN trim_scale(round(billing._gauge_over(own, what, CASE WHEN lower(period) = date_trunc('second', lower(period))
                                                                THEN date_trunc('hour', lower(period), 'UTC') ELSE lower(period) END,
                                                upper(period), m.aggregation = 'max'), m.scale));
END $$;

CREATE FUNCTION billing.get_billable_usage(tenant_id text, metric text, period text DEFAULT 'current') RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._billable($1, $2, billing._billing_period($1, $2, $3))
$$;
COMMENT ON FUNCTION billing.get_billable_usage(text, text, text) IS
    'returns what a billing period bills so far, by the metric''s aggregation: of a gauge its average over time up to now, or its highest level. Raises UB010, UB011, UB032, UB040';

CREATE FUNCTION billing.get_usage_breakdown(tenant_id text, metric text, dimension text, period text DEFAULT 'current')
RETURNS TABLE (value text, quantity numeric, events bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    tail billing._batch := billing._tail();
    starts timestamptz := lower(billing._period(tenant_id, metric, period));
    m record;
BEGIN
    SELECT x.aggregation, x.dimensions INTO m FROM billing.metrics x WHERE x.name = get_usage_breakdown.metric;
    IF NOT coalesce(dimension = ANY (m.dimensions), false) THEN
        RAISE EXCEPTION 'metric "%" has no dimension "%"', metric, left(dimension, 64)
            USING ERRCODE = 'UB032', HINT = 'billing.metrics lists the dimensions of each metric; an administrator adds them there.';
    END IF;
    RETURN QUERY
    SELECT u.value, sum(u.quantity), sum(u.events)::bigint
      FROM (SELECT b.dimensions ->> dimension AS value, b.quantity, b.events
              FROM billing.usage_breakdown b
             WHERE b.tenant_id = get_usage_breakdown.tenant_id AND b.metric = get_usage_breakdown.metric
               AND b.period_start = starts
            UNION ALL
            SELECT billing._dimension(e.properties, dimension),
                   billing._contribution(m.aggregation, e.quantity, e.void_reason),
                   billing._contribution('count', e.quantity, e.void_reason)
              FROM billing.usage_events e
             WHERE e.tenant_id = get_usage_breakdown.tenant_id AND billing._in_batch(e.tick, tail)
               AND e.metric = get_usage_breakdown.metric AND e.period_start = starts) u
     GROUP BY u.value ORDER BY 2 DESC, 1;
END $$;
COMMENT ON FUNCTION billing.get_usage_breakdown(text, text, text, text) IS
    'returns the usage of a billing period by the values of one of the metric''s dimensions, the largest first; value null: events without that property. Raises UB010, UB011, UB032, UB040';
