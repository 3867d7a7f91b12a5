-- Prices at Stripe: found again by lookup key, which those of a plan's newest version have, or created.
--
-- A price at Stripe never changes its terms: new terms are another price, which takes the lookup key over, and the old one
-- is deactivated. It goes on billing the subscriptions that have it; it is active only while one is to get it.

-- The lookup key of a metric's price in a plan, or of the plan's own (metric null).
CREATE FUNCTION billing._stripe_price_key(plan text, metric text, months int) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT concat_ws('_', 'pgb', $1, $2, CASE $3 WHEN 1 THEN 'month' WHEN 12 THEN 'year' ELSE $3 || 'months' END)
$$;

-- The parameters that create a price: tiers, one plain amount where a metric has a single tier, or a flat fee.
-- billing._rate() computes what Stripe makes of it.
CREATE FUNCTION billing._stripe_price_params(plan text, metric text, terms jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
               'currency', $3 -> 'currency',
               'product', coalesce(m.stripe_product_id, p.stripe_product_id),
               'nickname', concat_ws(' ', p.display_name, m.display_name),
               'recurring', jsonb_strip_nulls(jsonb_build_object(
                   'interval', CASE WHEN i.months % 12 = 0 THEN 'year' ELSE 'month' END,
                   'interval_count', CASE WHEN i.months % 12 = 0 THEN i.months / 12 ELSE i.months END,
                   'usage_type', CASE WHEN m.name IS NULL THEN 'licensed' ELSE 'metered' END,
                   'meter', m.stripe_meter_id)))
           || CASE WHEN m.name IS NULL THEN jsonb_build_object('billing_scheme', 'per_unit', 'unit_amount_decimal', $3 ->> 'amount')
                   WHEN $3 ->> 'model' = 'package' THEN
                       jsonb_build_object('billing_scheme', 'per_unit', 'unit_amount_decimal', t.amount, 'transform_quantity',
                           jsonb_build_object('divide_by', $3 -> 'package_size', 'round', $3 -> 'package_round'))
                   WHEN t.plain THEN jsonb_build_object('billing_scheme', 'per_unit', 'unit_amount_decimal', t.amount)
                   ELSE jsonb_build_object('billing_scheme', 'tiered', 'tiers_mode', $3 -> 'model', 'tiers', t.tiers) END
      FROM billing.plans p
      LEFT JOIN billing.metrics m ON m.name = $2
      CROSS JOIN LATERAL (SELECT ($3 ->> 'months')::int AS months) i
      CROSS JOIN LATERAL (
           SELECT count(*) = 1 AND count(x.tier -> 'flat_amount') = 0 AS plain, min(x.tier ->> 'unit_amount') AS amount,
                  jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                                'up_to', coalesce(x.tier ->> 'up_to', 'inf'),
                                'unit_amount_decimal', x.tier ->> 'unit_amount',
                                'flat_amount_decimal', x.tier ->> 'flat_amount')) ORDER BY x.n) AS tiers
             FROM jsonb_array_elements($3 -> 'tiers') WITH ORDINALITY x (tier, n)) t
     WHERE p.name = $1
$$;

