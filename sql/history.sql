-- What a tenant used over time: by hour, by day, by billing period, and what that leads to. Like all readers of usage
-- these run with the caller's rights, and count what is not rolled up yet, too.

-- The hours in which a counter was used; of a last value each hour's own, of a unique count the values first seen in it.
CREATE FUNCTION billing._usage_hours(own text, what text, starts timestamptz, ends timestamptz)
RETURNS TABLE (hour timestamptz, quantity numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    tail billing._batch := billing._tail();
    m record;
BEGIN
    SELECT x.aggregation, x.unique_property INTO m FROM billing.metrics x WHERE x.name = what;
    IF m.aggregation = 'unique_count' THEN
        RETURN QUERY
        SELECT u.hour, sum(u.quantity)
          FROM (SELECT a.hour, a.quantity FROM billing.usage_aggregates a
                 WHERE a.tenant_id = own AND a.metric = what AND a.hour >= starts AND a.hour < ends
                UNION ALL
                SELECT f.hour, 1
                  FROM (SELECT date_bin('1 hour', min(e.occurred_at), 'epoch') AS hour
                          FROM billing.usage_events e
                         WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail) AND e.metric = what
                           AND e.properties ->> m.unique_property IS NOT NULL
                           AND NOT EXISTS (SELECT FROM billing.usage_uniques k
                                            WHERE k.tenant_id = own AND k.metric = what AND k.period_start = e.period_start
                                              AND k.value = billing._event_key(e.properties ->> m.unique_property))
                         GROUP BY e.period_start, e.properties ->> m.unique_property) f
                 WHERE f.hour >= starts AND f.hour < ends) u
         GROUP BY 1;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT u.hour, CASE m.aggregation
                   WHEN 'max' THEN max(u.quantity)
                   WHEN 'last' THEN (array_agg(u.quantity ORDER BY u.last_at DESC, u.recorded_at DESC, u.quantity DESC))[1]
                   ELSE sum(u.quantity) END
      FROM (SELECT a.hour, a.quantity, a.last_at, a.recorded_at FROM billing.usage_aggregates a
             WHERE a.tenant_id = own AND a.metric = what AND a.hour >= starts AND a.hour < ends
            UNION ALL
            SELECT date_bin('1 hour', e.occurred_at, 'epoch'),
                   billing._contribution(m.aggregation, e.quantity, e.void_reason), e.occurred_at, e.recorded_at
              FROM billing.usage_events e
             WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail) AND e.metric = what
               AND e.occurred_at >= starts AND e.occurred_at < ends) u
     GROUP BY 1;
END $$;

