-- What a tenant used, read from what is rolled up and the events that are not: exact as of the caller's snapshot.
-- These run with the caller's rights: row-level security decides whose usage is seen.

-- period: 'current', 'previous', or any time that lies in the wanted period.
CREATE FUNCTION billing._period(tenant_id text, metric text, period text) RETURNS tstzrange
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := billing.now();
    q record;
BEGIN
    IF period NOT IN ('current', 'previous') THEN
        BEGIN
            at := period::timestamptz;
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION 'period "%" is not valid', period
                USING ERRCODE = 'UB032', HINT = 'Use ''current'', ''previous'' or a time within the wanted period.';
        END;
    END IF;
    SELECT * INTO q FROM billing._quota_in_force(_period.tenant_id, _period.metric, at);
    IF q.metric_name IS NULL THEN
        PERFORM billing._check_metric(metric);
    END IF;
    IF q.tenant IS NULL THEN
        PERFORM billing._check_tenant(tenant_id);
    END IF;
    IF period = 'previous' AND q.kind = 'counter' THEN
        SELECT * INTO q
          FROM billing._quota_in_force(_period.tenant_id, _period.metric, lower(q.period) - interval '1 microsecond');
    END IF;
    RETURN q.period;
END $$;

-- The events of a tenant that are not rolled up yet.
CREATE FUNCTION billing._tail(tenant_id text)
RETURNS TABLE (metric text, quantity numeric, occurred_at timestamptz, period_start timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT e.metric, e.quantity, e.occurred_at, e.period_start FROM billing.usage_events e
     WHERE e.tenant_id = $1
       AND e.tick >= (SELECT s.tail FROM billing.rollup_state s)
       AND (e.tick >= (SELECT s.folded_before FROM billing.rollup_state s)
            OR e.tick = ANY ((SELECT s.unfolded FROM billing.rollup_state s)::timestamptz[]))
$$;

CREATE FUNCTION billing._used(tenant_id text, metric text, period_start timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT q.used FROM billing.usage_quotas q
                      WHERE q.tenant_id = $1 AND q.metric = $2 AND q.period_start = $3), 0)
         + coalesce((SELECT sum(e.quantity) FROM billing._tail($1) e WHERE e.metric = $2 AND e.period_start = $3), 0)
$$;

-- What was used in a stretch of whole hours.
CREATE FUNCTION billing._used_within(tenant_id text, metric text, starts timestamptz, ends timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT sum(a.quantity) FROM billing.usage_aggregates a
                      WHERE a.tenant_id = $1 AND a.metric = $2 AND a.hour >= $3 AND a.hour < $4), 0)
         + coalesce((SELECT sum(e.quantity) FROM billing._tail($1) e
                      WHERE e.metric = $2 AND e.occurred_at >= $3 AND e.occurred_at < $4), 0)
$$;

CREATE FUNCTION billing.get_current_usage(tenant_id text, metric text, period text DEFAULT 'current') RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._used($1, $2, lower(billing._period($1, $2, $3)))
$$;
COMMENT ON FUNCTION billing.get_current_usage(text, text, text) IS
    'returns the usage of a billing period: current, previous, or the one that holds a given time. Raises UB010, UB011, UB032';

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