-- The parameters that would create a price that Stripe has, as far as it bills by them.
CREATE FUNCTION billing._stripe_price_terms(price jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object(
               'currency', $1 -> 'currency', 'product', $1 -> 'product', 'billing_scheme', $1 -> 'billing_scheme',
               'tiers_mode', $1 -> 'tiers_mode', 'unit_amount_decimal', trim_scale(($1 ->> 'unit_amount_decimal')::numeric)::text,
               'transform_quantity', $1 -> 'transform_quantity',
               'recurring', jsonb_build_object(
                   'interval', $1 #> '{recurring,interval}', 'interval_count', $1 #> '{recurring,interval_count}',
                   'usage_type', $1 #> '{recurring,usage_type}', 'meter', $1 #> '{recurring,meter}'),
               'tiers', (SELECT jsonb_agg(jsonb_build_object(
                                    'up_to', coalesce(t.tier ->> 'up_to', 'inf'),
                                    'unit_amount_decimal', trim_scale((t.tier ->> 'unit_amount_decimal')::numeric)::text,
                                    'flat_amount_decimal', trim_scale((t.tier ->> 'flat_amount_decimal')::numeric)::text) ORDER BY t.n)
                           FROM jsonb_array_elements($1 -> 'tiers') WITH ORDINALITY t (tier, n))))
$$;

-- All prices: how each is named among requests and found again, and whether subscriptions at Stripe may still be given it.
-- That may the newest of a plan, those that a subscription is to get or is just given, and a tenant's own in force.
CREATE FUNCTION billing._stripe_prices()
RETURNS TABLE (tenant_id text, id bigint, plan text, metric text, terms jsonb, subject text, lookup_key text,
               stripe_price_id text, stripe_active boolean, wanted boolean)
LANGUAGE sql STABLE AS $$
    SELECT p.tenant_id, p.id, p.plan, p.metric, p.terms,
           CASE WHEN p.newest THEN k.key ELSE concat(k.key, '_', coalesce('v' || p.since, 'own' || p.id)) END,
           CASE WHEN p.newest THEN k.key END, p.stripe_price_id, p.stripe_active,
           p.newest
           OR EXISTS (SELECT FROM billing.subscriptions s JOIN billing.billing_customers c ON c.tenant_id = s.tenant_id
                       WHERE c.stripe AND s.plan = p.plan AND s.status NOT IN ('canceled', 'incomplete_expired')
                         AND CASE WHEN p.tenant_id = '' THEN s.plan_version >= p.since AND s.plan_version < p.until AND s.prices_due
                                  ELSE s.tenant_id = p.tenant_id AND p.cleared_at IS NULL END)
           OR EXISTS (SELECT FROM billing.stripe_outbox o
                       WHERE o.kind IN ('subscription_create', 'subscription_update') AND o.state IN ('waiting', 'sending')
                         AND o.params -> 'items' @> jsonb_build_array(jsonb_build_object('price', p.stripe_price_id)))
      FROM (SELECT '' AS tenant_id, x.id, x.plan, x.metric, x.terms, x.since, x.until, NULL::timestamptz AS cleared_at,
                   x.stripe_price_id, x.stripe_active, x.until IS NULL AS newest FROM billing.plan_prices x
            UNION ALL
            SELECT x.tenant_id, x.id, x.plan, x.metric, x.terms, NULL, NULL, x.cleared_at, x.stripe_price_id, x.stripe_active, false
              FROM billing.tenant_prices x) p
      LEFT JOIN billing.metrics m ON m.name = p.metric
      CROSS JOIN LATERAL (SELECT billing._stripe_price_key(p.plan, p.metric, (p.terms ->> 'months')::int) AS key) k
     WHERE billing._has_meter(m.export) IS NOT FALSE
$$;

CREATE FUNCTION billing._stripe_create_price(tenant_id text, id bigint, replaces text) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._stripe_enqueue(w.tenant_id, 'price_create', w.subject, 'POST', '/v1/prices',
               billing._stripe_price_params(w.plan, w.metric, w.terms)
               || CASE WHEN w.lookup_key IS NULL THEN '{}'
                       ELSE jsonb_build_object('lookup_key', w.lookup_key, 'transfer_lookup_key', true) END
               || CASE WHEN w.tenant_id = '' THEN '{}'
                       ELSE jsonb_build_object('metadata', jsonb_build_object('tenant_id', w.tenant_id)) END,
               jsonb_strip_nulls(jsonb_build_object('price', w.id, 'replaces', $3)))
      FROM billing._stripe_prices() w WHERE w.tenant_id = $1 AND w.id = $2 AND w.wanted
$$;

CREATE FUNCTION billing._stripe_plan_prices() RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    -- A plan whose price makes no sense stays as it was published last.
    SELECT billing._publish_plan(p.name) FROM billing.plans p
     WHERE (SELECT bool_and(billing._bad_tier(c.terms) IS NULL) FROM billing._plan_changes(p.name) c);
    WITH requests AS (
        SELECT CASE WHEN w.lookup_key IS NOT NULL
                    THEN billing._stripe_enqueue('', 'price_find', w.subject, 'GET', '/v1/prices',
                             jsonb_build_object('lookup_keys', jsonb_build_array(w.lookup_key), 'active', true,
                                                'expand', '["data.tiers"]'::jsonb), jsonb_build_object('price', w.id))
                    ELSE billing._stripe_create_price(w.tenant_id, w.id, NULL) END
          FROM billing._stripe_prices() w
          JOIN billing.plans p ON p.name = w.plan
          LEFT JOIN billing.metrics m ON m.name = w.metric
         WHERE w.stripe_price_id IS NULL AND w.wanted
           AND CASE WHEN m.name IS NULL THEN p.stripe_product_id IS NOT NULL
                    ELSE m.stripe_product_id IS NOT NULL AND m.stripe_meter_id IS NOT NULL END
           AND billing._stripe_free(w.tenant_id, 'price_find', w.subject)
           AND billing._stripe_free(w.tenant_id, 'price_create', w.subject)
        UNION ALL
        SELECT billing._stripe_enqueue(w.tenant_id, 'price_update', w.stripe_price_id, 'POST', '/v1/prices/' || w.stripe_price_id,
                   jsonb_build_object('active', w.wanted), jsonb_build_object('price', w.id))
          FROM billing._stripe_prices() w
         WHERE w.stripe_active <> w.wanted AND w.stripe_price_id IS NOT NULL
           AND billing._stripe_free(w.tenant_id, 'price_update', w.stripe_price_id)
    )
    SELECT count(*) FROM requests
$$;

-- Notes which price at Stripe a price is, and whether that is active.
CREATE FUNCTION billing._stripe_price_is(tenant_id text, id bigint, stripe_price_id text, active boolean) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.plan_prices p SET stripe_price_id = $3, stripe_active = $4 WHERE $1 = '' AND p.id = $2;
    UPDATE billing.tenant_prices t SET stripe_price_id = $3, stripe_active = $4 WHERE t.tenant_id = $1 AND t.id = $2
$$;

-- Takes a price that was created or changed, or that has the lookup key: one with other terms is replaced, not adopted.
CREATE FUNCTION billing._apply_price(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    price_id bigint := r.detail ->> 'price';
    found jsonb := response #> '{data,0}';
    ours jsonb;     -- what would create it now
BEGIN
    SELECT billing._stripe_price_params(p.plan, p.metric, p.terms) - 'nickname' INTO ours
      FROM billing._stripe_prices() p WHERE p.tenant_id = r.tenant_id AND p.id = price_id;
    IF r.kind = 'price_update' THEN
        PERFORM billing._stripe_price_is(r.tenant_id, price_id, r.subject, (r.params ->> 'active')::boolean);
    ELSIF ours IS NULL OR ours #>> '{recurring,usage_type}' = 'metered' AND (ours #> '{recurring,meter}' IS NULL
              OR r.kind = 'price_create' AND ours #> '{recurring,meter}' <> r.params #> '{recurring,meter}') THEN
        RETURN;     -- metrics.export has changed, so another one is asked for
    ELSIF r.kind = 'price_create' THEN
        PERFORM billing._stripe_price_is(r.tenant_id, price_id, response ->> 'id', true);
    ELSIF billing._stripe_price_terms(found) = ours
          AND NOT EXISTS (SELECT FROM billing.plan_prices p WHERE p.stripe_price_id = found ->> 'id') THEN
        PERFORM billing._stripe_price_is('', price_id, found ->> 'id', true);
    ELSE
        PERFORM billing._stripe_create_price('', price_id, found ->> 'id');
    END IF;
END $$;
