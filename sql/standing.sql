-- Where tenants stand now: plan, period, quota and what is left of it, of one tenant or of all. With the caller's rights,
-- so that row-level security decides which tenants "all" are.

-- The rollup's figure is exact for whoever has nothing in the tail; the others are few.
CREATE FUNCTION billing._standing(own text, what text)
RETURNS TABLE (tenant_id text, metric text, used numeric, quota numeric, cap text, billing_period tstzrange)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    tail billing._batch := billing._tail();
BEGIN
    RETURN QUERY
    WITH moved AS (
        SELECT DISTINCT e.tenant_id, e.metric FROM billing.usage_events e
         WHERE billing._in_batch(e.tick, tail) AND (own IS NULL OR e.tenant_id = own) AND (what IS NULL OR e.metric = what)
    )
    SELECT c.tenant_id, m.name,
           CASE WHEN v.tenant_id IS NULL THEN coalesce(u.used, 0)
                ELSE billing._used(c.tenant_id, m.name, lower(q.period)) END,
           q.quota, q.cap, q.billing_period
      FROM billing.billing_customers c
     CROSS JOIN billing.metrics m
     CROSS JOIN LATERAL billing._quota_in_force(c.tenant_id, m.name, billing.now()) q
      LEFT JOIN billing.usage_quotas u
             ON u.tenant_id = c.tenant_id AND u.metric = m.name AND u.period_start = lower(q.period)
      LEFT JOIN moved v ON v.tenant_id = c.tenant_id AND v.metric = m.name
     WHERE (own IS NULL OR c.tenant_id = own) AND (what IS NULL OR m.name = what);
END $$;

CREATE FUNCTION billing.get_quota(tenant_id text, metric text) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._check_metric(metric);
    RETURN (SELECT q.quota FROM billing._quota_in_force(get_quota.tenant_id, get_quota.metric, billing.now()) q);
END $$;
COMMENT ON FUNCTION billing.get_quota(text, text) IS
    'returns the quota in force: the tenant''s own, or its plan''s; null when unlimited, or when there is none. Raises UB010, UB011, UB040';

