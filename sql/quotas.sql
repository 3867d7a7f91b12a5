-- Quotas: the limit in force for a tenant, metric and billing period: the plan's, or the tenant's override.

CREATE FUNCTION billing._install_quotas() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.quota_overrides (
        tenant_id  text NOT NULL REFERENCES billing.billing_customers,
        metric     text NOT NULL REFERENCES billing.metrics,
        quota      numeric CHECK (quota >= 0 AND quota < 'Infinity'),    -- null: unlimited
        cap        text NOT NULL CHECK (cap IN ('hard', 'soft', 'none')),
        grace      numeric NOT NULL DEFAULT 1 CHECK (grace >= 1 AND grace < 'Infinity'),
        created_at timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, metric)
    );
    COMMENT ON TABLE billing.quota_overrides IS 'a tenant''s own limits, in place of its plan''s';

    CREATE TABLE IF NOT EXISTS billing.usage_quotas (
        tenant_id    text NOT NULL REFERENCES billing.billing_customers,
        metric       text NOT NULL REFERENCES billing.metrics,
        period_start timestamptz NOT NULL,              -- -infinity for a gauge, which never resets
        period_end   timestamptz NOT NULL,
        quota        numeric,                           -- null: unlimited
        cap          text,                              -- null: no quota is in force (no subscription, no override)
        grace        numeric,
        used         numeric NOT NULL DEFAULT 0,        -- as of the last rollup; get_current_usage() is exact
        PRIMARY KEY (tenant_id, metric, period_start)
    );
    COMMENT ON TABLE billing.usage_quotas IS 'the limit in force per tenant, metric and billing period, with the rolled-up usage';
END $$;

-- Returns the quota in force at a time: always one row, whose metric or tenant is null where that is unknown.
-- A plain inlined query: the hot path runs it with a saved plan under its own snapshot.
CREATE FUNCTION billing._quota_in_force(tenant_id text, metric text, at timestamptz)
RETURNS TABLE (tenant text, metric_name text, kind text, scale smallint, refusal text, quota numeric, cap text,
               grace numeric, period tstzrange)
LANGUAGE sql STABLE AS $$
    SELECT c.tenant_id, m.name, m.kind, m.scale,
           CASE WHEN o.tenant_id IS NOT NULL THEN NULL
                WHEN s.tenant_id IS NULL THEN 'no_subscription'
                WHEN s.status IN ('pending', 'trialing', 'active') THEN
                    CASE WHEN pm.plan IS NULL THEN 'upgrade_required' END
                WHEN s.status = 'past_due' AND s.past_due_since + p.past_due_grace > $3 THEN
                    CASE WHEN pm.plan IS NULL THEN 'upgrade_required' END
                ELSE 'subscription_inactive'
           END,
           CASE WHEN o.tenant_id IS NOT NULL THEN o.quota ELSE pm.allowance END,
           coalesce(o.cap, pm.cap),
           coalesce(o.grace, pm.grace),
           CASE WHEN m.kind = 'gauge' THEN tstzrange('-infinity', 'infinity')
                WHEN $3 >= s.current_period_start AND $3 < s.current_period_end
                    THEN tstzrange(s.current_period_start, s.current_period_end)
                WHEN s.tenant_id IS NOT NULL
                    THEN billing._period_at(s.anchor, s.interval_months, s.timezone, $3)
                ELSE billing._period_at(timestamp '2000-01-01' AT TIME ZONE c.timezone, 1, c.timezone, $3)
           END
      FROM (SELECT 1) one
      LEFT JOIN billing.metrics m ON m.name = $2
      LEFT JOIN billing.billing_customers c ON c.tenant_id = $1
      LEFT JOIN billing.subscriptions s
             ON s.tenant_id = c.tenant_id AND s.status NOT IN ('canceled', 'incomplete_expired')
      LEFT JOIN billing.plans p ON p.name = s.plan
      LEFT JOIN billing.plan_metrics pm ON pm.plan = s.plan AND pm.metric = m.name
      LEFT JOIN billing.quota_overrides o ON o.tenant_id = c.tenant_id AND o.metric = m.name
$$;

-- Writes the quotas in force now into usage_quotas, leaving the usage there as it is.
CREATE FUNCTION billing._refresh_quotas(tenant_id text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.usage_quotas AS u (tenant_id, metric, period_start, period_end, quota, cap, grace)
    SELECT q.tenant, q.metric_name, lower(q.period), upper(q.period), q.quota, q.cap, q.grace
      FROM billing.metrics m, billing._quota_in_force($1, m.name, billing.now()) q
     WHERE q.tenant IS NOT NULL
    ON CONFLICT ON CONSTRAINT usage_quotas_pkey
    DO UPDATE SET period_end = excluded.period_end, quota = excluded.quota, cap = excluded.cap, grace = excluded.grace
$$;

CREATE FUNCTION billing._check_metric(metric text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM billing.metrics m WHERE m.name = metric) THEN
        RAISE EXCEPTION 'unknown metric "%"', left(metric, 64)
            USING ERRCODE = 'UB011', HINT = 'SELECT name FROM billing.metrics lists the metrics.';
    END IF;
END $$;

CREATE FUNCTION billing.set_quota(tenant_id text, metric text, quota numeric, cap text DEFAULT NULL,
                                  grace numeric DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._check_metric(metric);
    IF quota < 0 OR quota IN ('NaN', 'Infinity') OR cap NOT IN ('hard', 'soft', 'none') OR NOT grace >= 1
       OR grace IN ('NaN', 'Infinity') THEN
        RAISE EXCEPTION 'quota % with cap "%" and grace % is not valid', quota, cap, grace
            USING ERRCODE = 'UB032',
                  HINT = 'The quota is null (unlimited) or not negative; the cap is hard, soft or none; grace is at least 1.';
    END IF;
    INSERT INTO billing.quota_overrides AS o
    VALUES (set_quota.tenant_id, set_quota.metric, set_quota.quota, coalesce(set_quota.cap, 'hard'),
            coalesce(set_quota.grace, 1), billing.now())
    ON CONFLICT ON CONSTRAINT quota_overrides_pkey
    DO UPDATE SET quota = excluded.quota, cap = excluded.cap, grace = excluded.grace, created_at = excluded.created_at;
    PERFORM billing._refresh_quotas(tenant_id);
END $$;
COMMENT ON FUNCTION billing.set_quota(text, text, numeric, text, numeric) IS
    'overrides the quota of one tenant and metric from commit on; quota null is unlimited, cap defaults to hard. Raises UB010, UB011, UB032, UB040';

CREATE FUNCTION billing.clear_quota(tenant_id text, metric text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._check_metric(metric);
    DELETE FROM billing.quota_overrides o
     WHERE o.tenant_id = clear_quota.tenant_id AND o.metric = clear_quota.metric;
    PERFORM billing._refresh_quotas(tenant_id);
END $$;
COMMENT ON FUNCTION billing.clear_quota(text, text) IS
    'ends a tenant''s override, so that its plan''s quota is in force again. Raises UB010, UB011, UB040';
