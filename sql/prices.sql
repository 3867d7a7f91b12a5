-- Prices, frozen: what a plan costs is written down once somebody depends on it, as a version of the plan.
--
-- plans, plan_metrics and price_tiers are what an administrator edits. Whoever needs the plan's prices, to subscribe a
-- tenant or to tell Stripe, publishes it first: if the rows cost something else than the last version does, they become the
-- next one. A subscription keeps the version it was made with until it is moved to the newest on request; so a change of
-- price touches no subscriber by itself. Versions share the prices that did not change: a row of plan_prices counts for
-- all versions from `since` up to, not including, `until`, and its terms never change.
--
-- Terms are all that Stripe bills by, as JSON with canonical numbers: {currency, months, amount} is a flat fee,
-- {currency, months, model, tiers[{up_to, unit_amount, flat_amount}], package_size, package_round} the price of a metric.
-- Allowances, caps and grace are no part of them: they limit every subscriber of the plan as they are now.

CREATE FUNCTION billing._install_prices() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.plan_versions (
        plan         text NOT NULL REFERENCES billing.plans,
        version      int NOT NULL,
        published_at timestamptz NOT NULL,
        PRIMARY KEY (plan, version)
    );
    COMMENT ON TABLE billing.plan_versions IS
        'what a plan has cost since when: each change of its prices that somebody depends on is a version';

    CREATE TABLE IF NOT EXISTS billing.plan_prices (
        id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        plan            text NOT NULL,
        metric          text REFERENCES billing.metrics,    -- null: the flat fee
        since           int NOT NULL,                       -- the first version it belongs to
        until           int CHECK (until > since),          -- the first it does not; null: it belongs to the newest
        terms           jsonb NOT NULL,
        stripe_price_id text UNIQUE,
        stripe_active   boolean NOT NULL DEFAULT true,      -- may be given to subscriptions at Stripe
        UNIQUE NULLS NOT DISTINCT (plan, metric, since),
        FOREIGN KEY (plan, since) REFERENCES billing.plan_versions
    );
    COMMENT ON TABLE billing.plan_prices IS
        'the prices of each version of a plan, frozen, and which price at Stripe each of them is';
END $$;

-- What a plan costs by the rows that are edited. A metric without tiers has no price, nor has one that others bill by files:
-- it is limited, not billed.
CREATE FUNCTION billing._plan_terms(plan text) RETURNS TABLE (metric text, terms jsonb)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NULL, jsonb_build_object('currency', p.currency, 'months', coalesce(p.fee_interval_months, p.interval_months),
                                    'amount', trim_scale(p.price))
      FROM billing.plans p WHERE p.name = $1
    UNION ALL
    SELECT m.metric,
           jsonb_strip_nulls(jsonb_build_object('currency', p.currency, 'months', p.interval_months, 'model', m.price_model,
               'package_size', m.package_size, 'package_round', m.package_round, 'tiers', t.tiers))
      FROM billing.plans p
      JOIN billing.plan_metrics m ON m.plan = p.name AND (SELECT x.export FROM billing.metrics x WHERE x.name = m.metric) <> 'file'
      JOIN LATERAL (SELECT jsonb_agg(jsonb_build_object('up_to', trim_scale(x.up_to), 'unit_amount', trim_scale(x.unit_amount),
                                                        'flat_amount', trim_scale(x.flat_amount)) ORDER BY x.ordinal) AS tiers
                      FROM billing.price_tiers x WHERE x.plan = m.plan AND x.metric = m.metric) t ON t.tiers IS NOT NULL
     WHERE p.name = $1
$$;

