-- The catalogue at Stripe but for its prices: products, meters and features, found again or created, never twice.
--
-- Products carry our own ids, meters are found by event name, features by lookup key. What they are called here they are
-- called there (stripe_name and the like: what Stripe has confirmed). A feature is a metric, and is attached to the
-- products of the plans that have it, so that Stripe's entitlements tell what a customer may use.

CREATE FUNCTION billing._install_stripe_catalog() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.plan_features (
        plan                      text NOT NULL REFERENCES billing.plans,
        metric                    text NOT NULL REFERENCES billing.metrics,
        stripe_product_feature_id text NOT NULL,
        PRIMARY KEY (plan, metric)
    );
    COMMENT ON TABLE billing.plan_features IS 'the features that Stripe has attached to the product of a plan: its metrics';
END $$;

-- What is sold: the products, meters and features that there should be, by the name that requests have for them.
CREATE FUNCTION billing._stripe_objects()
RETURNS TABLE (kind text, subject text, plan text, metric text, name text, stripe_id text, stripe_name text)
LANGUAGE sql STABLE AS $$
    SELECT 'product', 'pgb_plan_' || p.name, p.name, NULL, p.display_name, p.stripe_product_id, p.stripe_name
      FROM billing.plans p
    UNION ALL
    SELECT 'product', 'pgb_metric_' || m.name, NULL, m.name, m.display_name, m.stripe_product_id, m.stripe_name
      FROM billing.metrics m WHERE billing._has_meter(m.export)
    UNION ALL
    SELECT 'meter', m.name, NULL, m.name, m.display_name, m.stripe_meter_id, m.stripe_meter_name
      FROM billing.metrics m WHERE billing._has_meter(m.export)
    UNION ALL
    SELECT 'feature', m.name, NULL, m.name, m.display_name, m.stripe_feature_id, m.stripe_feature_name FROM billing.metrics m
$$;

CREATE FUNCTION billing._stripe_plan_catalog() RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH requests AS (
        SELECT CASE o.kind
               -- Products carry our own id: creating one again is refused as existing, which is as good.
               WHEN 'product' THEN billing._stripe_enqueue('', 'product_create', o.subject, 'POST', '/v1/products',
                   jsonb_build_object('id', o.subject, 'name', o.name,
                                      'metadata', jsonb_build_object('pg_billing', coalesce(o.plan, o.metric))))
               -- Meters have no id of ours and no lookup key: look among the active ones first.
               WHEN 'meter' THEN billing._stripe_enqueue('', 'meter_find', o.subject, 'GET', '/v1/billing/meters',
                   '{"status": "active", "limit": 100}',
                   (SELECT jsonb_build_object('event_name', m.stripe_event_name) FROM billing.metrics m WHERE m.name = o.metric))
               WHEN 'feature' THEN billing._stripe_enqueue('', 'feature_find', o.subject, 'GET', '/v1/entitlements/features',
                   jsonb_build_object('lookup_key', 'pgb_' || o.metric))
               END
          FROM billing._stripe_objects() o
         WHERE o.stripe_id IS NULL AND billing._stripe_free('', o.kind || '_find', o.subject)
           AND billing._stripe_free('', o.kind || '_create', o.subject)
        UNION ALL
        SELECT billing._stripe_enqueue('', o.kind || '_update', o.subject, 'POST',
                   CASE o.kind WHEN 'product' THEN '/v1/products/' WHEN 'meter' THEN '/v1/billing/meters/'
                               ELSE '/v1/entitlements/features/' END || o.stripe_id,
                   CASE o.kind WHEN 'product' THEN jsonb_build_object('name', o.name, 'active', true,
                                      'metadata', jsonb_build_object('pg_billing', coalesce(o.plan, o.metric)))
                               WHEN 'meter' THEN jsonb_build_object('display_name', o.name)
                               ELSE jsonb_build_object('name', o.name, 'active', true) END)
          FROM billing._stripe_objects() o
         WHERE o.stripe_id IS NOT NULL AND o.name IS DISTINCT FROM o.stripe_name
           AND billing._stripe_free('', o.kind || '_find', o.subject)
           AND billing._stripe_free('', o.kind || '_update', o.subject)
        UNION ALL
        -- What is attached to a product is read once, as others may have been at work there, or we ourselves.
        SELECT billing._stripe_enqueue('', 'features_find', p.name, 'GET', format('/v1/products/%s/features', p.stripe_product_id),
                   '{"limit": 100}')
          FROM billing.plans p
         WHERE p.stripe_product_id IS NOT NULL AND NOT p.stripe_features_known
           AND NOT EXISTS (SELECT FROM billing.metrics m WHERE m.stripe_feature_id IS NULL)
           AND billing._stripe_free('', 'features_find', p.name)
        UNION ALL
        SELECT billing._stripe_enqueue('', 'feature_attach', w.subject, 'POST', format('/v1/products/%s/features', p.stripe_product_id),
                   jsonb_build_object('entitlement_feature', m.stripe_feature_id),
                   jsonb_build_object('plan', p.name, 'metric', m.name))
          FROM billing.plan_metrics pm
          JOIN billing.plans p ON p.name = pm.plan AND p.stripe_features_known
          JOIN billing.metrics m ON m.name = pm.metric AND m.stripe_feature_id IS NOT NULL
          CROSS JOIN LATERAL (SELECT p.name || ' ' || m.name AS subject) w
         WHERE NOT EXISTS (SELECT FROM billing.plan_features f WHERE (f.plan, f.metric) = (pm.plan, pm.metric))
           AND billing._stripe_free('', 'feature_attach', w.subject)
        UNION ALL
        SELECT billing._stripe_enqueue('', 'feature_detach', w.subject, 'DELETE',
                   format('/v1/products/%s/features/%s', p.stripe_product_id, f.stripe_product_feature_id), '{}',
                   jsonb_build_object('plan', f.plan, 'metric', f.metric))
          FROM billing.plan_features f
          JOIN billing.plans p ON p.name = f.plan
          CROSS JOIN LATERAL (SELECT f.plan || ' ' || f.metric AS subject) w
         WHERE NOT EXISTS (SELECT FROM billing.plan_metrics pm WHERE (pm.plan, pm.metric) = (f.plan, f.metric))
           AND billing._stripe_free('', 'feature_detach', w.subject)
    )
    SELECT count(*) FROM requests
