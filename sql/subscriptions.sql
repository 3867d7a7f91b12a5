-- Subscriptions: which plan a tenant is on, and its billing periods.
--
-- A period is half-open [start, end), counted from the anchor in the subscription's time zone; the anchor is always a
-- whole hour, so that no hour of usage belongs to two periods. Stripe counts its periods in UTC, so a subscription
-- billed through Stripe has the time zone UTC whatever the tenant's own is.

CREATE FUNCTION billing._install_subscriptions() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.subscriptions (
        tenant_id              text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        id                     bigint GENERATED ALWAYS AS IDENTITY,
        plan                   text NOT NULL REFERENCES billing.plans,
        -- pending: in force here, not yet carried out at Stripe; the others are Stripe's
        status                 text NOT NULL CHECK (status IN ('pending', 'incomplete', 'incomplete_expired', 'trialing',
                                   'active', 'past_due', 'unpaid', 'canceled', 'paused')),
        anchor                 timestamptz NOT NULL,
        timezone               text NOT NULL,
        interval_months        int NOT NULL,
        current_period_start   timestamptz NOT NULL,
        current_period_end     timestamptz NOT NULL,
        collection_method      text NOT NULL CHECK (collection_method IN ('charge_automatically', 'send_invoice')),
        days_until_due         int CHECK (days_until_due BETWEEN 0 AND 365),
        cancel_at_period_end   boolean NOT NULL DEFAULT false,
        proration_behavior     text NOT NULL DEFAULT 'create_prorations'      -- of the last change of plan
            CHECK (proration_behavior IN ('create_prorations', 'always_invoice', 'none')),
        past_due_since         timestamptz,
        canceled_at            timestamptz,     -- when its end was asked for
        ended_at               timestamptz,
        changed_at             timestamptz,     -- when its plan was changed last, or it ended
        -- What Stripe has confirmed; where it differs from the above, something is due there.
        stripe_subscription_id text,
        stripe_status          text,
        stripe_plan            text,            -- the plan whose flat fee it bills
        stripe_item_id         text,            -- the item of that fee
        stripe_cancels         boolean NOT NULL DEFAULT false,
        created_at             timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, id),
        CHECK (current_period_start < current_period_end)
    );
    CREATE UNIQUE INDEX IF NOT EXISTS subscriptions_one_live ON billing.subscriptions (tenant_id)
        WHERE status NOT IN ('canceled', 'incomplete_expired');
    CREATE INDEX IF NOT EXISTS subscriptions_period_end ON billing.subscriptions (current_period_end)
        WHERE status NOT IN ('canceled', 'incomplete_expired');
    COMMENT ON TABLE billing.subscriptions IS 'a tenant''s plan and billing period; at most one live row per tenant';

    CREATE TABLE IF NOT EXISTS billing.subscription_items (
        tenant_id       text COLLATE "C" NOT NULL,
        subscription_id bigint NOT NULL,
        metric          text NOT NULL REFERENCES billing.metrics,
        stripe_item_id  text NOT NULL,
        stripe_price_id text NOT NULL,
        since           timestamptz,                    -- when Stripe took this price; null: with the subscription
        counted         numeric NOT NULL DEFAULT 0,     -- of that hour, what it had counted before
        PRIMARY KEY (tenant_id, subscription_id, metric),
        FOREIGN KEY (tenant_id, subscription_id) REFERENCES billing.subscriptions
    );
    COMMENT ON TABLE billing.subscription_items IS 'the Stripe subscription item of each metered product';
END $$;

-- Counting months from the anchor itself, never from the previous period, keeps the 31st: Jan 31, Feb 28, Mar 31.
CREATE FUNCTION billing._period_at(anchor timestamptz, months int, timezone text, at timestamptz) RETURNS tstzrange
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first timestamp := anchor AT TIME ZONE timezone;
    local timestamp := at AT TIME ZONE timezone;
    n int := floor(((extract(year FROM local) - extract(year FROM first)) * 12
                    + extract(month FROM local) - extract(month FROM first)) / months);
    starts timestamptz;
    ends timestamptz;
BEGIN
    FOR k IN n - 1 .. n + 1 LOOP    -- the day of the month and daylight saving decide between neighbours
        starts := (first + make_interval(months => k * months)) AT TIME ZONE timezone;
        ends := (first + make_interval(months => (k + 1) * months)) AT TIME ZONE timezone;
        EXIT WHEN at >= starts AND at < ends;
    END LOOP;
    RETURN tstzrange(starts, ends);
END $$;

