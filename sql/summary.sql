-- What a tenant used, read from what is rolled up and the events that are not: exact as of the caller's snapshot.
-- These run with the caller's rights: row-level security decides whose usage is seen.

-- The billing period that is meant: 'current', 'previous', or the one that holds any given time.
CREATE FUNCTION billing._billing_period(tenant_id text, metric text, period text) RETURNS tstzrange
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := billing.now();
    q record;
BEGIN
    PERFORM billing._check_bound(tenant_id);
    IF period NOT IN ('current', 'previous') THEN
        BEGIN
            at := period::timestamptz;
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION 'period "%" is not valid', period
                USING ERRCODE = 'UB032', HINT = 'Use ''current'', ''previous'' or a time within the wanted period.';
        END;
    END IF;
    SELECT * INTO q FROM billing._quota_in_force(_billing_period.tenant_id, _billing_period.metric, at);
    IF q.metric_name IS NULL THEN
        PERFORM billing._check_metric(metric);
    END IF;
    IF q.tenant IS NULL THEN
        PERFORM billing._check_tenant(tenant_id);
    END IF;
    IF period = 'previous' THEN
        SELECT * INTO q FROM billing._quota_in_force(_billing_period.tenant_id, _billing_period.metric,
                                                     lower(q.billing_period) - interval '1 microsecond');
    END IF;
    RETURN q.billing_period;
END $$;

-- The same, but a gauge never resets.
CREATE FUNCTION billing._period(tenant_id text, metric text, period text) RETURNS tstzrange
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    meant tstzrange := billing._billing_period(tenant_id, metric, period);
BEGIN
    IF EXISTS (SELECT FROM billing.metrics m WHERE m.name = metric AND m.kind = 'gauge') THEN
        RETURN tstzrange('-infinity', 'infinity');
    END IF;
    RETURN meant;
END $$;

-- The tail: the events that no rollup has folded yet.
CREATE FUNCTION billing._tail() RETURNS billing._batch
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ROW(s.tail, s.folded_before, s.unfolded, timestamptz 'infinity', '{}'::timestamptz[])::billing._batch
      FROM billing.rollup_state s
$$;

-- What a period has come to: what the rollup has noted in usage_quotas, and the tail. Plans are made for the tail at
-- hand, so that they hold only the partitions it lies in.
CREATE FUNCTION billing._used(own text, what text, starts timestamptz) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    tail billing._batch := billing._tail();
    m record;
    used numeric := coalesce((SELECT q.used FROM billing.usage_quotas q
                               WHERE q.tenant_id = own AND q.metric = what AND q.period_start = starts), 0);
BEGIN
    SELECT x.kind, x.aggregation, x.unique_property INTO m FROM billing.metrics x WHERE x.name = what;
    IF m.kind = 'counter' AND m.aggregation IN ('max', 'last', 'unique_count') THEN
        RETURN billing._used_otherwise(own, what, starts, m.aggregation, m.unique_property, used, tail);
    END IF;
    RETURN used + coalesce((SELECT sum(billing._contribution(m.aggregation, e.quantity, e.void_reason))
                              FROM billing.usage_events e
                             WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail)
                               AND e.metric = what AND e.period_start = starts), 0);
END $$;

-- The same for metrics that do not add up.
CREATE FUNCTION billing._used_otherwise(own text, what text, starts timestamptz, aggregation text,
                                        unique_property text, used numeric, tail billing._batch) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