$$;

-- Stores which object at Stripe is ours (null: the same as before), and what it is called (null: not known, so it will be told).
CREATE FUNCTION billing._stripe_found(kind text, subject text, stripe_id text, name text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.plans p SET stripe_product_id = coalesce($3, stripe_product_id), stripe_name = $4 WHERE $1 = 'product' AND 'pgb_plan_' || p.name = $2;
    UPDATE billing.metrics m SET stripe_product_id = coalesce($3, stripe_product_id), stripe_name = $4 WHERE $1 = 'product' AND 'pgb_metric_' || m.name = $2;
    UPDATE billing.metrics m SET stripe_meter_id = coalesce($3, stripe_meter_id), stripe_meter_name = $4 WHERE $1 = 'meter' AND m.name = $2;
    UPDATE billing.metrics m SET stripe_feature_id = coalesce($3, stripe_feature_id), stripe_feature_name = $4 WHERE $1 = 'feature' AND m.name = $2
$$;

-- Takes the answer to a catalogue request: stores the id, or turns "not found" into "create". The request is a row of
-- stripe_outbox, passed as JSON because a table's type cannot be an argument before the table exists.
CREATE FUNCTION billing._apply_catalog(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
BEGIN
    CASE
    -- What was asked before metrics.export changed is asked anew.
    WHEN EXISTS (SELECT FROM billing.metrics m
                  WHERE r.kind IN ('meter_find', 'meter_create') AND m.name = r.subject
                    AND m.stripe_event_name <> coalesce(r.params ->> 'event_name', r.detail ->> 'event_name')) THEN
        RETURN;
    WHEN r.kind = 'product_create' THEN
        PERFORM billing._stripe_found('product', r.subject, r.subject, response ->> 'name');
        IF response ? 'error' THEN      -- it is there already, by whatever name
            PERFORM billing._stripe_enqueue('', 'product_find', r.subject, 'GET', '/v1/products/' || r.subject, '{}');
        END IF;
    WHEN r.kind = 'product_find' THEN
        PERFORM billing._stripe_found('product', r.subject, NULL, CASE WHEN (response ->> 'active')::boolean THEN response ->> 'name' END);
    WHEN r.kind = 'meter_find' THEN
        PERFORM billing._apply_meters(request, response);
    WHEN r.kind = 'feature_find' AND response #> '{data,0}' IS NULL THEN
        PERFORM billing._stripe_enqueue('', 'feature_create', m.name, 'POST', '/v1/entitlements/features',
                    jsonb_build_object('lookup_key', 'pgb_' || m.name, 'name', m.display_name))
           FROM billing.metrics m WHERE m.name = r.subject;
    WHEN r.kind = 'feature_find' THEN
        PERFORM billing._stripe_found('feature', r.subject, response #>> '{data,0,id}',
                    CASE WHEN (response #>> '{data,0,active}')::boolean THEN response #>> '{data,0,name}' END);
    WHEN r.kind IN ('meter_create', 'feature_create', 'product_update', 'meter_update', 'feature_update') THEN
        PERFORM billing._stripe_found(split_part(r.kind, '_', 1), r.subject,
                    CASE WHEN r.kind LIKE '%\_create' THEN response ->> 'id' END,
                    coalesce(r.params ->> 'display_name', r.params ->> 'name'));
    WHEN r.kind = 'features_find' THEN
        PERFORM billing._apply_features(request, response);
    WHEN r.kind = 'feature_attach' AND response ? 'error' THEN      -- it is there already, by an id that is not told
        UPDATE billing.plans p SET stripe_features_known = false WHERE p.name = r.detail ->> 'plan';
    WHEN r.kind = 'feature_attach' THEN
        INSERT INTO billing.plan_features VALUES (r.detail ->> 'plan', r.detail ->> 'metric', response ->> 'id')
        ON CONFLICT (plan, metric) DO UPDATE SET stripe_product_feature_id = excluded.stripe_product_feature_id;
    WHEN r.kind = 'feature_detach' THEN
        DELETE FROM billing.plan_features f WHERE (f.plan, f.metric) = (r.detail ->> 'plan', r.detail ->> 'metric');
    WHEN r.kind LIKE 'price\_%' THEN
        PERFORM billing._apply_price(request, response);
    END CASE;
END $$;

CREATE FUNCTION billing._apply_meters(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    m billing.metrics;
    ours jsonb;
BEGIN
    SELECT * INTO STRICT m FROM billing.metrics x WHERE x.name = r.subject;
    -- A meter of that name with other rules would count differently: creating ours then fails, and says why.
    SELECT d INTO ours FROM jsonb_array_elements(response -> 'data') d
     WHERE d ->> 'event_name' = r.detail ->> 'event_name'
       AND d #>> '{default_aggregation,formula}' = CASE WHEN billing._adds_up(m.kind, m.aggregation) THEN 'sum' ELSE 'last' END
       AND d ->> 'event_time_window' IS NOT DISTINCT FROM CASE m.export WHEN 'hourly_total' THEN 'hour' END;
    IF ours IS NOT NULL THEN
        PERFORM billing._stripe_found('meter', r.subject, ours ->> 'id', ours ->> 'display_name');
    ELSIF (response ->> 'has_more')::boolean THEN
        PERFORM billing._stripe_enqueue('', 'meter_find', r.subject, 'GET', r.path,
                    r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'), r.detail);
    ELSE
        PERFORM billing._stripe_enqueue('', 'meter_create', m.name, 'POST', '/v1/billing/meters',
                    jsonb_strip_nulls(jsonb_build_object('display_name', m.display_name, 'event_name', r.detail ->> 'event_name',
                        'default_aggregation', jsonb_build_object('formula',
                            CASE WHEN billing._adds_up(m.kind, m.aggregation) THEN 'sum' ELSE 'last' END),
                        'event_time_window', CASE m.export WHEN 'hourly_total' THEN 'hour' END)));
    END IF;
END $$;

-- Takes a page of what is attached to a plan's product; features that are none of ours are left alone.
CREATE FUNCTION billing._apply_features(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
BEGIN
    INSERT INTO billing.plan_features
    SELECT r.subject, m.name, d ->> 'id'
      FROM jsonb_array_elements(response -> 'data') d
      JOIN billing.metrics m ON m.stripe_feature_id = d #>> '{entitlement_feature,id}'
    ON CONFLICT (plan, metric) DO UPDATE SET stripe_product_feature_id = excluded.stripe_product_feature_id;
    IF (response ->> 'has_more')::boolean THEN
        PERFORM billing._stripe_enqueue('', r.kind, r.subject, 'GET', r.path,
                    r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'));
    ELSE
        UPDATE billing.plans p SET stripe_features_known = true WHERE p.name = r.subject;
    END IF;
END $$;
