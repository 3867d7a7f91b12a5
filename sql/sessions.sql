-- Sessions at Stripe for the tenant's own browser: Checkout, in which it subscribes and pays, and the customer portal.
--
-- Whoever has a session's URL acts for the tenant, so it is handed out once, to who asks for it, and kept nowhere else:
-- neither in stripe_outbox nor in a log, and what nobody fetched is erased after ten minutes. A wish that Stripe could not
-- be asked in an hour is given up: the click that led to it is long gone.

CREATE FUNCTION billing._install_sessions() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.stripe_sessions (
        tenant_id         text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        id                bigint GENERATED ALWAYS AS IDENTITY,
        kind              text NOT NULL CHECK (kind IN ('checkout', 'portal')),
        plan              text REFERENCES billing.plans,     -- of a checkout
        params            jsonb NOT NULL,                   -- as Stripe is asked, but for what the tables say then
        state             text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'ready', 'closed', 'failed', 'completed')),
        stripe_session_id text,
        url               text,                             -- while ready
        error             text,
        created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
        ready_at          timestamptz,
        PRIMARY KEY (tenant_id, id)
    );
    CREATE INDEX IF NOT EXISTS stripe_sessions_open ON billing.stripe_sessions (created_at) WHERE state IN ('waiting', 'ready');
    COMMENT ON TABLE billing.stripe_sessions IS 'sessions of Stripe Checkout and of the customer portal; a URL is handed out once, by get_session_url()';
END $$;

CREATE FUNCTION billing._new_session(tenant_id text, kind text, plan text, params jsonb) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    url text;
    session_id bigint;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    IF NOT (SELECT c.stripe FROM billing.billing_customers c WHERE c.tenant_id = _new_session.tenant_id) THEN
        RAISE EXCEPTION 'tenant "%" is not billed through Stripe', tenant_id
            USING ERRCODE = 'UB045', HINT = 'Connect it with billing.connect_stripe().';
    END IF;
    FOR url IN SELECT u.value FROM jsonb_each_text(jsonb_strip_nulls(params)) u WHERE u.key LIKE '%\_url' LOOP
        IF (url ~ '^https?://[^/[:space:]]' AND octet_length(url) <= 2048) IS NOT TRUE THEN
            RAISE EXCEPTION 'URL "%" is not valid', left(url, 64)
                USING ERRCODE = 'UB032', HINT = 'It begins with https:// and is at most 2048 bytes long.';
        END IF;
    END LOOP;
    INSERT INTO billing.stripe_sessions AS s (tenant_id, kind, plan, params)
    VALUES (_new_session.tenant_id, _new_session.kind, _new_session.plan, jsonb_strip_nulls(_new_session.params))
    RETURNING s.id INTO session_id;
    PERFORM billing._wake_worker('stripe');
    RETURN session_id;
END $$;

