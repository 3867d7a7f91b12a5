-- A tenant's own prices: in place of its plan's, for as long as it is on that plan and until they are cleared.
--
-- They are frozen as a plan's are (sql/prices.sql): another price is another row. At Stripe each is a price of its own
-- on the tenant's subscription, made once the tenant is on that plan.

CREATE FUNCTION billing._install_tenant_prices() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.tenant_prices (
        tenant_id       text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        id              bigint GENERATED ALWAYS AS IDENTITY,
        plan            text NOT NULL REFERENCES billing.plans,
        metric          text REFERENCES billing.metrics,    -- null: the flat fee
        terms           jsonb NOT NULL,                     -- as in plan_prices
        set_at          timestamptz NOT NULL,
        cleared_at      timestamptz,                        -- null: in force
        stripe_price_id text,
        stripe_active   boolean NOT NULL DEFAULT true,
        PRIMARY KEY (tenant_id, id)
    );
    CREATE UNIQUE INDEX IF NOT EXISTS tenant_prices_in_force ON billing.tenant_prices (tenant_id, plan, metric)
        NULLS NOT DISTINCT WHERE cleared_at IS NULL;
    COMMENT ON TABLE billing.tenant_prices IS 'a tenant''s own prices, in place of those of a plan while it is on it';
END $$;

