-- What a tenant used, read from aggregates and the deltas not yet rolled up: exact as of the caller's snapshot.
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

CREATE FUNCTION billing._used(tenant_id text, metric text, period_start timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(u.quantity), 0)
      FROM (SELECT a.quantity FROM billing.usage_aggregates a
             WHERE a.tenant_id = $1 AND a.metric = $2 AND a.period_start = $3
            UNION ALL
            SELECT d.quantity FROM billing.usage_deltas d
             WHERE d.tenant_id = $1 AND d.metric = $2 AND d.period_start = $3) u
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
