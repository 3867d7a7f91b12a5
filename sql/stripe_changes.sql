-- What subscriptions want that Stripe has not confirmed: another plan, an end with the period or none, another end of the
-- trial, a pause or its end, the end. Wishes are states, not orders: of several made before Stripe heard of any, the last
-- is carried out, once.
--
-- Stripe bills what a price has counted when the price goes (docs.stripe.com, manage billing setup): by the meter events
-- of before, at the old price, and what comes later, of whatever hour, at the new one or never. So a change of prices,
-- a pause and an end wait until the usage of before has been rolled up and submitted, and no usage is submitted while they
-- are under way. The hour of the change is split: what Stripe had counted of it is kept in subscription_items.counted.

-- The items that turn the prices Stripe bills into the wanted ones; [] if they are those, null while Stripe lacks one.
CREATE FUNCTION billing._stripe_items(s jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN bool_and(w.item ? 'deleted' OR w.ready) IS NOT FALSE
                THEN coalesce(jsonb_agg(jsonb_strip_nulls(w.item) ORDER BY w.metric NULLS FIRST), '[]') END
      FROM (SELECT coalesce(i.metric, p.metric) AS metric, p.stripe_price_id IS NOT NULL AND p.stripe_active AS ready,
                   CASE WHEN p.terms IS NULL THEN jsonb_build_object('id', i.stripe_item_id, 'deleted', true)
                        ELSE jsonb_build_object('id', i.stripe_item_id, 'price', p.stripe_price_id) END AS item
              FROM (SELECT x.metric, x.stripe_item_id, x.stripe_price_id FROM billing.subscription_items x
                     WHERE x.tenant_id = $1 ->> 'tenant_id' AND x.subscription_id = ($1 ->> 'id')::bigint
                    UNION ALL
                    SELECT NULL, $1 ->> 'stripe_item_id', $1 ->> 'stripe_price_id') i
              FULL JOIN billing._stripe_prices_of($1 ->> 'tenant_id', $1 ->> 'plan', ($1 ->> 'plan_version')::int) p
                     ON coalesce(p.metric, '') = coalesce(i.metric, '')
             WHERE p.stripe_price_id IS DISTINCT FROM i.stripe_price_id OR p.terms IS NULL) w
$$;

CREATE FUNCTION billing._stripe_changes()
RETURNS TABLE (tenant_id text, subscription_id bigint, changed_at timestamptz, kind text, method text, path text, params jsonb)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.tenant_id, s.id,
           CASE WHEN s.ended_at IS NOT NULL OR i.items IS NOT NULL THEN s.changed_at WHEN d.pauses THEN s.paused_at END,
           CASE WHEN s.ended_at IS NULL THEN 'subscription_update' ELSE 'subscription_cancel' END,
           CASE WHEN s.ended_at IS NULL THEN 'POST' ELSE 'DELETE' END,
           concat('/v1/subscriptions/' || s.stripe_subscription_id,
                  CASE WHEN d.pauses THEN '/pause' WHEN d.resumes THEN '/resume' END), w.params
      FROM billing.subscriptions s
      CROSS JOIN LATERAL (
           SELECT s.ended_at IS NULL AND s.paused_at IS NOT NULL AND s.stripe_status <> 'paused' AS pauses,
                  s.ended_at IS NULL AND s.paused_at IS NULL AND s.stripe_status = 'paused' AS resumes,
                  s.ended_at IS NULL AND s.paused_at IS NULL AND s.stripe_status <> 'paused' AS runs) d
      CROSS JOIN LATERAL (
           SELECT CASE WHEN d.runs AND s.prices_due THEN nullif(billing._stripe_items(to_jsonb(s)), '[]') END AS items) i
      CROSS JOIN LATERAL (
           SELECT CASE WHEN s.ended_at IS NOT NULL
                           THEN jsonb_strip_nulls(jsonb_build_object('invoice_now', s.end_invoices,
                                                                     'prorate', nullif(s.end_prorates, false)))
                  WHEN d.pauses THEN jsonb_build_object('type', 'subscription', 'invoicing_behavior', 'invoice', 'bill_for',
                      jsonb_build_object('outstanding_usage_through', '{"type": "now"}'::jsonb, 'unused_time_from',
                          jsonb_build_object('type', CASE WHEN s.credit_unused THEN 'now' ELSE 'none' END)))
                  WHEN d.resumes THEN '{"billing_cycle_anchor": {"type": "now"}}'
                  WHEN d.runs
                      THEN CASE WHEN i.items IS NULL THEN '{}'
                                ELSE jsonb_build_object('items', i.items, 'proration_behavior', s.proration_behavior) END
                           || CASE WHEN s.cancel_at_period_end = s.stripe_cancels THEN '{}'
                                   ELSE jsonb_build_object('cancel_at_period_end', s.cancel_at_period_end) END
                           || CASE WHEN s.stripe_status <> 'trialing' OR s.trial_end IS NOT DISTINCT FROM s.stripe_trial_end THEN '{}'
                                   WHEN s.trial_end > billing.now() THEN jsonb_build_object('trial_end', extract(epoch FROM s.trial_end)::bigint)
                                   ELSE '{"trial_end": "now"}' END
                  ELSE '{}' END AS params) w
     WHERE s.stripe_subscription_id IS NOT NULL AND s.stripe_status NOT IN ('canceled', 'incomplete_expired')
       AND w.params <> '{}'
       -- what Stripe has refused is not asked again; another wish is
       AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                        WHERE o.tenant_id = s.tenant_id AND o.subject = s.id::text AND o.state = 'failed'
                          AND o.retried_at IS NULL AND o.kind IN ('subscription_update', 'subscription_cancel') AND o.params = w.params)
