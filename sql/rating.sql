-- What usage costs: rated here as Stripe rates it, in exact numeric, so that an invoice can be told before it is written.
-- docs/pricing.md has each price model worked by hand.

-- The charges of a quantity by a price's terms (sql/prices.sql), as Stripe makes invoice lines of them: one for each tier
-- it reaches, one for each tier's flat amount, each rounded on its own to the minor unit, halves up. tier null: no tiers.
CREATE FUNCTION billing._rate(terms jsonb, used numeric)
RETURNS TABLE (tier int, flat boolean, quantity numeric, unit_amount numeric, amount numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    model text := terms ->> 'model';
    package numeric := (terms ->> 'package_size')::numeric;
    below numeric := 0;     -- where the tier begins
    packages numeric;
    t record;
BEGIN
    FOR t IN
        SELECT x.n::int AS n, count(*) OVER () AS tiers, (x.tier ->> 'up_to')::numeric AS up_to,
               (x.tier ->> 'unit_amount')::numeric AS unit_amount, (x.tier ->> 'flat_amount')::numeric AS flat_amount
          FROM jsonb_array_elements(terms -> 'tiers') WITH ORDINALITY x (tier, n) ORDER BY 1
    LOOP
        flat := false;
        unit_amount := t.unit_amount;
        IF model = 'package' THEN
            quantity := trim_scale(used);
            packages := div(used, package)
                      + CASE WHEN terms ->> 'package_round' = 'up' AND mod(used, package) > 0 THEN 1 ELSE 0 END;
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

-- The usage beyond a plan's allowance, and its share of what all of it costs the tenant: nothing in a trial or a pause, whose
-- period does not begin on a second.
CREATE FUNCTION billing._overage(own text, what text, period text, OUT quantity numeric, OUT cost numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    used numeric := billing.get_billable_usage(own, what, period);
    p record;
BEGIN
    SELECT m.allowance, w.terms, y.starts = s.trial_start OR y.starts <> date_trunc('second', y.starts) AS free INTO p
      FROM (SELECT lower(billing._billing_period(own, what, _overage.period)) AS starts) y, billing.subscriptions s
      JOIN billing.plan_metrics m ON m.plan = s.plan AND m.metric = what
      LEFT JOIN LATERAL billing._prices_of(s.tenant_id, s.plan, s.plan_version) w ON w.metric = m.metric
     WHERE s.tenant_id = own AND s.status NOT IN ('canceled', 'incomplete_expired');
    quantity := trim_scale(greatest(used - p.allowance, 0));
    cost := 0;
    IF p.allowance IS NULL THEN
        quantity := 0;
    ELSIF quantity > 0 AND p.free IS NOT TRUE THEN
        cost := coalesce((SELECT sum(r.amount) FROM billing._rate(p.terms, used) r), 0)
              - coalesce((SELECT sum(r.amount) FROM billing._rate(p.terms, p.allowance) r), 0);
    END IF;
END $$;

CREATE FUNCTION billing.get_overage(tenant_id text, metric text, period text DEFAULT 'current') RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT o.quantity FROM billing._overage($1, $2, $3) o
$$;
COMMENT ON FUNCTION billing.get_overage(text, text, text) IS
    'returns the billable usage of a billing period beyond the allowance of the tenant''s present plan; a tenant''s own quota does not change what is included. Raises UB010, UB011, UB032, UB040';

CREATE FUNCTION billing.get_overage_cost(tenant_id text, metric text, period text DEFAULT 'current') RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT o.cost FROM billing._overage($1, $2, $3) o
$$;
COMMENT ON FUNCTION billing.get_overage_cost(text, text, text) IS
    'returns what the overage costs, in minor units: the price of all usage less that of the allowance. Raises UB010, UB011, UB032, UB040';

-- The invoice that ends the current period: its usage, which a trial does not bill, what changes of price within the period
-- have left (price_changes.sql), and in advance the next period's fee, or the next year's if that is due then.
CREATE FUNCTION billing._invoice(own text, projected boolean)
RETURNS TABLE (metric text, tier int, description text, quantity numeric, unit_amount numeric, amount numeric,
               currency text, period_start timestamptz, period_end timestamptz, kind text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
    changes jsonb;
    period tstzrange;
    following tstzrange;
BEGIN
    PERFORM billing._check_tenant(own);
    SELECT x.plan, x.plan_version, x.trial_end, x.anchor, x.interval_months, x.timezone, x.cancel_at_period_end, p.display_name,
           w.terms ->> 'currency' AS currency, (w.terms ->> 'amount')::numeric AS price,
           (w.terms ->> 'months')::int AS fee_months, coalesce(x.fee_anchor, x.anchor) AS fee_anchor, to_jsonb(x) AS whole INTO s
      FROM billing.subscriptions x
      JOIN billing.plans p ON p.name = x.plan
      JOIN LATERAL billing._prices_of(x.tenant_id, x.plan, x.plan_version) w ON w.metric IS NULL
     WHERE x.tenant_id = own AND x.status NOT IN ('canceled', 'incomplete_expired') AND x.paused_at IS NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT q.billing_period INTO period FROM billing._quota_in_force(own, NULL, billing.now()) q;
    IF (s.trial_end > billing.now()) IS NOT TRUE THEN
        SELECT coalesce(jsonb_agg(c), '[]') INTO changes FROM billing._price_changes(s.whole) c;
        RETURN QUERY
        WITH changed AS (
            SELECT * FROM jsonb_to_recordset(changes) c (metric text, changed_at timestamptz, terms jsonb, next_terms jsonb,
                                                         quantity numeric, proration_behavior text)
        ), usage AS (
            SELECT c.metric, c.terms, c.quantity, c.changed_at AS until FROM changed c
             WHERE c.metric IS NOT NULL AND c.proration_behavior = 'create_prorations'
            UNION ALL
            SELECT w.metric, w.terms, CASE WHEN projected THEN billing.get_projected_usage(own, w.metric)
                                           ELSE billing._billable(own, w.metric, period) END
                                      + billing._late_usage_in(own, w.metric, period)
                                      - coalesce((SELECT sum(c.quantity) FROM changed c WHERE c.metric = w.metric), 0), NULL
              FROM billing._prices_of(own, s.plan, s.plan_version) w WHERE w.metric IS NOT NULL
        )
        SELECT m.name, r.tier,
               format('%s × %s', r.quantity, m.display_name)
                   || coalesce(' (Tier ' || r.tier || CASE WHEN r.flat THEN ' flat fee' ELSE '' END || ')', ''),
               r.quantity, r.unit_amount, r.amount, s.currency, lower(period), coalesce(u.until, upper(period)), 'usage'
          FROM usage u
          JOIN billing.metrics m ON m.name = u.metric
         CROSS JOIN LATERAL billing._rate(u.terms, greatest(0, u.quantity)) r
         ORDER BY m.name, u.until NULLS LAST, r.tier, r.flat;
        RETURN QUERY
        SELECT NULL, NULL::int, CASE WHEN p.sign < 0 THEN 'The rest of the period at the price before' ELSE 'The rest of the period' END,
               1::numeric, NULL::numeric,
               p.sign * round((p.terms ->> 'amount')::numeric * extract(epoch FROM upper(f.period) - c.changed_at)
                              / extract(epoch FROM upper(f.period) - lower(f.period))),
               s.currency, c.changed_at, upper(f.period), 'proration'
          FROM jsonb_to_recordset(changes) c (metric text, changed_at timestamptz, terms jsonb, next_terms jsonb, proration_behavior text)
         CROSS JOIN LATERAL (VALUES (-1, c.terms), (1, c.next_terms)) p (sign, terms)
         CROSS JOIN LATERAL billing._fee_period(s.whole, (p.terms ->> 'months')::int, c.changed_at) f (period)
         WHERE c.metric IS NULL AND c.proration_behavior = 'create_prorations' AND p.terms IS NOT NULL
         ORDER BY c.changed_at, p.sign;
    END IF;
    IF NOT s.cancel_at_period_end THEN
        following := billing._period_at(CASE WHEN s.fee_months > s.interval_months THEN s.fee_anchor ELSE s.anchor END, s.fee_months,
                                        s.timezone, upper(period));
        IF s.fee_months > s.interval_months THEN
            -- A year begins with a month, which a short February makes begin up to three days early.
            following := tstzrange(lower(billing._period_at(s.anchor, s.interval_months, s.timezone, lower(following) + interval '3 days')),
                                   lower(billing._period_at(s.anchor, s.interval_months, s.timezone, upper(following) + interval '3 days')));
            IF upper(period) - lower(following) >= interval '1 hour' THEN
                RETURN;     -- this year is paid for
            END IF;
        END IF;
        RETURN QUERY SELECT NULL, NULL::int, format('1 × %s', s.display_name), 1::numeric, s.price, round(s.price), s.currency,
                            lower(following), upper(following), 'fee';
    END IF;
END $$;

CREATE FUNCTION billing.get_upcoming_invoice(tenant_id text)
RETURNS TABLE (metric text, tier int, description text, quantity numeric, unit_amount numeric, amount numeric,
               currency text, period_start timestamptz, period_end timestamptz, kind text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH lines AS (
        SELECT * FROM billing._invoice($1, false)
    ), usage AS (
        SELECT array_agg(m.metric ORDER BY m.metric) AS metrics, array_agg(m.amount ORDER BY m.metric) AS amounts,
               min(m.currency) AS currency, min(m.period_start) AS period_start, max(m.period_end) AS period_end
          FROM (SELECT l.metric, sum(l.amount) AS amount, min(l.currency) AS currency, min(l.period_start) AS period_start,
                       max(l.period_end) AS period_end FROM lines l
                 -- credit pays for what Stripe meters
                 WHERE l.metric IN (SELECT x.name FROM billing.metrics x WHERE x.export <> 'invoice_items') GROUP BY 1) m
    )
    SELECT * FROM lines
    UNION ALL
    SELECT c.metric, NULL, c.name, NULL, NULL, -c.amount, u.currency, u.period_start, u.period_end, 'credit'
      FROM usage u, billing._credit_for($1, u.currency, u.metrics, u.amounts, u.period_end) c
$$;
COMMENT ON FUNCTION billing.get_upcoming_invoice(text) IS
    'returns the lines of the invoice that ends the current billing period, as if it ended now: its usage, by metric and tier, what changes of the plan within the period leave to be credited and charged of flat fees, the next period''s flat fee, and, below zero, the credit that pays for usage (kind: usage, proration, fee or credit); amounts in minor units, before taxes; no line without a subscription, or while it is paused. Raises UB010, UB040';

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
    'returns what that invoice comes to, or one metric on it, in minor units, with the usage get_projected_usage() expects, before credit. Raises UB010, UB011, UB040';
