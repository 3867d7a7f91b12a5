-- Alerts: thresholds that usage, its cost, or what either will come to has reached. Which ones there are is told by rules,
-- which are data and add up: all that fit a tenant and metric count.
--
-- Raised by the rollup that folds the usage, in its transaction, so an alert exists as soon as the usage is rolled up,
-- and if that is rolled back it never did. The primary key has each raised once per tenant, metric, billing period, kind
-- and threshold, however many rules ask for it and whoever else comes upon it at the same time.

CREATE FUNCTION billing._install_alerts() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('billing.alert_rules') IS NULL THEN
        CREATE TABLE billing.alert_rules (
            tenant_id  text COLLATE "C" NOT NULL,           -- '': every tenant
            id         bigint GENERATED ALWAYS AS IDENTITY,
            plan       text REFERENCES billing.plans,       -- null: whatever the plan
            metric     text REFERENCES billing.metrics,     -- null: each; of a cost, all together
            kind       text NOT NULL CHECK (kind IN ('percent', 'usage', 'cost', 'projected_percent', 'projected_usage',
                                                     'projected_cost')),
            threshold  numeric NOT NULL CHECK (threshold > 0 AND threshold < 'Infinity'),
            created_at timestamptz NOT NULL,
            PRIMARY KEY (tenant_id, id),
            UNIQUE NULLS NOT DISTINCT (tenant_id, plan, metric, kind, threshold)
        );
        COMMENT ON TABLE billing.alert_rules IS 'the thresholds that raise alerts, of every tenant, of a plan''s, or of one';
        INSERT INTO billing.alert_rules (tenant_id, kind, threshold, created_at)
        SELECT '', 'percent', p.percent, billing.now() FROM unnest('{80,100,120}'::int[]) p (percent);
    END IF;

    CREATE TABLE IF NOT EXISTS billing.usage_alerts (
        tenant_id    text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        metric       text NOT NULL,         -- '' for a cost of all metrics together
        period_start timestamptz NOT NULL,  -- of the billing period, of a gauge, too
        kind         text NOT NULL,
        threshold    numeric NOT NULL,      -- percent of the quota, a quantity, or minor units
        used         numeric NOT NULL,      -- what reached it: usage, a cost, or a projection
        quota        numeric,               -- null where the threshold is no percentage
        raised_at    timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, metric, period_start, kind, threshold)
    );
    COMMENT ON TABLE billing.usage_alerts IS
        'thresholds reached: once per tenant, metric, billing period, kind and threshold';
END $$;

-- The rules that fit a tenant and metric.
CREATE FUNCTION billing._rules_of(tenant_id text, metric text)
RETURNS TABLE (metric_name text, kind text, threshold numeric)
LANGUAGE sql STABLE AS $$
    SELECT r.metric, r.kind, r.threshold FROM billing.alert_rules r
     WHERE r.tenant_id IN ('', $1) AND (r.metric IS NULL OR r.metric = $2)
       AND (r.plan IS NULL OR r.plan = (SELECT s.plan FROM billing.subscriptions s
                                         WHERE s.tenant_id = $1 AND s.status NOT IN ('canceled', 'incomplete_expired')))
$$;

-- Which of them usage has reached. Both are plain inlined queries: a rollup asks for all that it has folded.
CREATE FUNCTION billing._rules_reached(tenant_id text, metric text, used numeric, quota numeric)
RETURNS TABLE (kind text, threshold numeric)
LANGUAGE sql STABLE AS $$
    SELECT r.kind, r.threshold FROM billing._rules_of($1, $2) r
     WHERE CASE r.kind WHEN 'percent' THEN $4 > 0 AND $3 * 100 >= $4 * r.threshold
                       WHEN 'usage' THEN $3 >= r.threshold
                       ELSE false END
$$;

-- What a cost or a projection comes to now; null, with a warning, where it cannot be computed: that must not keep usage
-- from being rolled up.
CREATE FUNCTION billing._alert_value(own text, what text, kind text) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE kind
        WHEN 'cost' THEN (SELECT coalesce(sum(i.amount), 0) FROM billing._invoice(own, false) i
                           WHERE what = '' OR i.metric = what)
        WHEN 'projected_cost' THEN billing.get_projected_cost(own, nullif(what, ''))
        ELSE billing.get_projected_usage(own, what) END;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'no % of tenant "%" can be compared with its alerts: %', kind, own, SQLERRM;
    RETURN NULL;
END $$;

