-- What is due at Stripe: differences between what the tables want and what Stripe has confirmed, made into requests.
-- Each kind of request is made only when what it needs is known: meters and products, then prices, then customers,
-- then subscriptions, then usage. A difference with a failed request waits for billing.retry_failed().

CREATE FUNCTION billing._stripe_free(tenant_id text, kind text, subject text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (SELECT FROM billing.stripe_outbox o
                        WHERE o.tenant_id = $1 AND o.kind = $2 AND o.subject = $3 AND o.state <> 'delivered'
                          AND o.retried_at IS NULL)
$$;

-- Stripe's price of a metric in a plan, or of the plan itself (metric ''). The lookup key finds it again.
CREATE FUNCTION billing._stripe_price_key(plan text, metric text, interval_months int) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT concat_ws('_', 'pgb', $1, nullif($2, ''), CASE $3 WHEN 1 THEN 'month' WHEN 12 THEN 'year' ELSE $3 || 'months' END)
$$;

CREATE FUNCTION billing._stripe_plan_catalog() RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH requests AS (
        -- Products carry our own id: creating one again is refused as existing, which is as good.
        SELECT billing._stripe_enqueue('', 'product_create', p.id, 'POST', '/v1/products',
                   jsonb_build_object('id', p.id, 'name', p.display_name, 'metadata', jsonb_build_object('pg_billing', p.name)),
                   p.detail)
          FROM (SELECT 'pgb_plan_' || name AS id, display_name, name, jsonb_build_object('plan', name) AS detail
                  FROM billing.plans WHERE stripe_product_id IS NULL
                UNION ALL
                SELECT 'pgb_metric_' || name, display_name, name, jsonb_build_object('metric', name)
                  FROM billing.metrics WHERE stripe_product_id IS NULL) p
         WHERE billing._stripe_free('', 'product_create', p.id)
        UNION ALL
        -- Meters have no id of ours and no lookup key: look among the active ones first.
        SELECT billing._stripe_enqueue('', 'meter_find', m.name, 'GET', '/v1/billing/meters',
                   '{"status": "active", "limit": 100}', jsonb_build_object('event_name', m.stripe_event_name))
          FROM billing.metrics m
         WHERE m.stripe_meter_id IS NULL AND billing._stripe_free('', 'meter_find', m.name)
           AND billing._stripe_free('', 'meter_create', m.name)
        UNION ALL
        SELECT billing._stripe_enqueue('', 'price_find', w.lookup_key, 'GET', '/v1/prices',
                   jsonb_build_object('lookup_keys', jsonb_build_array(w.lookup_key), 'active', true), w.detail)
          FROM (SELECT billing._stripe_price_key(p.name, '', p.interval_months) AS lookup_key,
                       jsonb_build_object('plan', p.name) AS detail
                  FROM billing.plans p WHERE p.stripe_price_id IS NULL AND p.stripe_product_id IS NOT NULL
                UNION ALL
                SELECT billing._stripe_price_key(p.name, m.name, p.interval_months),
                       jsonb_build_object('plan', p.name, 'metric', m.name)
                  FROM billing.plan_metrics pm JOIN billing.plans p ON p.name = pm.plan
                       JOIN billing.metrics m ON m.name = pm.metric
                 WHERE pm.stripe_price_id IS NULL
                   AND m.stripe_product_id IS NOT NULL AND m.stripe_meter_id IS NOT NULL) w
         WHERE billing._stripe_free('', 'price_find', w.lookup_key)
           AND billing._stripe_free('', 'price_create', w.lookup_key)
    )
    SELECT count(*) FROM requests
$$;

-- The parameters that create a price: tiers, one plain amount where a metric has a single tier, or a flat fee. billing._rate()
-- computes what Stripe makes of it.
CREATE FUNCTION billing._stripe_price_params(plan text, metric text) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
               'currency', p.currency,
               'product', coalesce(m.stripe_product_id, p.stripe_product_id),
               'lookup_key', billing._stripe_price_key(p.name, coalesce(m.name, ''), p.interval_months),
               'nickname', concat_ws(' ', p.display_name, m.display_name),
               'recurring', jsonb_strip_nulls(jsonb_build_object(
                   'interval', 'month', 'interval_count', p.interval_months,
                   'usage_type', CASE WHEN m.name IS NULL THEN 'licensed' ELSE 'metered' END,
                   'meter', m.stripe_meter_id)))
           || CASE WHEN m.name IS NULL THEN jsonb_build_object('unit_amount_decimal', trim_scale(p.price)::text)
                   WHEN pm.price_model = 'package' THEN
                       jsonb_build_object('billing_scheme', 'per_unit', 'unit_amount_decimal', t.amount, 'transform_quantity',
                           jsonb_build_object('divide_by', pm.package_size, 'round', pm.package_round))
                   WHEN t.plain THEN jsonb_build_object('billing_scheme', 'per_unit', 'unit_amount_decimal', t.amount)
                   ELSE jsonb_build_object('billing_scheme', 'tiered', 'tiers_mode', pm.price_model, 'tiers', t.tiers) END
      FROM billing.plans p
      LEFT JOIN billing.metrics m ON m.name = $2
      LEFT JOIN billing.plan_metrics pm ON pm.plan = p.name AND pm.metric = m.name
      LEFT JOIN LATERAL (
           SELECT count(*) = 1 AND count(x.flat_amount) = 0 AS plain, min(trim_scale(x.unit_amount)::text) AS amount,
                  jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                                'up_to', coalesce(trim_scale(x.up_to)::text, 'inf'),
                                'unit_amount_decimal', trim_scale(x.unit_amount)::text,
                                'flat_amount_decimal', trim_scale(x.flat_amount)::text))
                            ORDER BY x.ordinal) AS tiers
             FROM billing.price_tiers x WHERE x.plan = $1 AND x.metric = $2) t ON true
     WHERE p.name = $1