$$;

-- The planner takes each function for a thousand rows, so it would compile what then reads a few.
CREATE FUNCTION billing._stripe_plan_changes() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    requests bigint;
    -- An hour that is over when the price goes gets no rest at the new one: all of it is rolled up, and so submitted, before.
    hour timestamptz := date_trunc('hour', billing.now(), 'UTC');
BEGIN
    -- wishes that were taken back before Stripe heard of them
    UPDATE billing.subscriptions s SET prices_due = false
     WHERE s.prices_due AND s.stripe_subscription_id IS NOT NULL AND s.ended_at IS NULL
       AND s.stripe_status NOT IN ('canceled', 'incomplete_expired') AND billing._stripe_items(to_jsonb(s)) = '[]'
       AND NOT EXISTS (SELECT FROM billing.stripe_outbox o WHERE o.tenant_id = s.tenant_id AND o.state IN ('waiting', 'sending')
                          AND o.kind = 'subscription_update' AND o.subject = s.id::text);
    IF EXISTS (SELECT FROM billing._stripe_changes() c, billing.rollup_state r
                WHERE c.changed_at IS NOT NULL AND greatest(c.changed_at, hour) >= r.tail) THEN
        PERFORM billing.run_rollup();
    END IF;
    WITH requests AS (
        SELECT billing._stripe_enqueue(c.tenant_id, c.kind, c.subscription_id::text, c.method, c.path, c.params)
          FROM billing._stripe_changes() c, billing.rollup_state r
         WHERE NOT EXISTS (SELECT FROM billing.stripe_outbox o
                            WHERE o.tenant_id = c.tenant_id AND o.state IN ('waiting', 'sending')
                              AND (o.kind LIKE 'subscription\_%' OR o.kind LIKE 'late\_item\_%'
                                   OR o.kind IN ('meter_event', 'delta_find') AND c.changed_at IS NOT NULL))
           -- what it closes here is to be on the invoice that it makes
           AND NOT EXISTS (SELECT FROM billing.late_usage l
                            WHERE l.tenant_id = c.tenant_id AND l.billed_at IS NULL AND l.policy = 'invoice_item'
                              AND billing._late_item_free(l.tenant_id, l.id))
           AND (c.changed_at IS NULL
                OR greatest(c.changed_at, hour) < r.tail
                   AND NOT EXISTS (SELECT FROM billing._stripe_due_hours() h WHERE h.tenant_id = c.tenant_id COLLATE "C")
                   AND NOT EXISTS (SELECT FROM billing._stripe_closing_figures() f WHERE f.tenant_id = c.tenant_id)
                   -- the last figure of a period that has just ended: after the change it would count no more
                   AND NOT EXISTS (SELECT FROM billing.usage_figures f
                                    WHERE f.tenant_id = c.tenant_id AND f.subscription_id = c.subscription_id
                                      AND f.period_end <= c.changed_at AND f.due_at <= billing.now() AND NOT f.blocked)
                   -- nor would what was said of a moment that is to come, as after another change shortly before (_stripe_moment)
                   AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                                    WHERE o.tenant_id = c.tenant_id AND o.kind = 'meter_event' AND o.state = 'delivered'
                                      AND o.settled_at > clock_timestamp() - interval '2 minutes'
                                      AND billing._stripe_usage_moment(o.params) > billing.now() - interval '1 second'))
    )
    SELECT count(*) INTO requests FROM requests;
    RETURN requests;