-- The first tier that makes no sense, if there is one.
CREATE FUNCTION billing._bad_tier(terms jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT min(t.n)
      FROM (SELECT x.n, count(*) OVER () AS tiers, (x.tier ->> 'up_to')::numeric AS up_to, x.tier ? 'flat_amount' AS flat,
                   lag((x.tier ->> 'up_to')::numeric) OVER (ORDER BY x.n) AS below
              FROM jsonb_array_elements($1 -> 'tiers') WITH ORDINALITY x (tier, n)) t
     WHERE (t.n = t.tiers) <> (t.up_to IS NULL) OR t.up_to <= t.below
        OR $1 ->> 'model' = 'package' AND (t.tiers > 1 OR t.flat)
$$;

-- The prices of a plan that its newest version lacks or has otherwise.
CREATE FUNCTION billing._plan_changes(plan text) RETURNS TABLE (metric text, terms jsonb, price_id bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(t.metric, p.metric), t.terms, p.id
      FROM billing._plan_terms($1) t
      FULL JOIN (SELECT * FROM billing.plan_prices x WHERE x.plan = $1 AND x.until IS NULL) p
             ON coalesce(p.metric, '') = coalesce(t.metric, '')
     WHERE t.terms IS DISTINCT FROM p.terms
$$;

-- Returns the newest version of a plan, after making one if the plan's prices are no longer those of the last.
CREATE FUNCTION billing._publish_plan(plan text) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next int;
    bad record;
BEGIN
    IF EXISTS (SELECT FROM billing._plan_changes(_publish_plan.plan)) THEN
        -- who publishes it at the same time has done so afterwards
        PERFORM FROM billing.plans p WHERE p.name = _publish_plan.plan FOR NO KEY UPDATE;
        SELECT c.metric, billing._bad_tier(c.terms) AS tier INTO bad
          FROM billing._plan_changes(_publish_plan.plan) c WHERE billing._bad_tier(c.terms) IS NOT NULL ORDER BY 1 LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'the price of metric "%" in plan "%" is not valid at tier %', bad.metric, plan, bad.tier
                USING ERRCODE = 'UB037', HINT = 'Tiers rise, and the last one, and no other, has no end; a package has one tier, without a flat amount.';
        END IF;
        INSERT INTO billing.plan_versions AS v
        SELECT _publish_plan.plan, coalesce((SELECT max(x.version) FROM billing.plan_versions x WHERE x.plan = _publish_plan.plan), 0) + 1,
               billing.now()
         WHERE EXISTS (SELECT FROM billing._plan_changes(_publish_plan.plan))
        RETURNING v.version INTO next;
        WITH changed AS (
            SELECT * FROM billing._plan_changes(_publish_plan.plan)
        ), ended AS (
            UPDATE billing.plan_prices p SET until = next FROM changed c WHERE p.id = c.price_id
        )
        INSERT INTO billing.plan_prices (plan, metric, since, terms)
        SELECT _publish_plan.plan, c.metric, next, c.terms FROM changed c WHERE c.terms IS NOT NULL;
    END IF;
    RETURN (SELECT max(v.version) FROM billing.plan_versions v WHERE v.plan = _publish_plan.plan);
END $$;

-- The prices of a tenant on a version of a plan: its own (sql/tenant_prices.sql) or the plan's; metric null: the flat fee.
CREATE FUNCTION billing._prices_of(tenant_id text, plan text, version int)
RETURNS TABLE (metric text, terms jsonb, stripe_price_id text, stripe_active boolean)
LANGUAGE sql STABLE AS $$
    SELECT p.metric, coalesce(t.terms, p.terms), CASE WHEN t.id IS NULL THEN p.stripe_price_id ELSE t.stripe_price_id END,
           coalesce(t.stripe_active, p.stripe_active)
      FROM billing.plan_prices p
      LEFT JOIN billing.tenant_prices t ON t.tenant_id = $1 AND t.plan = p.plan AND t.metric IS NOT DISTINCT FROM p.metric
           AND t.cleared_at IS NULL
     WHERE p.plan = $2 AND p.since <= $3 AND (p.until > $3) IS NOT FALSE
$$;

-- Whether a mode of export bills by a meter and prices of Stripe's.
CREATE FUNCTION billing._has_meter(export text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT $1 IN ('hourly_total', 'delta', 'delta_stream') $$;

-- Those prices that Stripe has, too: without the ones that are rated here only.
CREATE FUNCTION billing._stripe_prices_of(tenant_id text, plan text, version int)
RETURNS TABLE (metric text, terms jsonb, stripe_price_id text, stripe_active boolean)
LANGUAGE sql STABLE AS $$
    SELECT p.metric, p.terms, p.stripe_price_id, p.stripe_active
      FROM billing._prices_of($1, $2, $3) p LEFT JOIN billing.metrics m ON m.name = p.metric
     WHERE billing._has_meter(m.export) IS NOT FALSE
$$;

-- All prices that may be on a tenant's subscriptions and invoices at Stripe.
CREATE FUNCTION billing._known_prices(tenant_id text)
RETURNS TABLE (stripe_price_id text, plan text, metric text, until int, terms jsonb)
LANGUAGE sql STABLE AS $$
    SELECT p.stripe_price_id, p.plan, p.metric, p.until, p.terms FROM billing.plan_prices p
    UNION ALL
    SELECT t.stripe_price_id, t.plan, t.metric, NULL, t.terms FROM billing.tenant_prices t WHERE t.tenant_id = $1
$$;

CREATE FUNCTION billing.upgrade_subscribers(plan text, proration_behavior text DEFAULT 'create_prorations') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    newest int;
    tenant text;
    moved bigint := 0;
BEGIN
    PERFORM billing._check_plan(plan);
    newest := billing._publish_plan(plan);
    FOR tenant IN
        SELECT s.tenant_id FROM billing.subscriptions s
         WHERE s.plan = upgrade_subscribers.plan AND s.plan_version < newest AND s.status NOT IN ('canceled', 'incomplete_expired')
         ORDER BY s.tenant_id
    LOOP
        PERFORM billing.update_subscription(tenant, plan, proration_behavior);
        moved := moved + 1;
    END LOOP;
    RETURN moved;
END $$;
COMMENT ON FUNCTION billing.upgrade_subscribers(text, text) IS
    'moves all subscribers of a plan to its newest prices, as update_subscription() to the same plan does for one; returns how many. Raises UB012, UB032, UB037, UB040';