-- Alerts of costs and projections, for who has rules of these kinds, has just used what they are about, and has not been
-- told in this period. A projection is taken seriously once a tenth of the period is over.
CREATE FUNCTION billing._raise_forecasts(batch billing._batch) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET pg_billing.tenant_id = '' AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM billing.alert_rules r WHERE r.kind NOT IN ('percent', 'usage')) THEN
        RETURN;
    END IF;
    WITH moved AS MATERIALIZED (
        SELECT DISTINCT e.tenant_id, e.metric FROM billing.usage_events e WHERE billing._in_batch(e.tick, batch)
    ), due AS MATERIALIZED (
        SELECT DISTINCT m.tenant_id, w.metric, lower(q.billing_period) AS period_start, r.kind, r.threshold,
               CASE r.kind WHEN 'projected_percent' THEN q.quota END AS quota
          FROM moved m
         CROSS JOIN LATERAL billing._rules_of(m.tenant_id, m.metric) r
         CROSS JOIN LATERAL (SELECT CASE WHEN r.metric_name IS NULL AND r.kind IN ('cost', 'projected_cost') THEN ''
                                         ELSE m.metric END AS metric) w
         CROSS JOIN LATERAL billing._quota_in_force(m.tenant_id, m.metric, billing.now()) q
         WHERE r.kind NOT IN ('percent', 'usage') AND (r.kind <> 'projected_percent' OR q.quota > 0)
           AND (r.kind = 'cost' OR billing.now() >= lower(q.billing_period)
                                                    + (upper(q.billing_period) - lower(q.billing_period)) / 10)
           AND NOT EXISTS (SELECT FROM billing.usage_alerts a
                            WHERE (a.tenant_id, a.metric, a.period_start, a.kind, a.threshold)
                                = (m.tenant_id, w.metric, lower(q.billing_period), r.kind, r.threshold))
    ), figures AS MATERIALIZED (
        SELECT d.*, billing._alert_value(d.tenant_id, d.metric, d.kind) AS value
          FROM (SELECT DISTINCT tenant_id, metric, kind FROM due) d
    )
    INSERT INTO billing.usage_alerts (tenant_id, metric, period_start, kind, threshold, used, quota, raised_at)
    SELECT d.tenant_id, d.metric, d.period_start, d.kind, d.threshold, f.value, d.quota, billing.now()
      FROM due d JOIN figures f USING (tenant_id, metric, kind)
     WHERE f.value >= CASE d.kind WHEN 'projected_percent' THEN d.quota * d.threshold / 100 ELSE d.threshold END
     ORDER BY d.tenant_id, d.metric, d.kind, d.threshold
    ON CONFLICT DO NOTHING;
END $$;

-- Rules of all tenants are nothing for a session that is bound to one.
CREATE FUNCTION billing._check_alert_tenant(tenant_id text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tenant_id <> '' THEN
        PERFORM billing._check_tenant(tenant_id);
    ELSE
        PERFORM billing._check_bound(tenant_id);
    END IF;
END $$;

CREATE FUNCTION billing.create_alert(kind text, threshold numeric, metric text DEFAULT NULL, tenant_id text DEFAULT NULL,
                                     plan text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    whose text := coalesce(tenant_id, '');
    created billing.alert_rules;
BEGIN
    PERFORM billing._check_alert_tenant(whose);
    IF metric IS NOT NULL THEN
        PERFORM billing._check_metric(metric);
    END IF;
    IF NOT EXISTS (SELECT FROM billing.plans p WHERE p.name = plan) AND plan IS NOT NULL THEN
        RAISE EXCEPTION 'unknown plan "%"', plan
            USING ERRCODE = 'UB012', HINT = 'SELECT name FROM billing.plans lists the plans.';
    END IF;
    IF (kind IN ('percent', 'usage', 'cost', 'projected_percent', 'projected_usage', 'projected_cost')
        AND threshold > 0 AND threshold < 'Infinity'
        AND (metric IS NOT NULL OR kind NOT IN ('usage', 'projected_usage'))) IS NOT TRUE THEN
        RAISE EXCEPTION 'an alert of kind "%" at % for metric "%" is not valid', kind, threshold, metric
            USING ERRCODE = 'UB032',
                  HINT = 'The kind is percent, usage, cost, projected_percent, projected_usage or projected_cost; the threshold is above 0; usage is that of a metric.';
    END IF;
    INSERT INTO billing.alert_rules AS r (tenant_id, plan, metric, kind, threshold, created_at)
    VALUES (whose, create_alert.plan, create_alert.metric, create_alert.kind, trim_scale(create_alert.threshold),
            billing.now())
    ON CONFLICT ON CONSTRAINT alert_rules_tenant_id_plan_metric_kind_threshold_key DO NOTHING
    RETURNING * INTO created;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is an alert of kind "%" at % already', kind, trim_scale(threshold)
            USING ERRCODE = 'UB080', HINT = 'billing.alert_rules has all of them.';
    END IF;
    PERFORM billing._audit(whose, 'create_alert', NULL, to_jsonb(created));
    RETURN created.id;
END $$;
COMMENT ON FUNCTION billing.create_alert(text, numeric, text, text, text) IS
    'has an alert raised, once in a billing period, when a threshold is reached: percent of the quota, usage, cost (minor units, of the upcoming invoice before credit), or projected_percent, projected_usage, projected_cost at the period''s end; of one metric or of each (a cost: of all together), of one tenant, of those on a plan, or of all; from the next usage on. Returns its id. Raises UB010, UB011, UB012, UB032, UB040, UB080';

-- A grace period begins with the quota reached, and so with the alert that tells it.
CREATE FUNCTION billing.delete_alert(alert bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone billing.alert_rules;
BEGIN
    DELETE FROM billing.alert_rules r
     WHERE r.id = alert AND (billing.current_tenant() IS NULL OR r.tenant_id = billing.current_tenant())
    RETURNING * INTO gone;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown alert %', alert
            USING ERRCODE = 'UB081', HINT = 'billing.alert_rules lists the alerts.';
    END IF;
    IF (gone.tenant_id, gone.kind, gone.threshold) = ('', 'percent', 100) AND gone.plan IS NULL AND gone.metric IS NULL THEN
        RAISE EXCEPTION 'the alert of a quota that is reached cannot be deleted'
            USING ERRCODE = 'UB082', HINT = 'Grace periods begin with it.';
    END IF;
    PERFORM billing._audit(gone.tenant_id, 'delete_alert', to_jsonb(gone), NULL);
END $$;
COMMENT ON FUNCTION billing.delete_alert(bigint) IS
    'raises an alert no more; what it raised stays. The one at 100 % of every quota cannot be deleted. Raises UB081, UB082';