-- The same by stretches: every hour or day of the time asked for, as far as usage may have come, with the usage that
-- falls into that time. Each stretch begins where the last one ends, so that days have as many hours as they have.
CREATE FUNCTION billing._usage_per(own text, what text, per text, since timestamptz, until timestamptz)
RETURNS TABLE (span tstzrange, quantity numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    period tstzrange := billing._billing_period(own, what, 'current');
    starts timestamptz := date_trunc('hour', coalesce(since, lower(period)), 'UTC');
    ends timestamptz := coalesce(until, upper(period));
    known timestamptz := least(ends, billing.now() + current_setting('pg_billing.future_limit')::interval);
    longest interval := 10000 * CASE per WHEN 'hour' THEN interval '1 hour' ELSE interval '1 day' END;
    zone text := (SELECT c.timezone FROM billing.billing_customers c WHERE c.tenant_id = own);
    m record;
BEGIN
    IF NOT isfinite(starts) OR NOT isfinite(ends) OR starts >= ends OR known - starts > longest THEN
        RAISE EXCEPTION 'the time from % until % is not valid', starts, ends
            USING ERRCODE = 'UB032', HINT = format('The first is before the second, by %s at most; null stands for the current billing period.', longest);
    END IF;
    SELECT x.kind, x.aggregation, x.scale INTO m FROM billing.metrics x WHERE x.name = what;
    RETURN QUERY
    WITH RECURSIVE spans AS (
        SELECT billing._window_at(per, zone, starts) AS whole WHERE starts < known
        UNION ALL
        SELECT billing._window_at(per, zone, upper(s.whole)) FROM spans s WHERE upper(s.whole) < known
    ), used AS (
        SELECT lower(billing._window_at(per, zone, h.hour)) AS starts,
               CASE m.aggregation WHEN 'max' THEN max(h.quantity)
                                  WHEN 'last' THEN (array_agg(h.quantity ORDER BY h.hour DESC))[1]
                                  ELSE sum(h.quantity) END AS quantity
          FROM billing._usage_hours(own, what, starts, ends) h
         WHERE m.kind = 'counter'
         GROUP BY 1
    )
    SELECT c.span, CASE m.kind
                   WHEN 'counter' THEN coalesce(u.quantity, 0)
                   ELSE trim_scale(round(billing._gauge_over(own, what, lower(c.span), upper(c.span),
                                                             m.aggregation = 'max'), m.scale)) END
      FROM spans s
      CROSS JOIN LATERAL (SELECT s.whole * tstzrange(starts, ends) AS span) c
      LEFT JOIN used u ON u.starts = lower(s.whole)
     ORDER BY 1;
END $$;

CREATE FUNCTION billing.get_usage_by_hour(tenant_id text, metric text, since timestamptz DEFAULT NULL,
                                          until timestamptz DEFAULT NULL)
RETURNS TABLE (hour timestamptz, quantity numeric)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT lower(u.span), u.quantity FROM billing._usage_per($1, $2, 'hour', $3, $4) u
$$;
COMMENT ON FUNCTION billing.get_usage_by_hour(text, text, timestamptz, timestamptz) IS
    'returns the usage of each UTC hour, from since until before until, or of the current billing period: of a gauge its average or peak within the hour, of a unique count the values first seen in it. Raises UB010, UB011, UB032, UB040';

CREATE FUNCTION billing.get_usage_by_day(tenant_id text, metric text, since timestamptz DEFAULT NULL,
                                         until timestamptz DEFAULT NULL)
RETURNS TABLE (day date, quantity numeric)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ((lower(u.span) + interval '1 hour' - interval '1 microsecond')
            AT TIME ZONE (SELECT c.timezone FROM billing.billing_customers c WHERE c.tenant_id = $1))::date, u.quantity
      FROM billing._usage_per($1, $2, 'day', $3, $4) u
$$;
COMMENT ON FUNCTION billing.get_usage_by_day(text, text, timestamptz, timestamptz) IS
    'returns the usage of each day in the tenant''s time zone, as get_usage_by_hour does; of the first and the last day only what falls into the time asked for. A day begins with the UTC hour that local midnight falls into. Raises UB010, UB011, UB032, UB040';

CREATE FUNCTION billing.get_usage_history(tenant_id text, metric text, periods int DEFAULT 12)
RETURNS TABLE (period_start timestamptz, period_end timestamptz, quantity numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    period tstzrange := billing._billing_period(tenant_id, metric, 'current');
    created_at timestamptz := (SELECT c.created_at FROM billing.billing_customers c
                                WHERE c.tenant_id = get_usage_history.tenant_id);
BEGIN
    FOR n IN 1 .. coalesce(periods, 12) LOOP
        period_start := lower(period);
        period_end := upper(period);
        quantity := billing._billable(tenant_id, metric, period);
        -- a tenant may have brought late usage with it
        EXIT WHEN period_end <= created_at AND quantity = 0;
        RETURN NEXT;
        SELECT q.billing_period INTO period
          FROM billing._quota_in_force(get_usage_history.tenant_id, get_usage_history.metric,
                                       period_start - interval '1 microsecond') q;
    END LOOP;
END $$;
COMMENT ON FUNCTION billing.get_usage_history(text, text, int) IS
    'returns what the last billing periods bill, the current one first, back to the one in which the tenant was created. Raises UB010, UB011, UB040';

-- What a metric bills at the end of the current period: sums and counts go on growing as they did so far, in proportion to
-- the time that has passed; a maximum, a peak or a last value stays, and a gauge its level.
CREATE FUNCTION billing.get_projected_usage(tenant_id text, metric text) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    used numeric := billing.get_billable_usage(tenant_id, metric);
    period tstzrange := billing._billing_period(tenant_id, metric, 'current');
    whole numeric := extract(epoch FROM upper(period) - lower(period));
    elapsed numeric := extract(epoch FROM billing.now() - lower(period));
    m record;
BEGIN
    SELECT x.aggregation, x.scale INTO m FROM billing.metrics x WHERE x.name = get_projected_usage.metric;
    IF elapsed <= 0 THEN
        RETURN used;
    ELSIF m.aggregation IN ('sum', 'count', 'unique_count') THEN
        RETURN trim_scale(round(used * whole / elapsed, m.scale));
    ELSIF m.aggregation = 'time_weighted' THEN
        RETURN trim_scale(round((used * elapsed + billing._used(tenant_id, metric, '-infinity') * (whole - elapsed)) / whole,
                                m.scale));
    END IF;
    RETURN used;
END $$;
COMMENT ON FUNCTION billing.get_projected_usage(text, text) IS
    'returns what the metric bills at the end of the billing period if all goes on: sums and counts in proportion to the time passed, a gauge at its present level, peaks, maxima and last values as they are. Raises UB010, UB011, UB040';
