-- Usage on its way to Stripe. What adds up over hours is sent by the hour, here; what does not is a figure of the whole
-- billing period (export_figures.sql). Both become requests of the kind meter_event, of which there is never more than one
-- open for a customer and a meter. By metrics.export a meter keeps the event it received last per customer and hour, so that
-- a resend overwrites instead of adding (docs.stripe.com, billing meters, event_time_window), or adds what came since
-- (export_deltas.sql), which may also go through the event stream (export_stream.sql).
--
-- What is due is looked up, not listed: of a tenant and metric the oldest hour, and once Stripe has it the next one, so
-- that planning costs as much as is sent, whatever else is waiting. What runs for each request is PL/pgSQL, whose plans are
-- kept.

-- Whether a metric's billing period is the sum of its hours.
CREATE FUNCTION billing._adds_up(kind text, aggregation text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT $1 = 'counter' AND $2 IN ('sum', 'count', 'unique_count') $$;

-- Whether Stripe still counts usage of a subscription: until the invoice that ends it is finalized, an hour after its end.
CREATE FUNCTION billing._stripe_counts(stripe_status text, ended_at timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT CASE $1 WHEN 'canceled' THEN $2 > billing.now() - interval '1 hour'
                   ELSE $1 NOT IN ('incomplete_expired', 'paused') END
$$;

-- Any one moment of an hour will do for what is said of it, but never a boundary, nor one in the future; of the hour amid
-- which Stripe's period begins, one after that, so that it is in Stripe's period as it is in ours; after a change of price
-- one well after that, as clocks differ.
CREATE FUNCTION billing._stripe_moment(hour timestamptz, period_start timestamptz, stripe_offset interval, since timestamptz)
RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN $4 > $1 THEN least($4 + interval '1 minute', $1 + interval '59 minutes 59 seconds')
                WHEN $1 = date_trunc('hour', $2, 'UTC') THEN $1 + greatest($3, '0') + interval '1 second'
                ELSE $1 + interval '1 second' END
$$;

-- The hours whose total Stripe has not confirmed. What a function returns has lost the collation of the column it is from, and a
-- PL/pgSQL variable has that of the call's arguments: only who compares the tenant COLLATE "C" and the metric COLLATE "default"
-- gets their hours by index.
CREATE FUNCTION billing._stripe_due_hours()
RETURNS TABLE (tenant_id text, metric text, period_start timestamptz, hour timestamptz, quantity numeric,
               value numeric, at timestamptz, stripe_customer_id text, stripe_event_name text, export text, subscription_id bigint)
LANGUAGE sql STABLE AS $$
    SELECT a.tenant_id, a.metric, a.period_start, a.hour, a.quantity,
           a.quantity - CASE WHEN billing._meter_adds(m.export) AND a.submitted IS NOT NULL THEN a.submitted
                             WHEN i.since > a.hour THEN i.counted ELSE 0 END
               + billing._carried(a.tenant_id, a.metric, a.hour, i.since),
           billing._stripe_moment(a.hour, a.period_start, s.stripe_offset, i.since), c.stripe_customer_id, m.stripe_event_name,
           m.export, s.id
      FROM billing.usage_aggregates a
      JOIN billing.metrics m ON m.name = a.metric AND billing._adds_up(m.kind, m.aggregation)
      JOIN billing.billing_customers c ON c.tenant_id = a.tenant_id AND c.stripe_deleted_at IS NULL
      JOIN billing.subscriptions s ON s.tenant_id = a.tenant_id AND greatest(s.anchor, s.starts) <= a.period_start
           AND billing._stripe_counts(s.stripe_status, s.ended_at)
           -- usage of a pause, whose period does not begin on a second, is not billed
           AND a.period_start = date_trunc('second', a.period_start)
           -- one that has ended here: the usage of its own periods, but for hours that the next one has at Stripe, whose
           -- total this one's would overwrite
           AND (s.ended_at IS NULL
                OR a.hour < s.ended_at
                   AND a.period_start = lower(billing._period_from(s.starts, billing._period_at(s.anchor, s.interval_months, s.timezone, a.hour)))
                   AND NOT EXISTS (SELECT FROM billing.subscriptions n
                                    WHERE n.tenant_id = s.tenant_id AND n.id > s.id AND n.stripe_subscription_id IS NOT NULL
                                      AND a.hour >= date_trunc('hour', n.starts, 'UTC')))
      JOIN billing.subscription_items i ON i.tenant_id = s.tenant_id AND i.subscription_id = s.id AND i.metric = a.metric
           -- what is older than a price, Stripe has billed or never will
           AND (i.since IS NULL OR a.hour >= date_trunc('hour', i.since, 'UTC'))
     WHERE a.submitted IS DISTINCT FROM a.quantity AND NOT a.blocked
$$;

-- Whether an event of a subscription has to wait: in an hour that an earlier one's last invoice bills it would take that
-- one's place, until the invoice is final, an hour after that one's end at Stripe.
CREATE FUNCTION billing._stripe_held(tenant text, subscription bigint, at timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM billing.subscriptions o
                    WHERE o.tenant_id = $1 AND o.id < $2 AND o.stripe_ended_at > date_trunc('hour', $3, 'UTC')
                      AND o.stripe_ended_at > billing.now() - interval '1 hour')
$$;

-- Whether usage of a tenant and metric may be sent: nothing of it is under way, nor a change of what it is billed at, and
-- neither meter nor customer is known to be gone at Stripe.
CREATE FUNCTION billing._stripe_usage_free(tenant_id text, metric text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN NOT EXISTS (SELECT FROM billing.stripe_outbox o
                        WHERE o.tenant_id = $1 AND o.state IN ('waiting', 'sending')
                          AND (o.kind IN ('meter_event', 'delta_find') AND o.subject = $2
                               OR o.kind IN ('subscription_update', 'subscription_cancel')))
       AND EXISTS (SELECT FROM billing.metrics m WHERE m.name = $2 AND m.stripe_meter_active)
       AND EXISTS (SELECT FROM billing.billing_customers c WHERE c.tenant_id = $1 AND c.stripe_deleted_at IS NULL);
END $$;

CREATE FUNCTION billing._stripe_enqueue_usage(tenant_id text, metric text, event_name text, customer text, value numeric,
                                              at timestamptz, detail jsonb, streams boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN billing._stripe_enqueue($1, 'meter_event', $2, 'POST',
               CASE WHEN streams THEN billing._stripe_stream_path() ELSE '/v1/billing/meter_events' END,
               jsonb_build_object('event_name', $3, 'timestamp',
                   CASE WHEN streams THEN to_jsonb(billing._iso_time($6)) ELSE to_jsonb(floor(extract(epoch FROM $6))::bigint) END,
                   'payload', jsonb_build_object('stripe_customer_id', $4, 'value', trim_scale($5)::text)), $7);
END $$;

-- The second that a meter event was said to be of.
CREATE FUNCTION billing._stripe_usage_moment(params jsonb) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE jsonb_typeof($1 -> 'timestamp') WHEN 'number' THEN to_timestamp(($1 ->> 'timestamp')::bigint)
                ELSE ($1 ->> 'timestamp')::timestamptz END
$$;

-- Plans the oldest hour that is due of each of these tenants and metrics, of as many as it may; returns how many.
CREATE FUNCTION billing._stripe_plan_hours(tenants text[], metrics text[], most bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan
SET enable_sort = off AS $$     -- the index has the hours in order, and the first of them will do
DECLARE
    planned bigint;
BEGIN
    WITH due AS (
        SELECT h.* FROM unnest(tenants, metrics) p (tenant, what)
         CROSS JOIN LATERAL (
               SELECT h.* FROM billing._stripe_due_hours() h
                WHERE h.tenant_id = p.tenant COLLATE "C" AND h.metric = p.what COLLATE "default" AND h.at <= billing.now() + interval '1 minute'
                  AND NOT billing._stripe_held(h.tenant_id, h.subscription_id, h.at)
                ORDER BY h.hour LIMIT 1) h
         WHERE billing._stripe_usage_free(p.tenant, p.what) LIMIT most
    ), requests AS (
        SELECT billing._stripe_enqueue_usage(d.tenant_id, d.metric, d.stripe_event_name, d.stripe_customer_id, d.value, d.at,
                   jsonb_build_object('period_start', d.period_start, 'hour', d.hour, 'quantity', d.quantity)
                       || CASE WHEN billing._meter_adds(d.export) THEN jsonb_build_object('delta', d.value) ELSE '{}' END,
                   d.export = 'delta_stream')
          FROM due d
    )
    SELECT count(*) INTO planned FROM requests;
    RETURN planned;
END $$;

-- Plans for tenants and metrics with hours that are due, as many as may be waiting at once.
CREATE FUNCTION billing._stripe_plan_usage(stock int) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    planned bigint := billing._stripe_settle_doubts();
BEGIN
    RETURN planned + (
        SELECT billing._stripe_plan_hours(array_agg(p.tenant_id), array_agg(p.metric), greatest(stock - planned, 0))
          FROM (SELECT DISTINCT i.tenant_id, i.metric FROM billing.subscription_items i
                  JOIN billing.metrics m ON m.name = i.metric AND billing._adds_up(m.kind, m.aggregation)
                 WHERE EXISTS (SELECT FROM billing.usage_aggregates a WHERE a.tenant_id = i.tenant_id AND a.metric = i.metric
                                  AND a.submitted IS DISTINCT FROM a.quantity AND NOT a.blocked)) p);
END $$;

-- Takes what became of meter events, and plans what comes after them; what Stripe has is what was sent, not what it has come to
-- meanwhile. One that is refused after it was accepted (meter_errors.sql) leaves nothing that is known to be there.
CREATE FUNCTION billing._stripe_usage_settled(tenants text[], ids bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    UPDATE billing.usage_figures f
       SET submitted = CASE o.state WHEN 'delivered' THEN (o.detail ->> 'figure')::numeric
                                    ELSE nullif(f.submitted, (o.detail ->> 'figure')::numeric) END,
           blocked = o.state <> 'delivered'
      FROM unnest(tenants, ids) s (tenant_id, id)
      JOIN billing.stripe_outbox o ON o.tenant_id = s.tenant_id COLLATE "C" AND o.id = s.id AND o.detail ? 'figure'
     WHERE f.tenant_id = o.tenant_id AND f.metric = o.subject
       AND f.subscription_id = (o.detail ->> 'subscription_id')::bigint
       AND f.period_start = (o.detail ->> 'period_start')::timestamptz;
    UPDATE billing.usage_aggregates a
       SET submitted = CASE o.state WHEN 'delivered' THEN (o.detail ->> 'quantity')::numeric
                                    ELSE nullif(a.submitted, (o.detail ->> 'quantity')::numeric) END,
           blocked = o.state <> 'delivered'
      FROM unnest(tenants, ids) s (tenant_id, id)
      JOIN billing.stripe_outbox o ON o.tenant_id = s.tenant_id COLLATE "C" AND o.id = s.id AND NOT o.detail ? 'figure'
     WHERE a.tenant_id = o.tenant_id AND a.metric = o.subject
       AND a.period_start = (o.detail ->> 'period_start')::timestamptz
       AND a.hour = (o.detail ->> 'hour')::timestamptz;
    PERFORM billing._stripe_plan_hours(array_agg(o.tenant_id), array_agg(o.subject), count(*))
       FROM unnest(tenants, ids) s (tenant_id, id)
       JOIN billing.stripe_outbox o ON o.tenant_id = s.tenant_id COLLATE "C" AND o.id = s.id AND NOT o.detail ? 'figure'
     HAVING count(*) > 0;
    -- all but a little of the usage is of the period that is under way
    PERFORM billing._look_for_late_usage(o.tenant_id, o.subject, (o.detail ->> 'period_start')::timestamptz)
       FROM unnest(tenants, ids) s (tenant_id, id)
       JOIN billing.stripe_outbox o ON o.tenant_id = s.tenant_id COLLATE "C" AND o.id = s.id
      WHERE NOT EXISTS (SELECT FROM billing.subscriptions x
                         WHERE x.tenant_id = o.tenant_id AND x.ended_at IS NULL
                           AND (o.detail ->> 'period_start')::timestamptz >= x.current_period_start
                           AND x.current_period_end > billing.now());
END $$;

-- Lets usage that was refused be planned anew.
CREATE FUNCTION billing._stripe_usage_put_back(request jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
BEGIN
    IF r.detail ? 'figure' THEN
        UPDATE billing.usage_figures f SET blocked = false, due_at = '-infinity'
         WHERE f.tenant_id = r.tenant_id AND f.metric = r.subject
           AND f.subscription_id = (r.detail ->> 'subscription_id')::bigint
           AND f.period_start = (r.detail ->> 'period_start')::timestamptz;
        RETURN;
    ELSIF r.detail ? 'delta' AND coalesce(r.http_status, 500) >= 500 THEN
        PERFORM billing._stripe_find_delta(request, '10 minutes');     -- summaries are late
        RETURN;
    END IF;
    UPDATE billing.usage_aggregates a SET blocked = false
     WHERE a.tenant_id = r.tenant_id AND a.metric = r.subject
       AND a.period_start = (r.detail ->> 'period_start')::timestamptz
       AND a.hour = (r.detail ->> 'hour')::timestamptz;
END $$;