CREATE FUNCTION billing.create_subscription(tenant_id text, plan text,
                                            collection_method text DEFAULT 'charge_automatically',
                                            days_until_due int DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    customer billing.billing_customers;
    wanted billing.plans;
    anchor timestamptz := date_trunc('hour', billing.now(), 'UTC');
    period tstzrange;
    subscription_id bigint;
    created jsonb;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._advance_periods(tenant_id);
    SELECT * INTO customer FROM billing.billing_customers c WHERE c.tenant_id = create_subscription.tenant_id;
    SELECT * INTO wanted FROM billing.plans p WHERE p.name = create_subscription.plan;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown plan "%"', plan
            USING ERRCODE = 'UB012', HINT = 'SELECT name FROM billing.plans lists the plans.';
    END IF;
    IF collection_method IS NULL OR collection_method NOT IN ('charge_automatically', 'send_invoice')
       OR (collection_method = 'send_invoice') <> (days_until_due IS NOT NULL) OR days_until_due NOT BETWEEN 0 AND 365 THEN
        RAISE EXCEPTION 'collection method "%" with % days until due is not valid', collection_method, days_until_due
            USING ERRCODE = 'UB032',
                  HINT = 'Use charge_automatically, or send_invoice with days_until_due between 0 and 365.';
    END IF;
    IF customer.stripe THEN
        customer.timezone := 'UTC';
    END IF;
    period := billing._period_at(anchor, wanted.interval_months, customer.timezone, anchor);
    BEGIN
        INSERT INTO billing.subscriptions AS s (tenant_id, plan, status, anchor, timezone, interval_months,
                current_period_start, current_period_end, collection_method, days_until_due, created_at)
            VALUES (customer.tenant_id, wanted.name, CASE WHEN customer.stripe THEN 'pending' ELSE 'active' END, anchor,
                customer.timezone, wanted.interval_months, lower(period), upper(period),
                create_subscription.collection_method, create_subscription.days_until_due, billing.now())
            RETURNING s.id, to_jsonb(s) INTO subscription_id, created;
    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'tenant "%" has a subscription already', tenant_id
            USING ERRCODE = 'UB031', HINT = 'Change or cancel that one.';
    END;
    PERFORM billing._subscription_changed('create_subscription', NULL, created);
    RETURN subscription_id;
END $$;
COMMENT ON FUNCTION billing.create_subscription(text, text, text, int) IS
    'puts a tenant on a plan from the start of the current hour; its quotas are in force at commit, and the worker carries it out at Stripe. Raises UB010, UB012, UB031, UB032, UB040';

-- Row-level security decides whose subscription is seen.
CREATE FUNCTION billing.get_subscription(tenant_id text)
RETURNS TABLE (subscription_id bigint, plan text, status text, current_period_start timestamptz,
               current_period_end timestamptz, cancel_at_period_end boolean, stripe_subscription_id text,
               created_at timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.id, s.plan, s.status, s.current_period_start, s.current_period_end, s.cancel_at_period_end,
           s.stripe_subscription_id, s.created_at
      FROM billing.subscriptions s
     WHERE s.tenant_id = get_subscription.tenant_id AND s.status NOT IN ('canceled', 'incomplete_expired')
       AND NOT (s.cancel_at_period_end AND s.current_period_end <= billing.now())
$$;
COMMENT ON FUNCTION billing.get_subscription(text) IS 'returns a tenant''s live subscription, or no row';

-- Moves subscriptions whose period is over into the one that holds the present, or ends them; of one tenant, or of all;
-- returns how many. Who is just changing one does that itself: waiting for them here, the rollup could meet its own rows.
CREATE FUNCTION billing._advance_periods(tenant_id text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions;
    s billing.subscriptions;
    period tstzrange;
    moved bigint := 0;
BEGIN
    FOR was IN
        SELECT o.* FROM billing.subscriptions o
         WHERE o.current_period_end <= billing.now() AND o.status NOT IN ('canceled', 'incomplete_expired')
           AND (_advance_periods.tenant_id IS NULL OR o.tenant_id = _advance_periods.tenant_id)
         ORDER BY o.tenant_id FOR UPDATE SKIP LOCKED
    LOOP
        IF was.cancel_at_period_end THEN
            UPDATE billing.subscriptions u
               SET status = 'canceled', ended_at = was.current_period_end, changed_at = was.current_period_end
             WHERE u.tenant_id = was.tenant_id AND u.id = was.id
            RETURNING * INTO s;
            PERFORM billing._subscription_changed('end_subscription', to_jsonb(was), to_jsonb(s));
        ELSE
            period := billing._period_at(was.anchor, was.interval_months, was.timezone, billing.now());
            UPDATE billing.subscriptions u
               SET current_period_start = lower(period), current_period_end = upper(period)
             WHERE u.tenant_id = was.tenant_id AND u.id = was.id;
            PERFORM billing._refresh_quotas(was.tenant_id);
        END IF;
        moved := moved + 1;
    END LOOP;
    RETURN moved;
END $$;