CREATE FUNCTION billing.create_checkout_session(tenant_id text, plan text, success_url text, cancel_url text DEFAULT NULL,
                                                trial_days int DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._advance_periods(tenant_id);
    PERFORM billing._check_plan(plan);
    IF trial_days NOT BETWEEN 1 AND 730 THEN
        RAISE EXCEPTION 'a trial of % days is not valid', trial_days
            USING ERRCODE = 'UB039', HINT = 'A trial lasts a day at least and two years at most.';
    END IF;
    IF EXISTS (SELECT FROM billing.subscriptions s WHERE s.tenant_id = create_checkout_session.tenant_id
                  AND s.status NOT IN ('canceled', 'incomplete_expired')) THEN
        RAISE EXCEPTION 'tenant "%" has a subscription already', tenant_id
            USING ERRCODE = 'UB031', HINT = 'Change that one with billing.update_subscription(); a payment method is entered in the customer portal.';
    END IF;
    RETURN billing._new_session(tenant_id, 'checkout', plan,
               jsonb_build_object('success_url', coalesce(success_url, ''), 'cancel_url', cancel_url)
               || CASE WHEN trial_days IS NULL THEN '{}'
                       ELSE jsonb_build_object('subscription_data', jsonb_build_object('trial_period_days', trial_days)) END);
END $$;
COMMENT ON FUNCTION billing.create_checkout_session(text, text, text, text, int) IS
    'asks Stripe for a Checkout session in which a tenant without a subscription subscribes to a plan and pays; returns its id for get_session_url(). The subscription is the tenant''s once Stripe reports it. Raises UB010, UB012, UB031, UB032, UB039, UB040, UB045';

CREATE FUNCTION billing.create_portal_session(tenant_id text, return_url text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._new_session($1, 'portal', NULL, jsonb_build_object('return_url', coalesce($2, '')))
$$;
COMMENT ON FUNCTION billing.create_portal_session(text, text) IS
    'asks Stripe for a session of its customer portal, where a tenant manages payment methods, invoices and its subscription; returns its id for get_session_url(). Raises UB010, UB032, UB040, UB045';

CREATE FUNCTION billing.get_session_url(tenant_id text, session_id bigint, timeout interval DEFAULT '10 seconds') RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + least(timeout, '1 hour');
    pause double precision := 0.01;
    url text;
    s record;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    LOOP
        -- not locked while it waits: the worker has to write here
        SELECT x.state, x.error, x.ready_at < clock_timestamp() - interval '10 minutes' AS stale INTO s
          FROM billing.stripe_sessions x WHERE x.tenant_id = get_session_url.tenant_id AND x.id = session_id;
        IF NOT FOUND OR s.state NOT IN ('waiting', 'ready', 'failed') OR s.stale THEN
            RAISE EXCEPTION 'tenant "%" has no session % whose URL can be handed out', tenant_id, session_id
                USING ERRCODE = 'UB044', HINT = 'A URL is handed out once, within ten minutes: ask for another session.';
        ELSIF s.state = 'failed' THEN
            RAISE EXCEPTION 'Stripe did not open the session: %', s.error
                USING ERRCODE = 'UB044', HINT = 'Mend the cause and ask for another session.';
        ELSIF s.state = 'ready' THEN
            SELECT x.url INTO url FROM billing.stripe_sessions x
             WHERE x.tenant_id = get_session_url.tenant_id AND x.id = session_id AND x.state = 'ready' FOR UPDATE;
            CONTINUE WHEN NOT FOUND;
            UPDATE billing.stripe_sessions x SET state = 'closed', url = NULL
             WHERE x.tenant_id = get_session_url.tenant_id AND x.id = session_id;
            RETURN url;
        END IF;
        EXIT WHEN clock_timestamp() >= deadline;
        PERFORM pg_sleep(least(pause, extract(epoch FROM deadline - clock_timestamp())));
        pause := least(pause * 2, 0.2);
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION billing.get_session_url(text, bigint, interval) IS
    'returns the URL of a session that an earlier transaction asked for, once, waiting for Stripe''s answer; null when that did not come within the timeout: ask again. Raises UB010, UB040, UB044';

CREATE FUNCTION billing._stripe_plan_sessions() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    requests bigint;
BEGIN
    UPDATE billing.stripe_sessions s
       SET state = CASE s.state WHEN 'ready' THEN 'closed' ELSE 'failed' END, url = NULL,
           error = CASE s.state WHEN 'waiting' THEN 'it was not answered in an hour' END
     WHERE s.state = 'ready' AND s.ready_at < clock_timestamp() - interval '10 minutes'
        OR s.state = 'waiting' AND s.created_at < clock_timestamp() - interval '1 hour';
    WITH requests AS (
        SELECT billing._stripe_enqueue(s.tenant_id, 'session_create', s.id::text, 'POST',
                   CASE s.kind WHEN 'portal' THEN '/v1/billing_portal/sessions' ELSE '/v1/checkout/sessions' END,
                   s.params || jsonb_build_object('customer', c.stripe_customer_id)
                   || CASE s.kind WHEN 'portal' THEN '{}'
                      ELSE jsonb_build_object('mode', 'subscription', 'client_reference_id', s.tenant_id,
                               'line_items', i.items, 'subscription_data',
                               coalesce(s.params -> 'subscription_data', '{}')
                               || jsonb_build_object('billing_mode', '{"type": "flexible"}'::jsonb, 'metadata',
                                      jsonb_build_object('tenant_id', s.tenant_id, 'session_id', s.id::text))) END)
          FROM billing.stripe_sessions s
          JOIN billing.billing_customers c ON c.tenant_id = s.tenant_id
         CROSS JOIN LATERAL (
               SELECT jsonb_agg(jsonb_build_object('price', w.stripe_price_id)
                                || CASE WHEN w.metric IS NULL THEN '{"quantity": 1}' ELSE '{}'::jsonb END ORDER BY w.metric NULLS FIRST) AS items,
                      bool_and(w.stripe_price_id IS NOT NULL AND w.stripe_active) AS complete
                 FROM billing._stripe_prices_of(s.tenant_id, s.plan, (SELECT max(v.version) FROM billing.plan_versions v WHERE v.plan = s.plan)) w) i
         WHERE s.state = 'waiting' AND c.stripe_customer_id IS NOT NULL AND (s.kind = 'portal' OR i.complete)
           AND billing._stripe_free(s.tenant_id, 'session_create', s.id::text)
    )
    SELECT count(*) INTO requests FROM requests;
    RETURN requests;
END $$;

-- What became of a request for a session: what Stripe opened, or why it did not.
CREATE FUNCTION billing._apply_session(tenant text, session_id text, session jsonb, refused text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.stripe_sessions s
       SET state = CASE WHEN $4 IS NULL THEN 'ready' ELSE 'failed' END, stripe_session_id = $3 ->> 'id', url = $3 ->> 'url',
           error = $4, ready_at = clock_timestamp()
     WHERE s.tenant_id = $1 AND s.id::text = $2 AND s.state = 'waiting'
$$;

-- Makes a subscription that came about in Checkout the tenant's. It began there by Stripe's clock, here with that hour.
CREATE FUNCTION billing._join_subscription(tenant text, subscription jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    began timestamptz := date_trunc('hour', to_timestamp((subscription ->> 'start_date')::bigint), 'UTC');
    trial_until timestamptz := to_timestamp((subscription ->> 'trial_end')::bigint);
    wanted record;
    period tstzrange;
    s billing.subscriptions;
BEGIN
    SELECT p.name, p.interval_months, coalesce(k.until - 1, (SELECT max(v.version) FROM billing.plan_versions v WHERE v.plan = p.name)) AS version
      INTO wanted
      FROM jsonb_array_elements(subscription #> '{items,data}') item
      JOIN billing._known_prices(tenant) k ON k.stripe_price_id = item #>> '{price,id}' AND k.metric IS NULL
      JOIN billing.plans p ON p.name = k.plan;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'subscription % bills no known plan', subscription ->> 'id';
    END IF;
    period := CASE WHEN trial_until IS NULL THEN billing._period_at(began, wanted.interval_months, 'UTC', began)
                   ELSE tstzrange(began, trial_until) END;
    BEGIN
        INSERT INTO billing.subscriptions AS x (tenant_id, plan, plan_version, status, starts, anchor, timezone, interval_months,
                current_period_start, current_period_end, collection_method, days_until_due, trial_start, trial_end, created_at)
        VALUES (tenant, wanted.name, wanted.version, 'pending', began, coalesce(date_trunc('hour', trial_until, 'UTC'), began), 'UTC',
                wanted.interval_months, lower(period), upper(period), subscription ->> 'collection_method',
                (subscription ->> 'days_until_due')::int, CASE WHEN trial_until IS NOT NULL THEN began END, trial_until,
                to_timestamp((subscription ->> 'created')::bigint))
        RETURNING * INTO s;
    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'tenant "%" has another subscription already: end one of the two, % is Stripe''s',
            tenant, subscription ->> 'id';
    END;
    PERFORM billing._keep_trial(to_jsonb(s));
    UPDATE billing.subscriptions x SET stripe_subscription_id = subscription ->> 'id' WHERE x.tenant_id = tenant AND x.id = s.id;
    UPDATE billing.stripe_sessions x SET state = 'completed', url = NULL
     WHERE x.tenant_id = tenant AND x.id::text = subscription #>> '{metadata,session_id}';
    PERFORM billing._audit(tenant, 'subscribed_in_checkout', NULL, to_jsonb(s));
    PERFORM billing._apply_subscription(tenant, subscription, true);
END $$;
