-- Subscriptions: which plan a tenant is on, and its billing periods.
--
-- A period is half-open [start, end), counted from the anchor in the subscription's time zone; the anchor is always a
-- whole hour, so that no hour of usage belongs to two periods. Stripe counts its periods in UTC, so a subscription
-- billed through Stripe has the time zone UTC whatever the tenant's own is.
--
-- What is not billed (a trial, a pause) and what was counted from another anchor before is a stretch of its own: usage of
-- then keeps its period, whose start is no whole second. A new anchor is the hour it is wished in.
--
-- Without a subscription a period is the month, or what the end of one leaves of it, which begins on no whole second either:
-- so what is used in the hour of the end, after it, is apart from what the last invoice bills, also where that is by the month.
--
-- A subscription that follows another in the same hour shares that hour with it. What was used before belongs to the earlier
-- one's period, what comes after to the later one's: its first period begins a second later than the last one that the hour
-- knows, by which the two are told apart; all others begin with the hour. So it is where the hour is a month's first, in which
-- the tenant has used something without a subscription.

CREATE FUNCTION billing._install_subscriptions() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.subscriptions (
        tenant_id              text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        id                     bigint GENERATED ALWAYS AS IDENTITY,
        plan                   text NOT NULL REFERENCES billing.plans,
        plan_version           int NOT NULL,    -- whose prices it has
        -- pending: in force here, not yet carried out at Stripe; the others are Stripe's
        status                 text NOT NULL CHECK (status IN ('pending', 'incomplete', 'incomplete_expired', 'trialing',
                                   'active', 'past_due', 'unpaid', 'canceled', 'paused')),
        starts                 timestamptz NOT NULL,    -- its first period, a trial, too: its hour, or in it after another one
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
        payment_behavior       text NOT NULL DEFAULT 'default_incomplete'     -- of the first invoice
            CHECK (payment_behavior IN ('default_incomplete', 'allow_incomplete', 'error_if_incomplete')),
        trial_start            timestamptz,
        trial_end              timestamptz,
        missing_payment_method text NOT NULL DEFAULT 'create_invoice'         -- what a trial without one ends in
            CHECK (missing_payment_method IN ('create_invoice', 'cancel', 'pause')),
        paused_at              timestamptz,
        credit_unused          boolean NOT NULL DEFAULT true,   -- of the flat fee, when it was paused last
        past_due_since         timestamptz,
        canceled_at            timestamptz,     -- when its end was asked for
        ended_at               timestamptz,
        end_prorates           boolean NOT NULL DEFAULT false,  -- if it is ended at once: whether that credits the rest of the fee
        end_invoices           boolean NOT NULL DEFAULT true,   -- … and bills what was used
        changed_at             timestamptz,     -- when its plan was changed last, or it ended
        -- What Stripe has confirmed; where it differs from the above, something is due there.
        stripe_subscription_id text,
        stripe_status          text,
        stripe_plan            text,            -- the plan whose flat fee it bills
        stripe_item_id         text,            -- the item of that fee
        stripe_price_id        text,            -- and its price
        fee_anchor             timestamptz,     -- what a yearly fee's years are counted from, where not from the anchor
        prices_due             boolean NOT NULL DEFAULT true,   -- Stripe may bill other prices than the wanted ones
        stripe_cancels         boolean NOT NULL DEFAULT false,
        stripe_trial_end       timestamptz,
        stripe_ended_at        timestamptz,
        stripe_offset          interval NOT NULL DEFAULT '0',   -- from where a period begins to where Stripe begins it
        created_at             timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, id),
        FOREIGN KEY (plan, plan_version) REFERENCES billing.plan_versions,
        CHECK (current_period_start < current_period_end)
    );
    CREATE UNIQUE INDEX IF NOT EXISTS subscriptions_one_live ON billing.subscriptions (tenant_id)
        WHERE status NOT IN ('canceled', 'incomplete_expired');
    CREATE INDEX IF NOT EXISTS subscriptions_stripe ON billing.subscriptions (stripe_subscription_id);
    CREATE INDEX IF NOT EXISTS subscriptions_period_end ON billing.subscriptions (current_period_end)
        WHERE status NOT IN ('canceled', 'incomplete_expired');
    COMMENT ON TABLE billing.subscriptions IS 'a tenant''s plan and billing period; at most one live row per tenant';

    CREATE TABLE IF NOT EXISTS billing.subscription_stretches (
        tenant_id       text COLLATE "C" NOT NULL,
        subscription_id bigint NOT NULL,
        starts          timestamptz NOT NULL,
        ends            timestamptz NOT NULL,
        anchor          timestamptz,            -- of its periods; null: it is one period, whole
        timezone        text NOT NULL,
        PRIMARY KEY (tenant_id, subscription_id, starts),
        FOREIGN KEY (tenant_id, subscription_id) REFERENCES billing.subscriptions
    );
    COMMENT ON TABLE billing.subscription_stretches IS
        'times in which a subscription counted its periods otherwise than now: a trial, a pause, and what came before';

    CREATE TABLE IF NOT EXISTS billing.subscription_items (
        tenant_id       text COLLATE "C" NOT NULL,
        subscription_id bigint NOT NULL,
        metric          text NOT NULL REFERENCES billing.metrics,
        stripe_item_id  text NOT NULL,
        stripe_price_id text NOT NULL,
        since           timestamptz,                    -- when Stripe took this price; null: with the subscription
        counted         numeric NOT NULL DEFAULT 0,     -- of that hour, or that period's figure, what it had counted before
        figures         tstzrange NOT NULL DEFAULT 'empty',     -- of a metric in usage_figures: its last period there
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

-- A period of a subscription: the first one begins where the subscription does, in that hour.
CREATE FUNCTION billing._period_from(starts timestamptz, period tstzrange) RETURNS tstzrange
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN $1 > lower($2) AND $1 < lower($2) + interval '1 hour' THEN tstzrange($1, upper($2)) ELSE $2 END
$$;

-- When what is not billed begins at a time: never on a whole second, by which its periods are told from those that are billed.
CREATE FUNCTION billing._unbilled_from(at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT greatest($1, date_trunc('second', $1) + interval '1 microsecond')
$$;

-- The first whole hour that is not before a time.
CREATE FUNCTION billing._whole_hour(at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT date_trunc('hour', $1 + interval '1 hour' - interval '1 microsecond', 'UTC')
$$;

-- When a trial that begins at a time ends: after so many days by the calendar of the time zone, or at a given time, and
-- always on a whole hour.
CREATE FUNCTION billing._trial_until(starts timestamptz, timezone text, days int, until timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ends timestamptz := billing._whole_hour(coalesce(until,
                            ((starts AT TIME ZONE timezone) + make_interval(days => days)) AT TIME ZONE timezone));
BEGIN
    IF days IS NOT NULL AND until IS NOT NULL OR days < 1 OR ends <= billing.now() OR ends > starts + interval '730 days' THEN
        RAISE EXCEPTION 'a trial of % days until % is not valid', days, until
            USING ERRCODE = 'UB039', HINT = 'Give days, or an end that is to come; a trial lasts two years at most.';
    END IF;
    RETURN ends;
END $$;

CREATE FUNCTION billing.create_subscription(tenant_id text, plan text,
                                            collection_method text DEFAULT 'charge_automatically',
                                            days_until_due int DEFAULT NULL, trial_days int DEFAULT NULL,
                                            trial_end timestamptz DEFAULT NULL,
                                            missing_payment_method text DEFAULT 'create_invoice',
                                            payment_behavior text DEFAULT 'default_incomplete')
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    customer billing.billing_customers;
    wanted billing.plans;
    hour timestamptz := date_trunc('hour', billing.now(), 'UTC');
    starts timestamptz;
    trial_until timestamptz;
    period tstzrange;
    s billing.subscriptions;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._advance_periods(tenant_id);
    SELECT * INTO customer FROM billing.billing_customers c WHERE c.tenant_id = create_subscription.tenant_id;
    PERFORM billing._check_plan(plan);
    SELECT * INTO wanted FROM billing.plans p WHERE p.name = create_subscription.plan;
    IF collection_method IS NULL OR collection_method NOT IN ('charge_automatically', 'send_invoice')
       OR (collection_method = 'send_invoice') <> (days_until_due IS NOT NULL) OR days_until_due NOT BETWEEN 0 AND 365 THEN
        RAISE EXCEPTION 'collection method "%" with % days until due is not valid', collection_method, days_until_due
            USING ERRCODE = 'UB032',
                  HINT = 'Use charge_automatically, or send_invoice with days_until_due between 0 and 365.';
    END IF;
    IF (payment_behavior IN ('default_incomplete', 'allow_incomplete', 'error_if_incomplete')) IS NOT TRUE THEN
        RAISE EXCEPTION 'payment behavior "%" is not valid', payment_behavior
            USING ERRCODE = 'UB032', HINT = 'Use default_incomplete, allow_incomplete or error_if_incomplete.';
    END IF;
    IF (missing_payment_method IN ('create_invoice', 'cancel', 'pause')) IS NOT TRUE THEN
        RAISE EXCEPTION 'missing payment method "%" is not valid', missing_payment_method
            USING ERRCODE = 'UB039', HINT = 'A trial without a payment method ends in create_invoice, cancel or pause.';
    END IF;
    IF customer.stripe THEN
        customer.timezone := 'UTC';
    END IF;
    starts := coalesce((SELECT max(greatest(x.starts, hour)) + interval '1 second' FROM billing.subscriptions x
                         WHERE x.tenant_id = customer.tenant_id AND x.ended_at > hour),
                       (SELECT hour + interval '1 second'
                          FROM billing._quota_in_force(customer.tenant_id, NULL, billing.now()) q
                         WHERE lower(q.billing_period) = hour
                           AND EXISTS (SELECT FROM billing.metrics m
                                        WHERE m.kind = 'counter' AND billing._used(customer.tenant_id, m.name, hour) <> 0)),
                       hour);
    IF trial_days IS NOT NULL OR trial_end IS NOT NULL THEN
        trial_until := billing._trial_until(hour, customer.timezone, trial_days, trial_end);
        period := tstzrange(starts, trial_until);
    ELSE
        period := billing._period_from(starts, billing._period_at(hour, wanted.interval_months, customer.timezone, hour));
    END IF;
    BEGIN
        INSERT INTO billing.subscriptions AS x (tenant_id, plan, plan_version, status, starts, anchor, timezone,
                interval_months, current_period_start, current_period_end, collection_method, days_until_due, payment_behavior,
                trial_start, trial_end, missing_payment_method, created_at)
            VALUES (customer.tenant_id, wanted.name, billing._publish_plan(wanted.name),
                CASE WHEN customer.stripe THEN 'pending' WHEN trial_until IS NOT NULL THEN 'trialing' ELSE 'active' END,
                starts, coalesce(trial_until, hour), customer.timezone, wanted.interval_months, lower(period), upper(period),
                create_subscription.collection_method, create_subscription.days_until_due,
                create_subscription.payment_behavior, CASE WHEN trial_until IS NOT NULL THEN starts END, trial_until,
                create_subscription.missing_payment_method, billing.now())
            RETURNING * INTO s;
    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'tenant "%" has a subscription already', tenant_id
            USING ERRCODE = 'UB031', HINT = 'Change or cancel that one.';
    END;
    PERFORM billing._keep_trial(to_jsonb(s));
    PERFORM billing._subscription_changed('create_subscription', NULL, to_jsonb(s));
    RETURN s.id;
END $$;
COMMENT ON FUNCTION billing.create_subscription(text, text, text, int, int, timestamptz, text, text) IS
    'puts a tenant on a plan from the start of the current hour, with a trial of trial_days or until trial_end first; its quotas are in force at commit, and the worker carries it out at Stripe. Nothing is billed of a trial; one that ends without a payment method ends in create_invoice, cancel or pause. Of the first invoice''s payment Stripe is told payment_behavior. Raises UB010, UB012, UB031, UB032, UB037, UB039, UB040';

-- Notes the stretch of a subscription's trial, or where it ends now.
CREATE FUNCTION billing._keep_trial(s jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.subscription_stretches (tenant_id, subscription_id, starts, ends, timezone)
    SELECT x.tenant_id, x.id, x.trial_start, x.trial_end, x.timezone
      FROM jsonb_populate_record(NULL::billing.subscriptions, $1) x WHERE x.trial_start IS NOT NULL
    ON CONFLICT ON CONSTRAINT subscription_stretches_pkey DO UPDATE SET ends = excluded.ends
$$;

-- Closes the stretch that a subscription's periods were counted in until now, from this anchor.
CREATE FUNCTION billing._close_stretch(s jsonb, anchor timestamptz) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.subscription_stretches (tenant_id, subscription_id, starts, ends, anchor, timezone)
    SELECT x.tenant_id, x.id,
           coalesce((SELECT max(f.ends) FROM billing.subscription_stretches f
                      WHERE f.tenant_id = x.tenant_id AND f.subscription_id = x.id), '-infinity'),
           billing.now(), $2, x.timezone
      FROM jsonb_populate_record(NULL::billing.subscriptions, $1) x
    ON CONFLICT DO NOTHING      -- of two changes in one moment, the second one's stretch is none
$$;

-- Row-level security decides whose subscription is seen. Stripe has confirmed what a subscription wants where the columns of
-- both sides agree (sql/stripe_changes.sql makes requests of where they do not).
CREATE FUNCTION billing.get_subscription(tenant_id text, or_ended boolean DEFAULT false)
RETURNS TABLE (subscription_id bigint, plan text, status text, current_period_start timestamptz,
               current_period_end timestamptz, cancel_at_period_end boolean, stripe_subscription_id text,
               created_at timestamptz, trial_end timestamptz, paused_at timestamptz, canceled_at timestamptz,
               ended_at timestamptz, stripe_confirmed boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.id, s.plan, s.status, s.current_period_start, s.current_period_end, s.cancel_at_period_end,
           s.stripe_subscription_id, s.created_at, s.trial_end, s.paused_at, s.canceled_at, s.ended_at,
           NOT c.stripe
           OR (CASE WHEN s.status IN ('canceled', 'incomplete_expired')
                   THEN s.stripe_subscription_id IS NULL OR s.stripe_status IN ('canceled', 'incomplete_expired')
                   ELSE s.status <> 'pending' AND NOT s.prices_due AND s.cancel_at_period_end = s.stripe_cancels
                        AND (s.paused_at IS NULL) = (s.stripe_status <> 'paused')
                        AND (s.stripe_status <> 'trialing' OR s.trial_end IS NOT DISTINCT FROM s.stripe_trial_end) END) IS TRUE
      FROM billing.subscriptions s
      JOIN billing.billing_customers c ON c.tenant_id = s.tenant_id
     WHERE s.tenant_id = get_subscription.tenant_id
       AND (or_ended OR s.status NOT IN ('canceled', 'incomplete_expired')
                        AND NOT (s.cancel_at_period_end AND s.current_period_end <= billing.now()))
     ORDER BY s.id DESC LIMIT 1
$$;
COMMENT ON FUNCTION billing.get_subscription(text, boolean) IS
    'returns a tenant''s live subscription, or else, if asked to, the last one that has ended, or no row; stripe_confirmed: Stripe has carried out all that it wants, or does not bill it';

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
           AND o.paused_at IS NULL
           AND (_advance_periods.tenant_id IS NULL OR o.tenant_id = _advance_periods.tenant_id)
         ORDER BY o.tenant_id FOR UPDATE SKIP LOCKED
    LOOP
        PERFORM billing._spend_credit(to_jsonb(was), billing.now());
        IF was.cancel_at_period_end THEN
            UPDATE billing.subscriptions u
               SET status = 'canceled', ended_at = was.current_period_end, changed_at = was.current_period_end
             WHERE u.tenant_id = was.tenant_id AND u.id = was.id
            RETURNING * INTO s;
            PERFORM billing._subscription_changed('end_subscription', to_jsonb(was), to_jsonb(s));
        ELSE
            period := billing._period_at(was.anchor, was.interval_months, was.timezone, billing.now());
            UPDATE billing.subscriptions u
               SET current_period_start = lower(period), current_period_end = upper(period),
                   status = CASE was.status WHEN 'trialing' THEN 'active' ELSE was.status END
             WHERE u.tenant_id = was.tenant_id AND u.id = was.id;
            PERFORM billing._refresh_quotas(was.tenant_id);
        END IF;
        moved := moved + 1;
    END LOOP;
    RETURN moved;
END $$;