END $$;

-- A price that Stripe has taken over: from here on, what it counts is the new price's.
CREATE FUNCTION billing._apply_subscription_items(s jsonb, items jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH given AS (
        SELECT p.metric, item ->> 'id' AS item_id, p.stripe_price_id
          FROM jsonb_array_elements($2) item
          JOIN billing._known_prices($1 ->> 'tenant_id') p ON p.stripe_price_id = item #>> '{price,id}' AND p.metric IS NOT NULL
    ), gone AS (
        DELETE FROM billing.subscription_items i
         WHERE i.tenant_id = $1 ->> 'tenant_id' AND i.subscription_id = ($1 ->> 'id')::bigint
           AND i.metric NOT IN (SELECT g.metric FROM given g)
    )
    INSERT INTO billing.subscription_items AS i
    SELECT $1 ->> 'tenant_id', ($1 ->> 'id')::bigint, g.metric, g.item_id, g.stripe_price_id,
           CASE WHEN $1 ->> 'stripe_plan' IS NOT NULL THEN billing.now() END,
           CASE WHEN $1 ->> 'stripe_plan' IS NOT NULL THEN coalesce(a.quantity, 0) ELSE 0 END
      FROM given g
      JOIN billing.metrics m ON m.name = g.metric
      LEFT JOIN billing.usage_aggregates a
             ON a.tenant_id = $1 ->> 'tenant_id' AND a.metric = g.metric AND billing._adds_up(m.kind, m.aggregation)
            AND a.period_start = ($1 ->> 'current_period_start')::timestamptz
            AND a.hour = date_trunc('hour', billing.now(), 'UTC')
    ON CONFLICT ON CONSTRAINT subscription_items_pkey
    DO UPDATE SET stripe_item_id = excluded.stripe_item_id, stripe_price_id = excluded.stripe_price_id,
        since = CASE WHEN i.stripe_price_id = excluded.stripe_price_id THEN i.since ELSE excluded.since END,
        counted = CASE WHEN i.stripe_price_id = excluded.stripe_price_id THEN i.counted
                       ELSE coalesce((SELECT f.submitted FROM billing.usage_figures f
                                       WHERE f.tenant_id = i.tenant_id AND f.subscription_id = i.subscription_id
                                         AND f.metric = i.metric
                                         AND f.period_start = ($1 ->> 'current_period_start')::timestamptz),
                                     (SELECT a.submitted FROM billing.usage_aggregates a
                                       WHERE a.tenant_id = i.tenant_id AND a.metric = i.metric
                                         AND a.period_start = ($1 ->> 'current_period_start')::timestamptz
                                         AND a.hour = date_trunc('hour', billing.now(), 'UTC')), 0) END
$$;

-- The periods of a subscription (a row, passed as JSON) as Stripe counts them. Stripe's begin where ours do, or less than an
-- hour off where it began one by its own clock: at the end of a pause or of a trial, or because it was made there. Mostly
-- that is later, amid the hour; earlier, where our clock had begun the next hour already. Where it is more, ours follow.
CREATE FUNCTION billing._stripe_periods(row_then jsonb, subscription jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, row_then);
    -- Periods moved from the subscription to its items in 2025-03-31.basil: accept either. Usage has the shortest.
    period jsonb := CASE WHEN subscription ? 'current_period_start' THEN subscription
                         ELSE (SELECT i FROM jsonb_array_elements(subscription #> '{items,data}') i
                                ORDER BY (i ->> 'current_period_end')::bigint, (i ->> 'current_period_start')::bigint DESC LIMIT 1) END;
    fee_begins timestamptz := (SELECT to_timestamp((i ->> 'current_period_start')::bigint)
                                 FROM jsonb_array_elements(subscription #> '{items,data}') i
                                WHERE i ->> 'id' = s.stripe_item_id AND i #>> '{price,recurring,interval}' = 'year');
    begins timestamptz := to_timestamp((period ->> 'current_period_start')::bigint);
    ends timestamptz := to_timestamp((period ->> 'current_period_end')::bigint);
    hour timestamptz := lower(billing._period_at(s.anchor, s.interval_months, s.timezone,
                                                 begins + interval '1 hour' - interval '1 second'));
BEGIN
    IF begins IS NULL OR ends IS NULL OR s.stripe_status IN ('trialing', 'paused') THEN
        RETURN row_then;
    END IF;
    IF hour <= begins - interval '1 hour' THEN
        hour := date_trunc('hour', begins, 'UTC');
        s.anchor := hour;
    END IF;
    s.stripe_offset := begins - hour;
    fee_begins := date_trunc('hour', fee_begins - s.stripe_offset, 'UTC');
    IF fee_begins <> lower(billing._period_at(coalesce(s.fee_anchor, s.anchor), 12, s.timezone, fee_begins)) THEN
        s.fee_anchor := fee_begins;
    END IF;
    ends := date_trunc('hour', ends - s.stripe_offset, 'UTC');
    IF hour < ends THEN
        s.current_period_start := lower(billing._period_from(s.starts, tstzrange(hour, ends)));
        s.current_period_end := ends;
    END IF;
    RETURN to_jsonb(s);
END $$;

-- Stores a subscription as Stripe has it. What was changed there (`fetched`: no answer to a wish of ours) since it was
-- looked at last is taken over; other wishes stay wishes.
CREATE FUNCTION billing._apply_subscription(tenant text, subscription jsonb, fetched boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions;
    s billing.subscriptions;
    until int;      -- of the flat fee it has at Stripe
BEGIN
    SELECT * INTO was FROM billing.subscriptions x
     WHERE x.tenant_id = tenant
       AND (x.stripe_subscription_id = subscription ->> 'id'
            OR x.stripe_subscription_id IS NULL AND x.id::text = subscription #>> '{metadata,subscription_id}')
       FOR UPDATE;
    IF NOT FOUND THEN
        -- one of the same customer that was made elsewhere, or in a Checkout session of ours
        IF subscription #>> '{metadata,tenant_id}' = tenant AND subscription #> '{metadata,session_id}' IS NOT NULL THEN
            PERFORM billing._join_subscription(tenant, subscription);
        END IF;
        RETURN;
    END IF;
    s := was;
    s.stripe_subscription_id := subscription ->> 'id';
    s.stripe_status := subscription ->> 'status';
    s.stripe_cancels := coalesce((subscription ->> 'cancel_at_period_end')::boolean, s.stripe_cancels);
    s.stripe_trial_end := to_timestamp((subscription ->> 'trial_end')::bigint);
    s.stripe_ended_at := to_timestamp((subscription ->> 'ended_at')::bigint);
    SELECT p.plan, item ->> 'id', p.stripe_price_id, p.until INTO s.stripe_plan, s.stripe_item_id, s.stripe_price_id, until
      FROM jsonb_array_elements(subscription #> '{items,data}') item
      JOIN billing._known_prices(tenant) p ON p.stripe_price_id = item #>> '{price,id}' AND p.metric IS NULL;
    IF fetched AND s.stripe_plan <> was.stripe_plan THEN
        s.plan := s.stripe_plan;
        s.plan_version := coalesce(until - 1, (SELECT max(v.version) FROM billing.plan_versions v WHERE v.plan = s.plan));
        s.prices_due := true;
    END IF;
    IF fetched AND s.stripe_cancels <> was.stripe_cancels THEN
        s.cancel_at_period_end := s.stripe_cancels;
    END IF;
    IF s.ended_at IS NULL THEN      -- one that has ended here is kept as it was then
        IF fetched AND s.stripe_status = 'trialing' AND s.stripe_trial_end IS DISTINCT FROM was.stripe_trial_end THEN
            s.trial_end := s.stripe_trial_end;
            s.anchor := date_trunc('hour', s.trial_end, 'UTC');
            s.current_period_start := coalesce(s.trial_start, s.current_period_start);
            s.current_period_end := s.trial_end;
            s.trial_start := s.current_period_start;
            PERFORM billing._keep_trial(to_jsonb(s));
        END IF;
        IF fetched AND s.stripe_status = 'paused' AND was.stripe_status IS DISTINCT FROM 'paused' AND s.paused_at IS NULL THEN
            PERFORM billing._close_stretch(to_jsonb(s), s.anchor);
            s.paused_at := billing._unbilled_from(billing.now());
        ELSIF fetched AND s.stripe_status <> 'paused' AND was.stripe_status = 'paused' AND s.paused_at IS NOT NULL THEN
            PERFORM billing._close_stretch(to_jsonb(s), s.paused_at);
            s.paused_at := NULL;
        END IF;
        -- a wish that Stripe has yet to hear of is in force already
        s.status := CASE WHEN s.stripe_status IN ('canceled', 'incomplete_expired') THEN s.stripe_status
                         WHEN s.paused_at IS NOT NULL THEN 'paused'
                         WHEN s.stripe_status = 'paused' OR s.stripe_status = 'trialing' AND s.trial_end <= billing.now() THEN 'active'
                         ELSE s.stripe_status END;
        s := jsonb_populate_record(s, billing._stripe_periods(to_jsonb(s), subscription));
        s.past_due_since := CASE WHEN s.status = 'past_due' THEN coalesce(s.past_due_since, billing.now()) END;
        IF s.status IN ('canceled', 'incomplete_expired') THEN
            s.ended_at := coalesce(to_timestamp((subscription ->> 'ended_at')::bigint), billing.now());
        END IF;
        s.canceled_at := coalesce(to_timestamp((subscription ->> 'canceled_at')::bigint),
                                  CASE WHEN s.cancel_at_period_end THEN s.canceled_at END);
    END IF;
    UPDATE billing.subscriptions x
       SET (plan, plan_version, status, cancel_at_period_end, anchor, current_period_start, current_period_end, trial_start,
            trial_end, paused_at, past_due_since, canceled_at, ended_at, stripe_subscription_id, stripe_status, stripe_plan,
            stripe_item_id, stripe_price_id, stripe_cancels, stripe_trial_end, stripe_ended_at, stripe_offset, fee_anchor,
            prices_due)
         = (s.plan, s.plan_version, s.status, s.cancel_at_period_end, s.anchor, s.current_period_start, s.current_period_end,
            s.trial_start, s.trial_end, s.paused_at, s.past_due_since, s.canceled_at, s.ended_at, s.stripe_subscription_id,
            s.stripe_status, s.stripe_plan, s.stripe_item_id, s.stripe_price_id, s.stripe_cancels, s.stripe_trial_end,
            s.stripe_ended_at, s.stripe_offset, s.fee_anchor, s.prices_due)
     WHERE x.tenant_id = s.tenant_id AND x.id = s.id;
    PERFORM billing._close_item_periods(to_jsonb(was), to_jsonb(s));
    PERFORM billing._note_price_changes(to_jsonb(was), subscription #> '{items,data}');
    PERFORM billing._apply_subscription_items(to_jsonb(was), subscription #> '{items,data}');
    -- What somebody changed there by hand within a plan stays; what was asked for here is due until it is there.
    UPDATE billing.subscriptions x SET prices_due = false
     WHERE x.tenant_id = s.tenant_id AND x.id = s.id AND s.prices_due AND billing._stripe_items(to_jsonb(s)) = '[]';
    IF (s.plan, s.cancel_at_period_end, s.ended_at, s.paused_at, s.trial_end)
       IS DISTINCT FROM (was.plan, was.cancel_at_period_end, was.ended_at, was.paused_at, was.trial_end) THEN
        PERFORM billing._audit(tenant, 'changed_at_stripe', to_jsonb(was), to_jsonb(s));
    END IF;
    PERFORM billing._refresh_quotas(tenant);
END $$;

-- Makes requests of what is due, of usage about as many as are to wait at once; returns how many, and how often it looked
-- without finding one. Changes before usage: they hold it back.
CREATE FUNCTION billing._stripe_plan(stock int DEFAULT 1000) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    requests bigint;
BEGIN
    PERFORM billing._stripe_give_up();
    requests := billing._stripe_plan_catalog() + billing._stripe_plan_prices() + billing._stripe_plan_tenants()
              + billing._stripe_plan_credits();
    requests := requests + billing._bill_item_periods(stock);
    requests := requests + billing._stripe_plan_sessions() + billing._stripe_plan_changes();
    requests := requests + billing._stripe_plan_late_usage();
    requests := requests + billing._stripe_plan_usage(stock) + billing._stripe_plan_figures(stock);
    requests := requests + billing._stripe_plan_reconcile();
    RETURN requests + billing._stripe_plan_webhooks() + billing._stripe_plan_missed();
END $$;
