-- What is due at Stripe: differences between what the tables want and what Stripe has confirmed, made into requests.
-- Each kind of request is made only when what it needs is known: meters and products, then prices, then customers,
-- then subscriptions, then usage. A difference with a failed request waits for billing.retry_failed().

CREATE FUNCTION billing._stripe_free(tenant_id text, kind text, subject text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (SELECT FROM billing.stripe_outbox o
                        WHERE o.tenant_id = $1 AND o.kind = $2 AND o.subject = $3 AND o.state <> 'delivered'
                          AND o.retried_at IS NULL)
$$;

CREATE FUNCTION billing._stripe_plan_tenants() RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH requests AS (
        SELECT billing._stripe_enqueue(c.tenant_id, 'customer_create', '', 'POST', '/v1/customers',
                   jsonb_strip_nulls(jsonb_build_object('name', c.name, 'email', c.email,
                       'metadata', jsonb_build_object('tenant_id', c.tenant_id), 'test_clock', c.stripe_test_clock)))
          FROM billing.billing_customers c
         WHERE c.stripe AND billing._stripe_free(c.tenant_id, 'customer_create', '')
           AND (c.stripe_customer_id IS NULL       -- or it was deleted there, and the tenant is to be billed anew
                OR c.stripe_deleted_at IS NOT NULL
                   AND EXISTS (SELECT FROM billing.subscriptions s WHERE s.tenant_id = c.tenant_id AND s.status = 'pending'))
           AND billing._stripe_free(c.tenant_id, 'customer_find', '')
        UNION ALL
        -- The period starts with the hour, so the subscription is backdated to it and its cycle anchored there, too: the
        -- first invoice bills one whole interval. Only the anchor's configuration brings the 31st back after a short
        -- month, and Stripe has it for single months (docs.stripe.com/billing/subscriptions/billing-cycle). A trial begins
        -- there when it is made, and its end is the anchor. After an earlier subscription of the tenant, which has to have
        -- ended there first, it begins where that one ended, but in its own hour: what came before is billed already.
        SELECT billing._stripe_enqueue(s.tenant_id, 'subscription_create', s.id::text, 'POST', '/v1/subscriptions',
                   jsonb_strip_nulls(jsonb_build_object(
                       'customer', c.stripe_customer_id,
                       'items', i.items,
                       'billing_mode', jsonb_build_object('type', 'flexible'),
                       'backdate_start_date', CASE WHEN NOT i.trial THEN extract(epoch FROM b.starts)::bigint END,
                       'billing_cycle_anchor_config', CASE WHEN s.interval_months = 1 AND NOT i.trial THEN jsonb_build_object(
                           'month', CASE WHEN i.longest = 12 THEN extract(month FROM s.anchor AT TIME ZONE 'UTC')::int END,
                           'day_of_month', extract(day FROM s.anchor AT TIME ZONE 'UTC')::int,
                           'hour', extract(hour FROM s.anchor AT TIME ZONE 'UTC')::int, 'minute', extract(minute FROM b.starts)::int,
                           'second', extract(second FROM b.starts)::int) END,
                       'billing_cycle_anchor', CASE WHEN s.interval_months > 1 AND NOT i.trial
                           THEN extract(epoch FROM s.current_period_end + (b.starts - b.hour))::bigint END,
                       'trial_end', CASE WHEN i.trial THEN extract(epoch FROM s.trial_end)::bigint END,
                       'trial_settings', CASE WHEN i.trial THEN jsonb_build_object('end_behavior',
                           jsonb_build_object('missing_payment_method', s.missing_payment_method)) END,
                       'collection_method', s.collection_method,
                       'days_until_due', s.days_until_due,
                       'payment_behavior', CASE s.collection_method WHEN 'charge_automatically' THEN s.payment_behavior END,
                       'metadata', jsonb_build_object('tenant_id', s.tenant_id, 'subscription_id', s.id::text))),
                   -- Stripe refuses a start that is not past yet by its own clock
                   delay => greatest(interval '0', b.starts + interval '5 seconds' - billing.now()))
          FROM billing.subscriptions s
          JOIN billing.billing_customers c ON c.tenant_id = s.tenant_id
          CROSS JOIN LATERAL (
               SELECT jsonb_agg(jsonb_build_object('price', w.stripe_price_id) ORDER BY w.metric NULLS FIRST) AS items,
                      bool_and(w.stripe_price_id IS NOT NULL AND w.stripe_active) AS complete,
                      max((w.terms ->> 'months')::int) AS longest, coalesce(s.trial_end > billing.now(), false) AS trial
                 FROM billing._stripe_prices_of(s.tenant_id, s.plan, s.plan_version) w) i
         CROSS JOIN LATERAL (
               SELECT h.hour, greatest(h.hour, least(to_timestamp(ceil(extract(epoch FROM coalesce(max(o.stripe_ended_at), h.hour)))),
                                                     h.hour + interval '59 minutes 58 seconds')) AS starts,
                      coalesce(bool_or(o.stripe_status NOT IN ('canceled', 'incomplete_expired')), false) AS taken
                 FROM date_trunc('hour', s.current_period_start, 'UTC') h (hour)
                 LEFT JOIN billing.subscriptions o ON o.tenant_id = s.tenant_id AND o.id <> s.id
                GROUP BY h.hour) b
         WHERE s.status = 'pending' AND NOT b.taken
           AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                            WHERE o.tenant_id = s.tenant_id AND o.kind IN ('subscription_create', 'subscription_find')
                              AND o.subject <> s.id::text AND o.state IN ('waiting', 'sending'))
           AND s.current_period_end > billing.now() AND c.stripe_customer_id IS NOT NULL
           AND c.stripe_deleted_at IS NULL AND i.complete
           AND billing._stripe_free(s.tenant_id, 'subscription_create', s.id::text)
           AND billing._stripe_free(s.tenant_id, 'subscription_find', s.id::text)
    )
    SELECT count(*) FROM requests
$$;
