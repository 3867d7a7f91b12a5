-- The catalogue brought to Stripe on request, and what that took, object by object.

-- What became of each object since a time (of the machine): told from the requests that were made for it.
CREATE FUNCTION billing._sync_report(since timestamptz)
RETURNS TABLE (object text, name text, stripe_id text, action text, detail text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH requests AS (
        SELECT * FROM billing.stripe_outbox o
         WHERE o.tenant_id = '' AND (o.settled_at >= $1 OR o.state = 'failed' AND o.retried_at IS NULL)
    ), objects AS (
        SELECT o.kind AS object, coalesce(o.plan, o.metric) AS name, o.stripe_id, o.kind AS family, ARRAY[o.subject] AS subjects,
               NULL AS fault, false AS past
          FROM billing._stripe_objects() o
        UNION ALL
        SELECT 'plan feature', concat_ws(' ', plan, metric), f.stripe_product_feature_id, 'feature%',
               ARRAY[concat_ws(' ', plan, metric), plan], NULL, false
          FROM (SELECT pm.plan, pm.metric FROM billing.plan_metrics pm) pm FULL JOIN billing.plan_features f USING (plan, metric)
        UNION ALL
        SELECT 'price', concat_ws(' ', p.plan, p.metric), p.stripe_price_id, 'price', ARRAY[p.subject, p.stripe_price_id],
               (SELECT format('the new price is not valid at tier %s: it stays what it was', billing._bad_tier(c.terms))
                  FROM billing._plan_changes(p.plan) c
                 WHERE c.metric IS NOT DISTINCT FROM p.metric AND billing._bad_tier(c.terms) IS NOT NULL),
               p.lookup_key IS NULL
          FROM billing._stripe_prices() p
         WHERE p.lookup_key IS NOT NULL
            OR p.tenant_id = '' AND EXISTS (SELECT FROM requests r WHERE r.kind = 'price_update' AND r.subject = p.stripe_price_id)
    )
    SELECT o.object, o.name, o.stripe_id,
           CASE WHEN o.fault IS NOT NULL OR r.error IS NOT NULL OR o.stripe_id IS NULL AND NOT r.detached THEN 'failed'
                WHEN r.created THEN 'created' WHEN r.updated THEN 'updated' WHEN r.found THEN 'found' ELSE 'unchanged' END,
           coalesce(o.fault, r.error, CASE WHEN r.detached THEN 'detached' WHEN o.stripe_id IS NULL THEN 'what it needs has failed'
                                           WHEN r.replaced IS NOT NULL THEN format('in place of %s, which bills otherwise', r.replaced)
                                           ELSE r.change END)
      FROM objects o
      CROSS JOIN LATERAL (
           SELECT min(q.error) FILTER (WHERE q.state = 'failed') AS error,
                  coalesce(bool_or(q.kind ~ '_(create|attach)$' AND q.http_status < 300), false) AS created,
                  bool_or(q.kind ~ '_(update|detach)$') AS updated, count(*) > 0 AS found,
                  coalesce(bool_or(q.kind = 'feature_detach'), false) AS detached,
                  max(q.detail ->> 'replaces') AS replaced,
                  max(CASE q.kind WHEN 'price_update' THEN CASE q.params ->> 'active' WHEN 'true' THEN 'activated' ELSE 'deactivated' END
                                  ELSE 'called ' || coalesce(q.params ->> 'display_name', q.params ->> 'name') END)
                      FILTER (WHERE q.kind LIKE '%\_update') AS change
             FROM requests q
            WHERE q.kind LIKE o.family || '\_%' AND q.subject = ANY (o.subjects)) r
     ORDER BY array_position('{product,meter,feature,plan feature,price}', o.object), o.name, o.past, o.stripe_id
$$;

CREATE FUNCTION billing.sync_plans(timeout interval DEFAULT '1 minute')
RETURNS TABLE (object text, name text, stripe_id text, action text, detail text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    began timestamptz := clock_timestamp();
BEGIN
    PERFORM billing.run_stripe_sync(timeout);
    RETURN QUERY SELECT * FROM billing._sync_report(began);
END $$;
COMMENT ON FUNCTION billing.sync_plans(interval) IS
    'has the worker bring metrics and plans to Stripe as products, meters, features and prices, as they are committed, and waits for it; returns what became of each: created, updated, found there, unchanged or failed. What Stripe refused stays failed until retry_failed(). Raises UB060, UB061';