$$;

CREATE FUNCTION billing._stripe_plan_tenants() RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH requests AS (
        SELECT billing._stripe_enqueue(c.tenant_id, 'customer_create', '', 'POST', '/v1/customers',
                   jsonb_strip_nulls(jsonb_build_object('name', c.name, 'email', c.email,
                       'metadata', jsonb_build_object('tenant_id', c.tenant_id), 'test_clock', c.stripe_test_clock)))
          FROM billing.billing_customers c
         WHERE c.stripe AND c.stripe_customer_id IS NULL AND billing._stripe_free(c.tenant_id, 'customer_create', '')
           AND billing._stripe_free(c.tenant_id, 'customer_find', '')
        UNION ALL
        -- The period starts with the hour, so the subscription is backdated to it and its cycle anchored there, too: the
        -- first invoice bills one whole interval. Only the anchor's configuration brings the 31st back after a short
        -- month, and Stripe has it for single months (docs.stripe.com/billing/subscriptions/billing-cycle). A trial begins
        -- there when it is made, and its end is the anchor.
        SELECT billing._stripe_enqueue(s.tenant_id, 'subscription_create', s.id::text, 'POST', '/v1/subscriptions',
                   jsonb_strip_nulls(jsonb_build_object(
                       'customer', c.stripe_customer_id,
                       'items', jsonb_build_array(jsonb_build_object('price', p.stripe_price_id)) || i.items,
                       'billing_mode', jsonb_build_object('type', 'flexible'),
                       'backdate_start_date', CASE WHEN NOT i.trial THEN extract(epoch FROM s.current_period_start)::bigint END,
                       'billing_cycle_anchor_config', CASE WHEN s.interval_months = 1 AND NOT i.trial THEN jsonb_build_object(
                           'day_of_month', extract(day FROM s.anchor AT TIME ZONE 'UTC')::int,
                           'hour', extract(hour FROM s.anchor AT TIME ZONE 'UTC')::int, 'minute', 0, 'second', 0) END,
                       'billing_cycle_anchor', CASE WHEN s.interval_months > 1 AND NOT i.trial
                           THEN extract(epoch FROM s.current_period_end)::bigint END,
                       'trial_end', CASE WHEN i.trial THEN extract(epoch FROM s.trial_end)::bigint END,
                       'trial_settings', CASE WHEN i.trial THEN jsonb_build_object('end_behavior',
                           jsonb_build_object('missing_payment_method', s.missing_payment_method)) END,
                       'collection_method', s.collection_method,
                       'days_until_due', s.days_until_due,
                       'payment_behavior', CASE s.collection_method WHEN 'charge_automatically' THEN s.payment_behavior END,
                       'metadata', jsonb_build_object('tenant_id', s.tenant_id, 'subscription_id', s.id::text))),
                   -- Stripe refuses a start that is not past yet by its own clock
                   delay => greatest(interval '0', s.current_period_start + interval '5 seconds' - billing.now()))
          FROM billing.subscriptions s
          JOIN billing.billing_customers c ON c.tenant_id = s.tenant_id
          JOIN billing.plans p ON p.name = s.plan
          CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_agg(jsonb_build_object('price', pm.stripe_price_id) ORDER BY pm.metric), '[]') AS items,
                      bool_and(pm.stripe_price_id IS NOT NULL) AS complete,
                      coalesce(s.trial_end > billing.now(), false) AS trial
                 FROM billing.plan_metrics pm WHERE pm.plan = s.plan) i
         WHERE s.status = 'pending' AND s.current_period_end > billing.now() AND c.stripe_customer_id IS NOT NULL AND p.stripe_price_id IS NOT NULL
           AND i.complete IS NOT FALSE AND billing._stripe_free(s.tenant_id, 'subscription_create', s.id::text)
           AND billing._stripe_free(s.tenant_id, 'subscription_find', s.id::text)
    )
    SELECT count(*) FROM requests
