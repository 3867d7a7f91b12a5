-- Quotas: the limit in force for a tenant, metric and billing period: the plan's, or the tenant's override.

CREATE FUNCTION billing._install_quotas() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.quota_overrides (
        tenant_id  text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        metric     text NOT NULL REFERENCES billing.metrics,
        quota      numeric CHECK (quota >= 0 AND quota < 'Infinity'),    -- null: unlimited
        cap        text NOT NULL CHECK (cap IN ('hard', 'soft', 'none')),
        grace      numeric NOT NULL DEFAULT 1 CHECK (grace >= 1 AND grace < 'Infinity'),
        grace_period interval CHECK (grace_period >= interval '0'),
        created_at   timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, metric)
    );
    COMMENT ON TABLE billing.quota_overrides IS 'a tenant''s own limits, in place of its plan''s';

    CREATE TABLE IF NOT EXISTS billing.window_limits (
        tenant_id  text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        metric     text NOT NULL REFERENCES billing.metrics,
        per        text NOT NULL CHECK (per IN ('hour', 'day')),
        quota      numeric CHECK (quota >= 0 AND quota < 'Infinity'),    -- null: none, whatever the plan says
        created_at timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, metric, per)
    );
    COMMENT ON TABLE billing.window_limits IS 'a tenant''s own hard limits per hour or day, in place of its plan''s';

    CREATE TABLE IF NOT EXISTS billing.usage_quotas (
        tenant_id    text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
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

-- Returns the quota in force at a time: always one row, whose metric or tenant is null where that is unknown. `bound` is
-- what a check may not pass: the quota, or a soft cap's grace while that lasts; `valid` is the stretch of time around it
-- in which all of the row holds. A plain inlined query: a cache miss of the hot path runs it with a saved plan.
CREATE FUNCTION billing._quota_in_force(tenant_id text, metric text, at timestamptz)
RETURNS TABLE (tenant text, metric_name text, kind text, aggregation text, scale smallint, refusal text, quota numeric,
               cap text, grace numeric, bound numeric, plan text, timezone text, period tstzrange, valid tstzrange,
               billing_period tstzrange)
LANGUAGE sql STABLE AS $$
    SELECT c.tenant_id, m.name, m.kind, m.aggregation, m.scale,
           CASE WHEN o.tenant_id IS NOT NULL THEN NULL
                WHEN s.tenant_id IS NULL THEN 'no_subscription'
                WHEN s.status IN ('pending', 'trialing', 'active') OR t.past_due_until > $3 THEN
                    CASE WHEN pm.plan IS NULL THEN 'upgrade_required' END
                ELSE 'subscription_inactive'
           END,
           l.quota, coalesce(o.cap, pm.cap), coalesce(o.grace, pm.grace),
           CASE coalesce(o.cap, pm.cap)
                WHEN 'hard' THEN l.quota
                WHEN 'soft' THEN CASE WHEN l.grace_until <= $3 THEN l.quota ELSE l.quota * coalesce(o.grace, pm.grace) END
           END,
           s.plan, coalesce(s.timezone, c.timezone),
           CASE WHEN m.kind = 'gauge' THEN tstzrange('-infinity', 'infinity') ELSE t.billing_period END,
           tstzrange(greatest(least(lower(t.billing_period), $3), e.since, CASE WHEN l.grace_until <= $3 THEN l.grace_until END,
                              CASE WHEN t.past_due_until <= $3 THEN t.past_due_until END),
                     least(upper(t.billing_period), e.until, CASE WHEN l.grace_until > $3 THEN l.grace_until END,
                           CASE WHEN t.past_due_until > $3 THEN t.past_due_until END)),
           t.billing_period
      FROM (SELECT 1) one
      LEFT JOIN billing.metrics m ON m.name = $2
      LEFT JOIN billing.billing_customers c ON c.tenant_id = $1
      LEFT JOIN billing.subscriptions s
             ON s.tenant_id = c.tenant_id AND s.status NOT IN ('canceled', 'incomplete_expired')
            AND NOT (s.cancel_at_period_end AND s.current_period_end <= $3)
      LEFT JOIN billing.plans p ON p.name = s.plan
      LEFT JOIN billing.plan_metrics pm ON pm.plan = s.plan AND pm.metric = m.name
      LEFT JOIN billing.quota_overrides o ON o.tenant_id = c.tenant_id AND o.metric = m.name
      LEFT JOIN billing.subscription_stretches f
             ON f.tenant_id = s.tenant_id AND f.subscription_id = s.id AND f.starts <= $3 AND f.ends > $3
      CROSS JOIN LATERAL (       -- where the stretch that holds the time begins, and the next one
        SELECT greatest(f.starts, max(x.ends) FILTER (WHERE x.ends <= $3)) AS since,
               least(f.ends, min(x.starts) FILTER (WHERE x.starts > $3), CASE WHEN s.paused_at > $3 THEN s.paused_at END) AS until
          FROM billing.subscription_stretches x WHERE x.tenant_id = s.tenant_id AND x.subscription_id = s.id) e
      CROSS JOIN LATERAL (
        SELECT CASE WHEN s.status = 'past_due' THEN s.past_due_since + p.past_due_grace END AS past_due_until,
               CASE WHEN f.anchor IS NOT NULL THEN (
                        SELECT tstzrange(lower(y), least(upper(y), f.ends))
                          FROM billing._period_at(f.anchor, s.interval_months, f.timezone, $3) y)
                    WHEN f.starts IS NOT NULL THEN tstzrange(f.starts, f.ends)
                    WHEN s.paused_at <= $3 THEN billing._period_at(s.paused_at, s.interval_months, s.timezone, $3)
                    WHEN $3 >= date_trunc('hour', s.current_period_start, 'UTC') AND $3 < s.current_period_end
                        THEN tstzrange(s.current_period_start, s.current_period_end)
                    WHEN s.tenant_id IS NOT NULL
                        THEN billing._period_from(s.starts, billing._period_at(s.anchor, s.interval_months, s.timezone, $3))
                    ELSE (SELECT tstzrange(greatest(lower(y), max(e.at) FILTER (WHERE e.at <= $3)), least(upper(y), min(e.at) FILTER (WHERE e.at > $3)))
                            FROM billing._period_at(timestamp '2000-01-01' AT TIME ZONE c.timezone, 1, c.timezone, $3) y
                            LEFT JOIN (SELECT billing._unbilled_from(coalesce(x.ended_at, CASE WHEN x.cancel_at_period_end THEN x.current_period_end END)) AS at
                                         FROM billing.subscriptions x WHERE x.tenant_id = c.tenant_id) e ON true
                           GROUP BY y)
               END AS billing_period) t
      LEFT JOIN billing.usage_alerts a
             ON a.tenant_id = c.tenant_id AND a.metric = m.name AND a.period_start = lower(t.billing_period)
            AND a.kind = 'percent' AND a.threshold = 100
      CROSS JOIN LATERAL (
        SELECT CASE WHEN o.tenant_id IS NOT NULL THEN o.quota ELSE pm.allowance END AS quota,
               a.raised_at + CASE WHEN o.tenant_id IS NOT NULL THEN o.grace_period ELSE pm.grace_period END AS grace_until) l
$$;

-- The hour or day around a time. A day begins at local midnight; where that is not on the hour in UTC, with the hour of
-- UTC it falls into, so that no hour of usage belongs to two days.
CREATE FUNCTION billing._window_at(per text, timezone text, at timestamptz) RETURNS tstzrange
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE $1 WHEN 'hour' THEN tstzrange(h, h + interval '1 hour')
           ELSE tstzrange(date_trunc('hour', day AT TIME ZONE $2, 'UTC'),
                          date_trunc('hour', (day + interval '1 day') AT TIME ZONE $2, 'UTC')) END
      FROM date_trunc('hour', $3, 'UTC') h,
           date_trunc('day', (h + interval '1 hour' - interval '1 microsecond') AT TIME ZONE $2) day
$$;

-- The hours and days the metric is counted in, with the tenant's own limit, else its plan's; quota null: none. Once a
-- metric has had such a limit, every tenant is counted, limit or not: a counter that had been idle meanwhile would not
-- know what was used.
CREATE FUNCTION billing._window_limits(tenant_id text, metric text, plan text, timezone text, at timestamptz)
RETURNS TABLE (per text, quota numeric, span tstzrange)
LANGUAGE sql STABLE AS $$
    SELECT m.per, CASE WHEN w.tenant_id IS NOT NULL THEN w.quota ELSE p.quota END, billing._window_at(m.per, $4, $5)
      FROM billing.metric_windows m
      LEFT JOIN billing.window_limits w ON w.tenant_id = $1 AND w.metric = m.metric AND w.per = m.per
      LEFT JOIN billing.plan_window_limits p ON p.plan = $3 AND p.metric = m.metric AND p.per = m.per
     WHERE m.metric = $2
     ORDER BY m.per DESC
$$;

-- Writes the quotas in force now into usage_quotas, leaving the usage there as it is. With raised rights, because whoever
-- calls it may be a superuser, who may not write there directly (extension/direct_writes.hpp).
CREATE FUNCTION billing._refresh_quotas(tenant_id text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.usage_quotas AS u (tenant_id, metric, period_start, period_end, quota, cap, grace)
    SELECT q.tenant, q.metric_name, lower(q.period), upper(q.period), q.quota, q.cap, q.grace
      FROM billing.metrics m, billing._quota_in_force($1, m.name, billing.now()) q
     WHERE q.tenant IS NOT NULL
     ORDER BY lower(q.period), m.name     -- as the rollup does
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
                                  grace numeric DEFAULT NULL, grace_period interval DEFAULT NULL,
                                  per text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was jsonb;
    changed jsonb;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._check_metric(metric);
    IF quota < 0 OR quota IN ('NaN', 'Infinity') OR cap NOT IN ('hard', 'soft', 'none') OR NOT grace >= 1
       OR grace IN ('NaN', 'Infinity') OR grace_period < interval '0' THEN
        RAISE EXCEPTION 'quota % with cap "%", grace % and grace period % is not valid', quota, cap, grace, grace_period
            USING ERRCODE = 'UB032',
                  HINT = 'The quota is null (unlimited) or not negative; the cap is hard, soft or none; grace is at least 1; its period is not negative.';
    END IF;
    IF per IS NOT NULL THEN
        IF per NOT IN ('hour', 'day') OR cap <> 'hard' OR grace IS NOT NULL OR grace_period IS NOT NULL
           OR (SELECT m.kind FROM billing.metrics m WHERE m.name = set_quota.metric) = 'gauge' THEN
            RAISE EXCEPTION 'a limit per "%" with cap "%" of metric "%" is not valid', per, coalesce(cap, 'hard'), metric
                USING ERRCODE = 'UB032',
                      HINT = 'A counter may have hard limits per hour and per day; they have no grace.';
        END IF;
        SELECT to_jsonb(w) INTO was FROM billing.window_limits w
         WHERE w.tenant_id = set_quota.tenant_id AND w.metric = set_quota.metric AND w.per = set_quota.per FOR UPDATE;
        INSERT INTO billing.window_limits AS w
        VALUES (set_quota.tenant_id, set_quota.metric, set_quota.per, set_quota.quota, billing.now())
        ON CONFLICT ON CONSTRAINT window_limits_pkey
        DO UPDATE SET quota = excluded.quota, created_at = excluded.created_at
        RETURNING to_jsonb(w) INTO changed;
        PERFORM billing._audit(tenant_id, 'set_quota', was, changed);
        RETURN;
    END IF;
    SELECT to_jsonb(o) INTO was FROM billing.quota_overrides o
     WHERE o.tenant_id = set_quota.tenant_id AND o.metric = set_quota.metric FOR UPDATE;
    INSERT INTO billing.quota_overrides AS o
    VALUES (set_quota.tenant_id, set_quota.metric, set_quota.quota, coalesce(set_quota.cap, 'hard'),
            coalesce(set_quota.grace, 1), set_quota.grace_period, billing.now())
    ON CONFLICT ON CONSTRAINT quota_overrides_pkey
    DO UPDATE SET quota = excluded.quota, cap = excluded.cap, grace = excluded.grace,
                  grace_period = excluded.grace_period, created_at = excluded.created_at
    RETURNING to_jsonb(o) INTO changed;
    PERFORM billing._audit(tenant_id, 'set_quota', was, changed);
    PERFORM billing._refresh_quotas(tenant_id);
END $$;
COMMENT ON FUNCTION billing.set_quota(text, text, numeric, text, numeric, interval, text) IS
    'overrides the quota of one tenant and metric from commit on; quota null is unlimited, cap defaults to hard; a soft cap ends at quota times grace, and at the quota once grace_period has passed since it was reached; per ''hour'' or ''day'' sets a hard limit inside the billing period. Raises UB010, UB011, UB032, UB040';

CREATE FUNCTION billing.clear_quota(tenant_id text, metric text, per text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was jsonb;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._check_metric(metric);
    IF per IS NOT NULL THEN
        DELETE FROM billing.window_limits w
         WHERE w.tenant_id = clear_quota.tenant_id AND w.metric = clear_quota.metric AND w.per = clear_quota.per
        RETURNING to_jsonb(w) INTO was;
    ELSE
        DELETE FROM billing.quota_overrides o
         WHERE o.tenant_id = clear_quota.tenant_id AND o.metric = clear_quota.metric
        RETURNING to_jsonb(o) INTO was;
        PERFORM billing._refresh_quotas(tenant_id);
    END IF;
    IF was IS NOT NULL THEN
        PERFORM billing._audit(tenant_id, 'clear_quota', was, NULL);
    END IF;
END $$;
COMMENT ON FUNCTION billing.clear_quota(text, text, text) IS
    'ends a tenant''s override, or that of its limit per ''hour'' or ''day'', so that its plan''s is in force again. Raises UB010, UB011, UB040';

-- A change of anything that a quota comes from, by whatever statement, is announced at its commit. The trigger functions
-- are no members of the extension: the tables keep them after DROP EXTENSION, and then there is nobody to tell.
CREATE FUNCTION billing._install_quota_triggers() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $install$
DECLARE
    name text;
BEGIN
    CREATE OR REPLACE FUNCTION billing._tenant_quotas_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF to_regprocedure('billing._quotas_changed(text)') IS NOT NULL THEN
            IF TG_OP <> 'INSERT' THEN
                PERFORM billing._quotas_changed(old.tenant_id);
            END IF;
            IF TG_OP <> 'DELETE' THEN
                PERFORM billing._quotas_changed(new.tenant_id);
            END IF;
        END IF;
        RETURN NULL;
    END $$;
    CREATE OR REPLACE FUNCTION billing._all_quotas_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF to_regprocedure('billing._quotas_changed(text)') IS NOT NULL THEN
            PERFORM billing._quotas_changed(NULL);
        END IF;
        RETURN NULL;
    END $$;
    CREATE OR REPLACE FUNCTION billing._count_windows() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF NOT EXISTS (SELECT FROM billing.metric_windows m WHERE (m.metric, m.per) = (new.metric, new.per)) THEN
            PERFORM billing._hold_usage(new.metric);
            INSERT INTO billing.metric_windows VALUES (new.metric, new.per) ON CONFLICT DO NOTHING;
        END IF;
        RETURN NULL;
    END $$;
    -- Waits until no usage is in flight, and keeps new usage waiting until this transaction ends: usage counted one way
    -- would not be on a counter of another way. Who has usage pending itself would wait for itself.
    CREATE OR REPLACE FUNCTION billing._hold_usage(metric text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF to_regprocedure('billing._usage_pending()') IS NOT NULL THEN
            IF billing._usage_pending() THEN
                RAISE EXCEPTION 'cannot change what metric "%" is counted in while usage is pending', metric
                    USING ERRCODE = 'UB054', HINT = 'Do it in a transaction of its own.';
            END IF;
        END IF;
        LOCK TABLE billing.usage_events IN SHARE ROW EXCLUSIVE MODE;
    END $$;
    -- Counters and aggregates of usage that was counted one way would be wrong read another way.
    CREATE OR REPLACE FUNCTION billing._keep_aggregation() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM billing._hold_usage(old.name);
        IF (old.kind, old.aggregation, old.unique_property)
           IS NOT DISTINCT FROM (new.kind, new.aggregation, new.unique_property) THEN
            RETURN new;     -- another scale: the counters are others, and are loaded anew
        END IF;
        IF EXISTS (SELECT FROM billing.usage_events e WHERE e.metric = old.name)
           OR EXISTS (SELECT FROM billing.usage_aggregates a WHERE a.metric = old.name)
           OR EXISTS (SELECT FROM billing.reservations r WHERE r.metric = old.name) THEN
            RAISE EXCEPTION 'metric "%" has usage: its kind and aggregation cannot be changed', old.name
                USING ERRCODE = 'UB032', HINT = 'Make another metric.';
        END IF;
        RETURN new;
    END $$;
    CREATE OR REPLACE TRIGGER keep_aggregation BEFORE UPDATE ON billing.metrics FOR EACH ROW
        WHEN ((old.kind, old.aggregation, old.unique_property, old.scale)
              IS DISTINCT FROM (new.kind, new.aggregation, new.unique_property, new.scale))
        EXECUTE FUNCTION billing._keep_aggregation();
    REVOKE ALL ON FUNCTION billing._keep_aggregation(), billing._tenant_quotas_changed(), billing._all_quotas_changed(), billing._count_windows(),
        billing._hold_usage(text)
        FROM PUBLIC;
    CREATE OR REPLACE TRIGGER count_windows AFTER INSERT OR UPDATE ON billing.window_limits
        FOR EACH ROW EXECUTE FUNCTION billing._count_windows();
    CREATE OR REPLACE TRIGGER count_windows AFTER INSERT OR UPDATE ON billing.plan_window_limits
        FOR EACH ROW EXECUTE FUNCTION billing._count_windows();
    FOREACH name IN ARRAY ARRAY['billing_customers', 'subscriptions', 'subscription_stretches', 'quota_overrides', 'window_limits', 'usage_alerts'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER quotas_changed AFTER INSERT OR UPDATE OR DELETE ON billing.%I
                        FOR EACH ROW EXECUTE FUNCTION billing._tenant_quotas_changed()', name);
        EXECUTE format('CREATE OR REPLACE TRIGGER quotas_truncated AFTER TRUNCATE ON billing.%I
                        EXECUTE FUNCTION billing._all_quotas_changed()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['metrics', 'plans', 'plan_metrics', 'plan_window_limits', 'metric_windows'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER quotas_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON billing.%I
                        EXECUTE FUNCTION billing._all_quotas_changed()', name);
    END LOOP;
END $install$;