CREATE FUNCTION billing.get_quotas(tenant_id text)
RETURNS TABLE (metric text, kind text, unit text, per text, quota numeric, cap text, grace numeric, own boolean,
               refusal text, period_start timestamptz, period_end timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    RETURN QUERY
    SELECT m.name, m.kind, m.unit, l.per, l.quota, l.cap, l.grace, l.own, q.refusal, lower(l.span), upper(l.span)
      FROM billing.metrics m
     CROSS JOIN LATERAL billing._quota_in_force(get_quotas.tenant_id, m.name, billing.now()) q
     CROSS JOIN LATERAL (
           SELECT NULL AS per, q.quota, q.cap, q.grace, q.period AS span,
                  EXISTS (SELECT FROM billing.quota_overrides o WHERE o.tenant_id = q.tenant AND o.metric = m.name) AS own
           UNION ALL
           SELECT w.per, w.quota, 'hard', NULL, w.span,
                  EXISTS (SELECT FROM billing.window_limits o
                           WHERE o.tenant_id = q.tenant AND o.metric = m.name AND o.per = w.per)
             FROM billing._window_limits(q.tenant, m.name, q.plan, q.timezone, billing.now()) w
            WHERE w.quota IS NOT NULL) l
     ORDER BY m.name, l.per DESC NULLS FIRST;
END $$;
COMMENT ON FUNCTION billing.get_quotas(text) IS
    'returns the quotas of every metric that are in force now, those per hour and day included (per; null: of the billing period, or of a gauge''s level); own: the tenant''s, not its plan''s; refusal: why nothing is allowed, whatever the quota. Raises UB010, UB040';

CREATE FUNCTION billing.get_remaining_quota(tenant_id text, metric text) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._check_metric(metric);
    RETURN (SELECT CASE WHEN s.quota IS NOT NULL THEN greatest(s.quota - s.used, 0) END
              FROM billing._standing(get_remaining_quota.tenant_id, get_remaining_quota.metric) s);
END $$;
COMMENT ON FUNCTION billing.get_remaining_quota(text, text) IS
    'returns what is left of the quota, never below zero; null when unlimited, or when there is none; what is held counts as left. Raises UB010, UB011, UB040';

-- Asked for no metric, so that neither an override nor an allowance has a say, the quota in force tells of the plan alone.
CREATE FUNCTION billing.get_effective_plan(tenant_id text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    RETURN (SELECT q.plan FROM billing._quota_in_force(get_effective_plan.tenant_id, NULL, billing.now()) q
             WHERE q.refusal = 'upgrade_required');
END $$;
COMMENT ON FUNCTION billing.get_effective_plan(text) IS
    'returns the plan whose limits are in force; null without a subscription, or with one that is not active, a past-due one''s grace being over. Raises UB010, UB040';

CREATE FUNCTION billing.get_current_period(tenant_id text)
RETURNS TABLE (period_start timestamptz, period_end timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    RETURN QUERY SELECT lower(q.billing_period), upper(q.billing_period)
                   FROM billing._quota_in_force(get_current_period.tenant_id, NULL, billing.now()) q;
END $$;
COMMENT ON FUNCTION billing.get_current_period(text) IS
    'returns the current billing period; its end does not belong to it. Without a subscription that is the month, or what the end of one leaves of it. Raises UB010, UB040';

CREATE FUNCTION billing.get_days_remaining(tenant_id text) RETURNS int
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (p.period_end AT TIME ZONE z.timezone)::date - (billing.now() AT TIME ZONE z.timezone)::date
      FROM billing.get_current_period($1) p
      LEFT JOIN billing.billing_customers z ON z.tenant_id = $1
$$;
COMMENT ON FUNCTION billing.get_days_remaining(text) IS
    'returns in how many days the billing period ends, by the calendar of the tenant''s time zone: 0 on the day itself. Raises UB010, UB040';

-- Of all tenants: how few rows its functions return the planner cannot know, and would compile for many.
CREATE FUNCTION billing.get_active_alerts(tenant_id text DEFAULT NULL)
RETURNS TABLE (tenant text, metric text, threshold numeric, used numeric, quota numeric, raised_at timestamptz, kind text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    IF tenant_id IS NOT NULL THEN
        PERFORM billing._check_tenant(tenant_id);
    END IF;
    RETURN QUERY
    SELECT a.tenant_id, a.metric, a.threshold, s.used, CASE a.kind WHEN 'percent' THEN s.quota END, a.raised_at, a.kind
      FROM billing._standing(get_active_alerts.tenant_id, NULL) s
      JOIN billing.usage_alerts a
        ON a.tenant_id = s.tenant_id AND a.metric = s.metric AND a.period_start = lower(s.billing_period)
     WHERE CASE a.kind WHEN 'percent' THEN s.quota > 0 AND s.used * 100 >= s.quota * a.threshold
                       WHEN 'usage' THEN s.used >= a.threshold
                       ELSE false END
    UNION ALL
    SELECT a.tenant_id, nullif(a.metric, ''), a.threshold, a.used, a.quota, a.raised_at, a.kind
      FROM billing.usage_alerts a
     CROSS JOIN LATERAL billing._quota_in_force(a.tenant_id, NULL, billing.now()) q
     WHERE a.kind NOT IN ('percent', 'usage') AND a.period_start = lower(q.billing_period)
       AND (get_active_alerts.tenant_id IS NULL OR a.tenant_id = get_active_alerts.tenant_id)
     ORDER BY 1, 2, 7, 3;
END $$;
COMMENT ON FUNCTION billing.get_active_alerts(text) IS
    'returns the alerts of the current billing period, of one tenant or of all: of usage those whose threshold is still reached, with the usage of now; of costs (minor units; metric null: of all together) and projections those that were raised, with what they were then. Raises UB010, UB040';

CREATE FUNCTION billing.get_top_tenants(metric text, max_tenants int DEFAULT 10)
RETURNS TABLE (tenant_id text, used numeric, quota numeric, percentage numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    PERFORM billing._check_metric(metric);
    RETURN QUERY
    SELECT s.tenant_id, s.used, s.quota, round(100 * s.used / nullif(s.quota, 0), 2)
      FROM billing._standing(NULL, get_top_tenants.metric) s
     WHERE s.used > 0
     ORDER BY s.used DESC, s.tenant_id LIMIT greatest(max_tenants, 0);
END $$;
COMMENT ON FUNCTION billing.get_top_tenants(text, int) IS
    'returns the tenants that use a metric most, each in its current billing period. Raises UB011';

CREATE FUNCTION billing.get_tenants_near_quota(percent numeric DEFAULT 80, metric text DEFAULT NULL)
RETURNS TABLE (tenant_id text, metric_name text, used numeric, quota numeric, percentage numeric, cap text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    IF metric IS NOT NULL THEN
        PERFORM billing._check_metric(metric);
    END IF;
    RETURN QUERY
    SELECT s.tenant_id, s.metric, s.used, s.quota, round(100 * s.used / s.quota, 2), s.cap
      FROM billing._standing(NULL, get_tenants_near_quota.metric) s
     WHERE s.quota > 0 AND s.used * 100 >= s.quota * percent
     ORDER BY s.used / s.quota DESC, s.tenant_id, s.metric;
END $$;
COMMENT ON FUNCTION billing.get_tenants_near_quota(numeric, text) IS
    'returns who has used that many percent of a quota, or more, of one metric or of all; the nearest first. Raises UB011';
