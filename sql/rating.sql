-- What usage costs: rated here as Stripe rates it, in exact numeric, so that an invoice can be told before it is written.
-- docs/pricing.md has each price model worked by hand.

-- The charges of a quantity, as Stripe makes invoice lines of them: one for each tier it reaches, one for each tier's flat
-- amount, each rounded on its own to the minor unit, halves up. None for a metric without a price; tier null: no tiers.
CREATE FUNCTION billing._rate(plan text, metric text, used numeric)
RETURNS TABLE (tier int, flat boolean, quantity numeric, unit_amount numeric, amount numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    model text;
    below numeric := 0;     -- where the tier begins
    packages numeric;
    t record;
BEGIN
    FOR t IN
        SELECT (row_number() OVER w)::int AS n, count(*) OVER () AS tiers, x.up_to, trim_scale(x.unit_amount) AS unit_amount,
               trim_scale(x.flat_amount) AS flat_amount, m.price_model, m.package_size, m.package_round
          FROM billing.price_tiers x
          JOIN billing.plan_metrics m ON m.plan = x.plan AND m.metric = x.metric
         WHERE x.plan = _rate.plan AND x.metric = _rate.metric
        WINDOW w AS (ORDER BY x.ordinal) ORDER BY 1
    LOOP
        IF (t.n = t.tiers) <> (t.up_to IS NULL) OR t.up_to <= below
           OR t.price_model = 'package' AND (t.tiers > 1 OR t.flat_amount IS NOT NULL) THEN
            RAISE EXCEPTION 'the price of metric "%" in plan "%" is not valid at tier %', metric, plan, t.n
                USING ERRCODE = 'UB037', HINT = 'Tiers rise, and the last one, and no other, has no end; a package has one tier, without a flat amount.';
        END IF;
        model := t.price_model;
        flat := false;
        unit_amount := t.unit_amount;
        IF model = 'package' THEN
            quantity := trim_scale(used);
            packages := div(used, t.package_size)
                      + CASE WHEN t.package_round = 'up' AND mod(used, t.package_size) > 0 THEN 1 ELSE 0 END;
            amount := round(packages * unit_amount);
            RETURN NEXT;
            RETURN;
        END IF;
        IF model = 'graduated' OR t.up_to IS NULL OR used <= t.up_to THEN
            tier := CASE WHEN t.tiers > 1 OR t.flat_amount IS NOT NULL THEN t.n END;
            quantity := trim_scale(CASE model WHEN 'volume' THEN used ELSE least(used, t.up_to) - below END);
            amount := round(quantity * unit_amount);
            RETURN NEXT;
            IF t.flat_amount IS NOT NULL THEN
                flat := true;
                quantity := 0;
                unit_amount := t.flat_amount;
                amount := round(t.flat_amount);
                RETURN NEXT;
            END IF;
        END IF;
        EXIT WHEN used <= t.up_to;
        below := t.up_to;
    END LOOP;
END $$;

-- The usage beyond a plan's allowance, and its share of what all of it costs: nothing in a trial or a pause, whose period
-- does not begin on the hour.
CREATE FUNCTION billing._overage(own text, what text, period text, OUT quantity numeric, OUT cost numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    used numeric := billing.get_billable_usage(own, what, period);
    p record;
BEGIN
    SELECT m.plan, m.allowance, y.starts = s.trial_start OR y.starts <> date_trunc('hour', y.starts, 'UTC') AS free INTO p
      FROM (SELECT lower(billing._billing_period(own, what, _overage.period)) AS starts) y, billing.subscriptions s JOIN billing.plan_metrics m ON m.plan = s.plan AND m.metric = what
     WHERE s.tenant_id = own AND s.status NOT IN ('canceled', 'incomplete_expired');
    quantity := trim_scale(greatest(used - p.allowance, 0));
    cost := 0;
    IF p.allowance IS NULL THEN
        quantity := 0;
    ELSIF quantity > 0 AND p.free IS NOT TRUE THEN
        cost := coalesce((SELECT sum(r.amount) FROM billing._rate(p.plan, what, used) r), 0)
              - coalesce((SELECT sum(r.amount) FROM billing._rate(p.plan, what, p.allowance) r), 0);
    END IF;
END $$;

CREATE FUNCTION billing.get_overage(tenant_id text, metric text, period text DEFAULT 'current') RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT o.quantity FROM billing._overage($1, $2, $3) o
$$;
COMMENT ON FUNCTION billing.get_overage(text, text, text) IS
    'returns the billable usage of a billing period beyond the allowance of the tenant''s present plan; a tenant''s own quota does not change what is included. Raises UB010, UB011, UB032, UB037, UB040';

CREATE FUNCTION billing.get_overage_cost(tenant_id text, metric text, period text DEFAULT 'current') RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT o.cost FROM billing._overage($1, $2, $3) o
$$;
COMMENT ON FUNCTION billing.get_overage_cost(text, text, text) IS
    'returns what the overage costs, in minor units: the price of all usage less that of the allowance. Raises UB010, UB011, UB032, UB037, UB040';

-- The invoice that ends the current period: its usage, which a trial does not bill, and in advance the next period's fee.
CREATE FUNCTION billing._invoice(own text, projected boolean)
RETURNS TABLE (metric text, tier int, description text, quantity numeric, unit_amount numeric, amount numeric,
               currency text, period_start timestamptz, period_end timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
    period tstzrange;
    following tstzrange;
BEGIN
    PERFORM billing._check_tenant(own);
    SELECT x.plan, x.trial_end, x.anchor, x.interval_months, x.timezone, x.cancel_at_period_end, p.display_name, p.currency,
           trim_scale(p.price) AS price INTO s
      FROM billing.subscriptions x JOIN billing.plans p ON p.name = x.plan
     WHERE x.tenant_id = own AND x.status NOT IN ('canceled', 'incomplete_expired') AND x.paused_at IS NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT q.billing_period INTO period FROM billing._quota_in_force(own, NULL, billing.now()) q;
    IF (s.trial_end > billing.now()) IS NOT TRUE THEN
        RETURN QUERY
        SELECT m.name, r.tier,
               format('%s × %s', r.quantity, m.display_name)
                   || coalesce(' (Tier ' || r.tier || CASE WHEN r.flat THEN ' flat fee' ELSE '' END || ')', ''),
               r.quantity, r.unit_amount, r.amount, s.currency, lower(period), upper(period)
          FROM billing.plan_metrics pm
          JOIN billing.metrics m ON m.name = pm.metric
         CROSS JOIN LATERAL billing._rate(pm.plan, pm.metric,
                                          greatest(0, CASE WHEN projected THEN billing.get_projected_usage(own, m.name)
                                                           ELSE billing._billable(own, m.name, period) END
                                                      + billing._late_usage_in(own, m.name, period))) r
         WHERE pm.plan = s.plan
         ORDER BY m.name, r.tier, r.flat;
    END IF;
    IF NOT s.cancel_at_period_end THEN
        following := billing._period_at(s.anchor, s.interval_months, s.timezone, upper(period));
        RETURN QUERY SELECT NULL, NULL::int, format('1 × %s', s.display_name), 1::numeric, s.price, round(s.price), s.currency,
                            lower(following), upper(following);
    END IF;
END $$;

CREATE FUNCTION billing.get_upcoming_invoice(tenant_id text)
RETURNS TABLE (metric text, tier int, description text, quantity numeric, unit_amount numeric, amount numeric,
               currency text, period_start timestamptz, period_end timestamptz, kind text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH lines AS (
        SELECT i.*, CASE WHEN i.metric IS NULL THEN 'fee' ELSE 'usage' END FROM billing._invoice($1, false) i
    ), usage AS (
        SELECT array_agg(m.metric ORDER BY m.metric) AS metrics, array_agg(m.amount ORDER BY m.metric) AS amounts,
               min(m.currency) AS currency, min(m.period_start) AS period_start, max(m.period_end) AS period_end
          FROM (SELECT l.metric, sum(l.amount) AS amount, min(l.currency) AS currency, min(l.period_start) AS period_start,
                       max(l.period_end) AS period_end FROM lines l WHERE l.metric IS NOT NULL GROUP BY 1) m
    )
    SELECT * FROM lines
    UNION ALL
    SELECT c.metric, NULL, c.name, NULL, NULL, -c.amount, u.currency, u.period_start, u.period_end, 'credit'
      FROM usage u, billing._credit_for($1, u.currency, u.metrics, u.amounts, u.period_end) c
$$;
COMMENT ON FUNCTION billing.get_upcoming_invoice(text) IS
    'returns the lines of the invoice that ends the current billing period, as if it ended now: its usage, by metric and tier, the next period''s flat fee, and, below zero, the credit that pays for usage (kind: usage, fee or credit); amounts in minor units, before taxes; no line without a subscription, or while it is paused. Raises UB010, UB037, UB040';

CREATE FUNCTION billing.get_projected_cost(tenant_id text, metric text DEFAULT NULL) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF metric IS NOT NULL THEN
        PERFORM billing._check_metric(metric);
    END IF;
    RETURN (SELECT coalesce(sum(i.amount), 0) FROM billing._invoice(get_projected_cost.tenant_id, true) i
             WHERE get_projected_cost.metric IS NULL OR i.metric = get_projected_cost.metric);
END $$;
COMMENT ON FUNCTION billing.get_projected_cost(text, text) IS
    'returns what that invoice comes to, or one metric on it, in minor units, with the usage get_projected_usage() expects, before credit. Raises UB010, UB011, UB037, UB040';
