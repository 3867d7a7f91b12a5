-- Changes of price within a billing period, as the upcoming invoice needs them. What a metered price has counted when it goes, Stripe
-- bills at that price, and of a flat fee it credits the rest of the period and charges that of the next one
-- (docs.stripe.com/billing/subscriptions/prorations, manage billing setup): on the next invoice (create_prorations), at once
-- (always_invoice), or not at all (none). They are noted when Stripe has made them; its own second of it is not told, so
-- a rest may differ from Stripe's by what a second or two make of it.

CREATE FUNCTION billing._install_price_changes() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.price_changes (
        tenant_id          text COLLATE "C" NOT NULL,
        id                 bigint GENERATED ALWAYS AS IDENTITY,
        subscription_id    bigint NOT NULL,
        period_start       timestamptz NOT NULL,       -- of the billing period
        metric             text REFERENCES billing.metrics,     -- null: the flat fee
        changed_at         timestamptz NOT NULL,
        terms              jsonb NOT NULL,              -- of the price that went
        next_terms         jsonb,                       -- of the one that came; null: none did
        quantity           numeric,                     -- what the price that went had counted; null: a flat fee
        proration_behavior text NOT NULL,
        PRIMARY KEY (tenant_id, id),
        FOREIGN KEY (tenant_id, subscription_id) REFERENCES billing.subscriptions
    );
    COMMENT ON TABLE billing.price_changes IS 'changes of price that Stripe has made amid a billing period, and what the price that went had counted';
END $$;

-- The prices of a subscription at Stripe that are not the ones that it shall have, or has by now: `prices` holds its metrics
-- (null: the flat fee) with price and terms.
CREATE FUNCTION billing._prices_replaced(s jsonb, prices jsonb)
RETURNS TABLE (period tstzrange, metric text, terms jsonb, next_terms jsonb)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT q.billing_period, i.metric, k.terms, p.terms
      FROM billing._quota_in_force($1 ->> 'tenant_id', NULL, billing.now()) q
     CROSS JOIN (SELECT x.metric, x.stripe_price_id FROM billing.subscription_items x
                  WHERE x.tenant_id = $1 ->> 'tenant_id' AND x.subscription_id = ($1 ->> 'id')::bigint
                 UNION ALL SELECT NULL, $1 ->> 'stripe_price_id') i
      JOIN billing._known_prices($1 ->> 'tenant_id') k ON k.stripe_price_id = i.stripe_price_id
      LEFT JOIN jsonb_to_recordset($2) p (metric text, price text, terms jsonb) ON p.metric IS NOT DISTINCT FROM i.metric
     WHERE p.price IS DISTINCT FROM i.stripe_price_id AND $1 ->> 'stripe_status' IN ('active', 'past_due')
$$;

-- What a metric's earlier prices had counted of a period.
CREATE FUNCTION billing._priced_before(own text, subscription bigint, period_start timestamptz, metric text) RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(sum(c.quantity), 0) FROM billing.price_changes c
     WHERE c.tenant_id = $1 AND c.subscription_id = $2 AND c.period_start = $3 AND c.metric = $4
$$;

-- Notes what Stripe has changed, before its new items take the place of those of the subscription as it was.
CREATE FUNCTION billing._note_price_changes(s jsonb, items jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.price_changes (tenant_id, subscription_id, period_start, metric, changed_at, terms, next_terms, quantity,
                                       proration_behavior)
    SELECT $1 ->> 'tenant_id', ($1 ->> 'id')::bigint, lower(r.period), r.metric, date_trunc('second', billing.now()), r.terms, r.next_terms,
           CASE WHEN r.metric IS NOT NULL
                THEN coalesce(CASE WHEN billing._adds_up(m.kind, m.aggregation)
                                   THEN (SELECT sum(a.submitted) FROM billing.usage_aggregates a
                                          WHERE a.tenant_id = $1 ->> 'tenant_id' AND a.metric = r.metric AND a.period_start = lower(r.period))
                                   ELSE (SELECT f.submitted FROM billing.usage_figures f
                                          WHERE f.tenant_id = $1 ->> 'tenant_id' AND f.subscription_id = ($1 ->> 'id')::bigint
                                            AND f.metric = r.metric AND f.period_start = lower(r.period)) END, 0)
                     - billing._priced_before($1 ->> 'tenant_id', ($1 ->> 'id')::bigint, lower(r.period), r.metric) END,
           $1 ->> 'proration_behavior'
      FROM billing._prices_replaced($1, (
               SELECT jsonb_agg(jsonb_build_object('metric', k.metric, 'price', k.stripe_price_id, 'terms', k.terms))
                 FROM jsonb_array_elements($2) i
                 JOIN billing._known_prices($1 ->> 'tenant_id') k ON k.stripe_price_id = i #>> '{price,id}')) r
      LEFT JOIN billing.metrics m ON m.name = r.metric
$$;

-- What changes of price add to the upcoming invoice: of those that Stripe has made in this period, and of one that it has yet to
-- make, as if that were now.
CREATE FUNCTION billing._price_changes(s jsonb)
RETURNS TABLE (metric text, changed_at timestamptz, terms jsonb, next_terms jsonb, quantity numeric, proration_behavior text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.metric, c.changed_at, c.terms, c.next_terms, c.quantity, c.proration_behavior
      FROM billing._quota_in_force($1 ->> 'tenant_id', NULL, billing.now()) q
      JOIN billing.price_changes c ON c.tenant_id = $1 ->> 'tenant_id' AND c.subscription_id = ($1 ->> 'id')::bigint
           AND c.period_start = lower(q.billing_period)
    UNION ALL
    SELECT r.metric, date_trunc('second', billing.now()), r.terms, r.next_terms,
           billing._figure_closed($1 ->> 'tenant_id', r.metric, r.period, billing.now())
           - billing._priced_before($1 ->> 'tenant_id', ($1 ->> 'id')::bigint, lower(r.period), r.metric),
           $1 ->> 'proration_behavior'
      FROM billing._prices_replaced($1, (
               SELECT jsonb_agg(jsonb_build_object('metric', p.metric, 'price', p.stripe_price_id, 'terms', p.terms))
                 FROM billing._prices_of($1 ->> 'tenant_id', $1 ->> 'plan', ($1 ->> 'plan_version')::int) p)) r
     WHERE ($1 ->> 'prices_due')::boolean
$$;

-- The period of a flat fee, of a month or more, that a time is in, as Stripe has it.
CREATE FUNCTION billing._fee_period(s jsonb, months int, at timestamptz) RETURNS tstzrange
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT tstzrange(lower(p.period) + o.stripe_offset, upper(p.period) + o.stripe_offset)
      FROM (SELECT coalesce(($1 ->> 'stripe_offset')::interval, '0') AS stripe_offset) o
     CROSS JOIN LATERAL billing._period_at(
               CASE WHEN $2 > ($1 ->> 'interval_months')::int THEN coalesce($1 ->> 'fee_anchor', $1 ->> 'anchor') ELSE $1 ->> 'anchor' END::timestamptz,
               $2, $1 ->> 'timezone', $3 - o.stripe_offset) p (period)
$$;