BEGIN
    CASE aggregation
    WHEN 'max' THEN
        RETURN greatest(used, (SELECT max(e.quantity) FROM billing.usage_events e
                                WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail)
                                  AND e.metric = what AND e.period_start = starts));
    WHEN 'last' THEN
        RETURN coalesce((
            SELECT l.quantity
              FROM ((SELECT a.quantity, a.last_at, a.recorded_at FROM billing.usage_aggregates a
                      WHERE a.tenant_id = own AND a.metric = what AND a.period_start = starts
                      ORDER BY a.hour DESC LIMIT 1)
                    UNION ALL
                    SELECT e.quantity, e.occurred_at, e.recorded_at FROM billing.usage_events e
                     WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail)
                       AND e.metric = what AND e.period_start = starts) l
             ORDER BY l.last_at DESC, l.recorded_at DESC, l.quantity DESC LIMIT 1), 0);
    WHEN 'unique_count' THEN
        RETURN used + (
            SELECT count(DISTINCT e.properties ->> unique_property) FROM billing.usage_events e
             WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail) AND e.metric = what AND e.period_start = starts
               AND NOT EXISTS (SELECT FROM billing.usage_uniques u
                                WHERE u.tenant_id = own AND u.metric = what AND u.period_start = starts
                                  AND u.value = billing._event_key(e.properties ->> unique_property)));
    END CASE;
END $$;

-- What was used in a stretch of whole hours, of a metric that adds up.
CREATE FUNCTION billing._used_within(own text, what text, starts timestamptz, ends timestamptz) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    tail billing._batch := billing._tail();
    aggregation text := (SELECT m.aggregation FROM billing.metrics m WHERE m.name = what);
BEGIN
    RETURN coalesce((SELECT sum(a.quantity) FROM billing.usage_aggregates a
                      WHERE a.tenant_id = own AND a.metric = what
                        AND a.hour >= starts AND a.hour < ends), 0)
         + coalesce((SELECT sum(billing._contribution(aggregation, e.quantity, e.void_reason))
                       FROM billing.usage_events e
                      WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail)
                        AND e.metric = what AND e.occurred_at >= starts AND e.occurred_at < ends), 0);
END $$;

CREATE FUNCTION billing.get_current_usage(tenant_id text, metric text, period text DEFAULT 'current') RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._used($1, $2, lower(billing._period($1, $2, $3)))
$$;
COMMENT ON FUNCTION billing.get_current_usage(text, text, text) IS
    'returns the usage of a billing period: current, previous, or the one that holds a given time. Raises UB010, UB011, UB032, UB040';

CREATE FUNCTION billing.get_usage_summary(tenant_id text)
RETURNS TABLE (metric text, kind text, unit text, used numeric, quota numeric, remaining numeric, percentage numeric,
               cap text, period_start timestamptz, period_end timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(get_usage_summary.tenant_id);
    RETURN QUERY
    SELECT m.name, m.kind, m.unit, u.used, q.quota, CASE WHEN q.quota IS NOT NULL THEN greatest(q.quota - u.used, 0) END,
           round(100 * u.used / nullif(q.quota, 0), 2), q.cap, lower(q.period), upper(q.period)
      FROM billing.metrics m,
           LATERAL billing._quota_in_force(get_usage_summary.tenant_id, m.name, billing.now()) q,
           LATERAL (SELECT billing._used(get_usage_summary.tenant_id, m.name, lower(q.period)) AS used) u
     ORDER BY m.name;
END $$;
COMMENT ON FUNCTION billing.get_usage_summary(text) IS
    'returns usage against quota of every metric in the current billing period. Raises UB010';

CREATE FUNCTION billing.is_over_quota(tenant_id text, metric text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_metric(is_over_quota.metric);
    RETURN (SELECT coalesce(s.used > s.quota, false)
              FROM billing.get_usage_summary(is_over_quota.tenant_id) s WHERE s.metric = is_over_quota.metric);
END $$;
COMMENT ON FUNCTION billing.is_over_quota(text, text) IS
    'tells whether the current usage is above the quota; never so when unlimited. Raises UB010, UB011';

CREATE FUNCTION billing.get_usage_percentage(tenant_id text, metric text) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_metric(get_usage_percentage.metric);
    RETURN (SELECT s.percentage FROM billing.get_usage_summary(get_usage_percentage.tenant_id) s
             WHERE s.metric = get_usage_percentage.metric);
END $$;
COMMENT ON FUNCTION billing.get_usage_percentage(text, text) IS
    'returns the current usage in percent of the quota; null when there is none or it is unlimited or zero. Raises UB010, UB011';