-- The terms of a price as it is given: a number, or tiers. It has the currency and the interval of another, and is a flat
-- fee if that is one.
CREATE FUNCTION billing._terms_like(other jsonb, price jsonb, model text, package_size bigint, package_round text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tiers jsonb := CASE jsonb_typeof(price) WHEN 'number' THEN jsonb_build_array(jsonb_build_object('unit_amount', price))
                                            WHEN 'array' THEN price END;
    fee boolean := other ? 'amount';
    terms jsonb := jsonb_build_object('currency', other -> 'currency', 'months', other -> 'months');
    valid boolean := CASE WHEN model = 'package' THEN package_size > 0 AND package_round IN ('up', 'down') AND NOT fee
                          WHEN model = 'volume' THEN package_size IS NULL AND package_round IS NULL AND NOT fee
                          WHEN model = 'graduated' THEN package_size IS NULL AND package_round IS NULL END;
BEGIN
    SELECT valid AND bool_and(CASE jsonb_typeof(t) WHEN 'object' THEN t ? 'unit_amount' AND t - '{up_to,unit_amount,flat_amount}'::text[] = '{}' END)
      INTO valid FROM jsonb_array_elements(tiers) t;
    IF valid THEN
        SELECT bool_and(CASE jsonb_typeof(e.value)
                        WHEN 'number' THEN e.value::numeric >= CASE e.key WHEN 'up_to' THEN 1 ELSE 0 END
                                           AND min_scale(e.value::numeric) <= CASE e.key WHEN 'up_to' THEN 0 ELSE 12 END
                        ELSE e.value = 'null' AND e.key <> 'unit_amount' END)
          INTO valid FROM jsonb_array_elements(tiers) t, jsonb_each(t) e;
    END IF;
    IF valid AND fee THEN
        terms := CASE jsonb_typeof(price) WHEN 'number' THEN terms || jsonb_build_object('amount', trim_scale(price::numeric)) END;
    ELSIF valid THEN
        SELECT jsonb_strip_nulls(terms || jsonb_build_object('model', model, 'package_size', package_size, 'package_round', package_round,
                   'tiers', jsonb_agg(jsonb_build_object('up_to', trim_scale((t.tier ->> 'up_to')::numeric),
                                                         'unit_amount', trim_scale((t.tier ->> 'unit_amount')::numeric),
                                                         'flat_amount', trim_scale((t.tier ->> 'flat_amount')::numeric)) ORDER BY t.n)))
          INTO terms FROM jsonb_array_elements(tiers) WITH ORDINALITY t (tier, n);
    END IF;
    IF valid IS NOT TRUE OR terms IS NULL OR billing._bad_tier(terms) IS NOT NULL THEN
        RAISE EXCEPTION 'price % of model "%" is not valid', price, model
            USING ERRCODE = 'UB013', DETAIL = format('In packages of %s, rounded %s.', package_size, package_round),
                  HINT = 'It is a number, or for a metric tiers {"up_to", "unit_amount", "flat_amount"}, which rise and the last of which has no up_to; model package takes a number, package_size, and package_round up or down.';
    END IF;
    RETURN terms;
END $$;

-- The plan that is meant: the one that is named, else the tenant's present one.
CREATE FUNCTION billing._plan_meant(tenant_id text, plan text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    meant text := plan;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    -- of two changes of one tenant's prices, one is first
    PERFORM FROM billing.billing_customers c WHERE c.tenant_id = _plan_meant.tenant_id FOR NO KEY UPDATE;
    IF plan IS NULL THEN
        SELECT s.plan INTO meant FROM billing.subscriptions s
         WHERE s.tenant_id = _plan_meant.tenant_id AND s.status NOT IN ('canceled', 'incomplete_expired');
        IF NOT FOUND THEN
            RAISE EXCEPTION 'tenant "%" has no subscription', tenant_id
                USING ERRCODE = 'UB036', HINT = 'Create one with billing.create_subscription(), or name the plan that the price is for.';
        END IF;
    END IF;
    PERFORM billing._check_plan(meant);
    -- what has begun is at what it has cost until now
    PERFORM billing._begin_item_periods(to_jsonb(s)) FROM billing.subscriptions s
      WHERE s.tenant_id = _plan_meant.tenant_id AND s.status NOT IN ('canceled', 'incomplete_expired');
    RETURN meant;
END $$;

-- What a change of own prices brings with it: if the tenant is on that plan, it is due at Stripe.
CREATE FUNCTION billing._prices_changed(tenant_id text, plan text, proration_behavior text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (proration_behavior IN ('create_prorations', 'always_invoice', 'none')) IS NOT TRUE THEN
        RAISE EXCEPTION 'proration behavior "%" is not valid', proration_behavior
            USING ERRCODE = 'UB032', HINT = 'Use create_prorations, always_invoice or none.';
    END IF;
    UPDATE billing.subscriptions s
       SET prices_due = true, proration_behavior = _prices_changed.proration_behavior, changed_at = billing.now()
     WHERE s.tenant_id = _prices_changed.tenant_id AND s.plan = _prices_changed.plan
       AND s.status NOT IN ('canceled', 'incomplete_expired');
    PERFORM billing._close_item_periods(to_jsonb(s), to_jsonb(s)) FROM billing.subscriptions s
      WHERE s.tenant_id = _prices_changed.tenant_id AND s.plan = _prices_changed.plan
        AND s.status NOT IN ('canceled', 'incomplete_expired');
    PERFORM billing._ask_stripe_anew(tenant_id);
END $$;

CREATE FUNCTION billing.set_price(tenant_id text, metric text, price jsonb, price_model text DEFAULT 'graduated',
                                  package_size bigint DEFAULT NULL, package_round text DEFAULT NULL, plan text DEFAULT NULL,
                                  proration_behavior text DEFAULT 'create_prorations')
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    meant text := billing._plan_meant(tenant_id, plan);
    version int := coalesce((SELECT s.plan_version FROM billing.subscriptions s
                              WHERE s.tenant_id = set_price.tenant_id AND s.plan = meant
                                AND s.status NOT IN ('canceled', 'incomplete_expired')), billing._publish_plan(meant));
    other jsonb;
    wanted jsonb;
    was billing.tenant_prices;
    now_is billing.tenant_prices;
BEGIN
    IF metric IS NOT NULL THEN
        PERFORM billing._check_metric(metric);
    END IF;
    SELECT p.terms INTO other FROM billing._prices_of('', meant, version) p WHERE p.metric IS NOT DISTINCT FROM set_price.metric;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'plan "%" has no price of metric "%"', meant, metric
            USING ERRCODE = 'UB014', HINT = 'billing.price_tiers lists the prices of the plans; give the plan one, of 0 if need be.';
    END IF;
    wanted := billing._terms_like(other, price, price_model, package_size, package_round);
    SELECT * INTO was FROM billing.tenant_prices t
     WHERE t.tenant_id = set_price.tenant_id AND t.plan = meant AND t.metric IS NOT DISTINCT FROM set_price.metric
       AND t.cleared_at IS NULL FOR UPDATE;
    IF was.terms = wanted THEN
        RETURN;
    END IF;
    UPDATE billing.tenant_prices t SET cleared_at = billing.now() WHERE t.tenant_id = was.tenant_id AND t.id = was.id;
    INSERT INTO billing.tenant_prices AS t (tenant_id, plan, metric, terms, set_at)
    VALUES (set_price.tenant_id, meant, set_price.metric, wanted, billing.now())
    RETURNING * INTO now_is;
    PERFORM billing._audit(tenant_id, 'set_price', CASE WHEN was.id IS NOT NULL THEN to_jsonb(was) END, to_jsonb(now_is));
    PERFORM billing._prices_changed(tenant_id, meant, proration_behavior);
END $$;
COMMENT ON FUNCTION billing.set_price(text, text, jsonb, text, bigint, text, text, text) IS
    'gives a tenant its own price of a metric, or with metric null of the flat fee, while it is on a plan (its present one unless named): a number, or tiers as [{"up_to": …, "unit_amount": …, "flat_amount": …}, …], in minor units; in force at commit, and at Stripe, which bills until then at the old one. Raises UB010, UB011, UB012, UB013, UB014, UB032, UB036, UB037, UB040';

CREATE FUNCTION billing.clear_price(tenant_id text, metric text, plan text DEFAULT NULL,
                                    proration_behavior text DEFAULT 'create_prorations')
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    meant text := billing._plan_meant(tenant_id, plan);
    was jsonb;
BEGIN
    IF metric IS NOT NULL THEN
        PERFORM billing._check_metric(metric);
    END IF;
    SELECT to_jsonb(t) INTO was FROM billing.tenant_prices t
     WHERE t.tenant_id = clear_price.tenant_id AND t.plan = meant AND t.metric IS NOT DISTINCT FROM clear_price.metric
       AND t.cleared_at IS NULL FOR UPDATE;
    IF FOUND THEN
        UPDATE billing.tenant_prices t SET cleared_at = billing.now()
         WHERE t.tenant_id = clear_price.tenant_id AND t.id = (was ->> 'id')::bigint;
        PERFORM billing._audit(tenant_id, 'clear_price', was, NULL);
        PERFORM billing._prices_changed(tenant_id, meant, proration_behavior);
    END IF;
END $$;
COMMENT ON FUNCTION billing.clear_price(text, text, text, text) IS
    'ends a tenant''s own price of a metric, or with metric null of the flat fee, so that the plan''s is in force again: that of the version it is on. Raises UB010, UB011, UB012, UB032, UB036, UB040';