$$;

-- Webhooks are taken as a hint that an object changed: it is fetched anew instead of trusting their order. Events that
-- arrive while a fetch is under way wait for the next one; those of a subscription also for a wish that is under way.
CREATE FUNCTION billing._stripe_plan_webhooks() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w record;
    fetch_id bigint;
    requests bigint := 0;
BEGIN
    FOR w IN
        SELECT e.object_type, e.object_id, c.tenant_id
          FROM billing.webhook_events e
          LEFT JOIN billing.billing_customers c ON c.stripe_customer_id = e.customer_id
         WHERE e.processed_at IS NULL AND e.request_id IS NULL
         GROUP BY 1, 2, 3
    LOOP
        IF w.tenant_id IS NULL OR w.object_type NOT IN ('subscription', 'invoice', 'checkout.session') THEN
            UPDATE billing.webhook_events e
               SET processed_at = clock_timestamp(),
                   outcome = CASE WHEN w.object_type IN ('subscription', 'invoice', 'checkout.session') THEN 'unknown customer' ELSE 'ignored' END
             WHERE e.processed_at IS NULL AND e.object_type IS NOT DISTINCT FROM w.object_type
               AND e.object_id IS NOT DISTINCT FROM w.object_id;
        ELSIF NOT EXISTS (SELECT FROM billing.stripe_outbox o
                           WHERE o.tenant_id = w.tenant_id AND o.state IN ('waiting', 'sending')
                             AND (o.kind = w.object_type || '_fetch' AND o.subject = w.object_id
                                  OR w.object_type = 'subscription'
                                     AND o.kind IN ('subscription_update', 'subscription_cancel'))) THEN
            fetch_id := billing._stripe_enqueue(w.tenant_id, w.object_type || '_fetch', w.object_id, 'GET',
                              format('/v1/%ss/%s', replace(w.object_type, '.', '/'), w.object_id),
                              CASE w.object_type WHEN 'checkout.session' THEN '{"expand": ["subscription"]}'::jsonb ELSE '{}' END);
            UPDATE billing.webhook_events e SET request_id = fetch_id
             WHERE e.processed_at IS NULL AND e.request_id IS NULL
               AND e.object_type = w.object_type AND e.object_id = w.object_id;
            requests := requests + 1;
        END IF;
    END LOOP;
    RETURN requests;
END $$;
