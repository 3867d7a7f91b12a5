-- The life of a subscription after its creation: change of plan, cancellation, pause, resumption, the end of a trial.
--
-- Each is in force here at its commit; what it asks of Stripe is found by comparing (sql/stripe_changes.sql). A change of
-- plan or a cancellation leaves anchor and period what they are, so usage goes on counting where it did; after a pause or
-- an earlier end of a trial periods are counted anew, as Stripe does it, and what was before is a stretch of its own.

-- Locks a tenant's live subscription and returns its row, as JSON because the table's type cannot be a result before the
-- table exists.
CREATE FUNCTION billing._lock_subscription(tenant_id text) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    locked jsonb;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM FROM billing.subscriptions s WHERE s.tenant_id = _lock_subscription.tenant_id
        AND s.status NOT IN ('canceled', 'incomplete_expired') FOR UPDATE;
    PERFORM billing._advance_periods(tenant_id);
    SELECT to_jsonb(s) INTO locked FROM billing.subscriptions s WHERE s.tenant_id = _lock_subscription.tenant_id
        AND s.status NOT IN ('canceled', 'incomplete_expired');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'tenant "%" has no subscription', tenant_id
            USING ERRCODE = 'UB036', HINT = 'Create one with billing.create_subscription().';
    END IF;
    RETURN locked;
END $$;

-- Has Stripe hear of another wish; a request that was made for an earlier one and never sent is made anew.
CREATE FUNCTION billing._ask_stripe_anew(tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT c.stripe FROM billing.billing_customers c WHERE c.tenant_id = tenant) THEN
        DELETE FROM billing.stripe_outbox o
         WHERE o.tenant_id = tenant AND o.kind IN ('subscription_create', 'subscription_update')
           AND o.state = 'waiting' AND o.attempts = 0;
        PERFORM billing._wake_worker('stripe');
    END IF;
END $$;

-- What every change of a subscription brings with it: the audit log, the quotas, what is billed here, and Stripe.
CREATE FUNCTION billing._subscription_changed(action text, before jsonb, after jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant text := after ->> 'tenant_id';
BEGIN
    PERFORM billing._audit(tenant, action, before, after);
    PERFORM billing._refresh_quotas(tenant);
    PERFORM billing._close_item_periods(before, after);
    PERFORM billing._ask_stripe_anew(tenant);
END $$;

CREATE FUNCTION billing._refuse_status(s jsonb, what text, why text, hint text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the subscription of tenant "%" cannot be %: it %', s ->> 'tenant_id', what, why
        USING ERRCODE = 'UB038', HINT = hint;
END $$;

CREATE FUNCTION billing.update_subscription(tenant_id text, plan text,
                                            proration_behavior text DEFAULT 'create_prorations')
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions;
    wanted billing.plans;
    currency text := (SELECT p.terms ->> 'currency' FROM billing._prices_of(tenant_id, was.plan, was.plan_version) p WHERE p.metric IS NULL);
    newest int;
BEGIN
    PERFORM billing._check_plan(plan);
    SELECT * INTO wanted FROM billing.plans p WHERE p.name = update_subscription.plan;
    IF (proration_behavior IN ('create_prorations', 'always_invoice', 'none')) IS NOT TRUE THEN
        RAISE EXCEPTION 'proration behavior "%" is not valid', proration_behavior
            USING ERRCODE = 'UB032', HINT = 'Use create_prorations, always_invoice or none.';
    END IF;
    IF (wanted.interval_months, wanted.currency) <> (was.interval_months, currency) THEN
        RAISE EXCEPTION 'plan "%" bills in % every % months, not in % every %', wanted.name, wanted.currency,
                wanted.interval_months, currency, was.interval_months
            USING ERRCODE = 'UB032', HINT = 'Cancel the subscription and create another one.';
    END IF;
    newest := billing._publish_plan(wanted.name);
    IF (wanted.name, newest) = (was.plan, was.plan_version) THEN
        RETURN;
    END IF;
    UPDATE billing.subscriptions x
       SET plan = wanted.name, plan_version = newest, prices_due = true, proration_behavior = update_subscription.proration_behavior, changed_at = billing.now()
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO s;
    PERFORM billing._subscription_changed('update_subscription', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.update_subscription(text, text, text) IS
    'puts a tenant on another plan of the same interval and currency, or on the newest prices of its own; its quotas are in force at commit, for the usage of the whole running period, and the worker carries it out at Stripe, which prorates the flat fee as told: create_prorations, always_invoice or none. Raises UB010, UB012, UB032, UB036, UB037, UB040';

CREATE FUNCTION billing.cancel_subscription(tenant_id text, at_period_end boolean DEFAULT true,
                                            prorate boolean DEFAULT false, invoice_now boolean DEFAULT true)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions;
BEGIN
    IF at_period_end IS NOT FALSE THEN
        IF was.cancel_at_period_end THEN
            RETURN;
        ELSIF was.paused_at IS NOT NULL THEN
            PERFORM billing._refuse_status(to_jsonb(was), 'canceled at its period''s end', 'is paused',
                                           'A pause has no period: cancel with at_period_end => false.');
        END IF;
        UPDATE billing.subscriptions x SET cancel_at_period_end = true, canceled_at = billing.now()
         WHERE x.tenant_id = was.tenant_id AND x.id = was.id
        RETURNING * INTO s;
    ELSE
        UPDATE billing.subscriptions x
           SET status = 'canceled', canceled_at = coalesce(was.canceled_at, billing.now()),
               ended_at = billing.now(), changed_at = billing.now(),
               end_prorates = prorate IS TRUE, end_invoices = invoice_now IS NOT FALSE
         WHERE x.tenant_id = was.tenant_id AND x.id = was.id
        RETURNING * INTO s;
        PERFORM billing._spend_credit(to_jsonb(was), s.ended_at) WHERE s.end_invoices;
    END IF;
    PERFORM billing._subscription_changed('cancel_subscription', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.cancel_subscription(text, boolean, boolean, boolean) IS
    'ends a tenant''s subscription with its period, or else at once: then Stripe bills what was used until now, unless invoice_now is false, and gives nothing of the flat fee back, unless prorate is true. Afterwards the tenant has no subscription, and may get another one. Raises UB010, UB036, UB038, UB040';

CREATE FUNCTION billing.pause_subscription(tenant_id text, credit_unused boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions;
BEGIN
    IF was.paused_at IS NOT NULL THEN
        RETURN;
    ELSIF was.status <> 'active' THEN
        PERFORM billing._refuse_status(to_jsonb(was), 'paused', 'is ' || was.status, 'Only one that is active can be paused.');
    ELSIF was.cancel_at_period_end THEN
        PERFORM billing._refuse_status(to_jsonb(was), 'paused', 'ends with its period',
                                       'Take that back with billing.resume_subscription() first.');
    END IF;
    PERFORM billing._spend_credit(to_jsonb(was), billing.now());
    PERFORM billing._close_stretch(to_jsonb(was), was.anchor);
    UPDATE billing.subscriptions x
       SET status = 'paused', paused_at = billing._unbilled_from(billing.now()), credit_unused = pause_subscription.credit_unused IS NOT FALSE
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO s;
    PERFORM billing._subscription_changed('pause_subscription', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.pause_subscription(text, boolean) IS
    'pauses a tenant''s active subscription from commit on: checks deny, usage that is recorded all the same is kept and not billed; Stripe bills what was used until now, and credits the rest of the flat fee unless credit_unused is false. Raises UB010, UB036, UB038, UB040';

CREATE FUNCTION billing.resume_subscription(tenant_id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions := was;
    period tstzrange;
BEGIN
    IF NOT was.cancel_at_period_end AND was.paused_at IS NULL THEN
        RETURN;
    END IF;
    IF was.paused_at IS NOT NULL THEN
        PERFORM billing._close_stretch(to_jsonb(was), was.paused_at);
        s.status := 'active';
        s.paused_at := NULL;
        -- a pause that Stripe has not been told of leaves the periods what they were
        IF was.stripe_status IS NULL OR was.stripe_status = 'paused'
           OR EXISTS (SELECT FROM billing.stripe_outbox o
                       WHERE o.tenant_id = was.tenant_id AND o.kind = 'subscription_update' AND o.subject = was.id::text
                         AND o.state IN ('waiting', 'sending') AND o.attempts > 0 AND o.path LIKE '%/pause') THEN
            s.anchor := date_trunc('hour', billing.now(), 'UTC');
        END IF;
        period := billing._period_from(s.starts, billing._period_at(s.anchor, s.interval_months, s.timezone, billing.now()));
        s.current_period_start := lower(period);
        s.current_period_end := upper(period);
    END IF;
    UPDATE billing.subscriptions x
       SET cancel_at_period_end = false, canceled_at = NULL, status = s.status, paused_at = s.paused_at, anchor = s.anchor,
           current_period_start = s.current_period_start, current_period_end = s.current_period_end
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO s;
    PERFORM billing._subscription_changed('resume_subscription', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.resume_subscription(text) IS
    'takes back a cancellation at the period''s end, before that, or a pause: then a billing period begins with the current hour, whose flat fee Stripe bills at once. Raises UB010, UB036, UB040';

CREATE FUNCTION billing.end_trial(tenant_id text, at timestamptz DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions := was;
    period tstzrange;
BEGIN
    IF (was.trial_end > billing.now()) IS NOT TRUE THEN
        PERFORM billing._refuse_status(to_jsonb(was), 'given another end of its trial', 'is in none',
                                       'A trial is given by billing.create_subscription().');
    END IF;
    IF at > billing.now() THEN
        s.trial_end := billing._trial_until(was.trial_start, was.timezone, NULL, at);
        s.anchor := s.trial_end;
        s.current_period_end := s.trial_end;
    ELSE
        s.trial_end := billing.now();
        s.anchor := date_trunc('hour', billing.now(), 'UTC');
        s.status := CASE was.status WHEN 'trialing' THEN 'active' ELSE was.status END;
        period := billing._period_from(s.starts, billing._period_at(s.anchor, s.interval_months, s.timezone, billing.now()));
        s.current_period_start := lower(period);
        s.current_period_end := upper(period);
    END IF;
    PERFORM billing._keep_trial(to_jsonb(s));
    UPDATE billing.subscriptions x
       SET trial_end = s.trial_end, anchor = s.anchor, status = s.status,
           trial_start = CASE WHEN s.trial_start < s.anchor THEN s.trial_start END,     -- one that ends in its first hour was none
           current_period_start = s.current_period_start, current_period_end = s.current_period_end
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO s;
    PERFORM billing._subscription_changed('end_trial', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.end_trial(text, timestamptz) IS
    'ends a tenant''s trial, by default at once: then its first billing period begins with the current hour; an end that is to come, on a whole hour, may also be later than the present one. Raises UB010, UB036, UB038, UB039, UB040';

CREATE FUNCTION billing.connect_stripe(tenant_id text, stripe_test_clock text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    customer billing.billing_customers;
    was billing.subscriptions;
    s billing.subscriptions;
    period tstzrange;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    SELECT * INTO customer FROM billing.billing_customers c WHERE c.tenant_id = connect_stripe.tenant_id FOR UPDATE;
    IF customer.stripe THEN
        RAISE EXCEPTION 'tenant "%" is billed through Stripe already', tenant_id
            USING ERRCODE = 'UB045', HINT = 'Nothing has to be done.';
    END IF;
    BEGIN
        was := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    EXCEPTION WHEN SQLSTATE 'UB036' THEN
        NULL;       -- a tenant without a subscription, too, may become Stripe's customer
    END;
    IF was.paused_at IS NOT NULL OR was.cancel_at_period_end THEN
        PERFORM billing._refuse_status(to_jsonb(was), 'handed to Stripe',
                    CASE WHEN was.cancel_at_period_end THEN 'ends with its period' ELSE 'is paused' END,
                    'Take that back with billing.resume_subscription() first.');
    END IF;
    UPDATE billing.billing_customers c SET stripe = true, stripe_test_clock = connect_stripe.stripe_test_clock
     WHERE c.tenant_id = customer.tenant_id;
    PERFORM billing._audit(c.tenant_id, 'connect_stripe', to_jsonb(customer) - '{name,email}'::text[], to_jsonb(c) - '{name,email}'::text[])
       FROM billing.billing_customers c WHERE c.tenant_id = customer.tenant_id;
    IF was.id IS NULL THEN
        PERFORM billing._wake_worker('stripe');
        RETURN;
    END IF;
    s := was;
    s.status := 'pending';
    s.timezone := 'UTC';
    IF (was.trial_end > billing.now()) IS NOT TRUE THEN
        PERFORM billing._close_stretch(to_jsonb(was), was.anchor);
        s.anchor := date_trunc('hour', billing.now(), 'UTC');
        period := billing._period_from(s.starts, billing._period_at(s.anchor, s.interval_months, s.timezone, billing.now()));
        s.current_period_start := lower(period);
        s.current_period_end := upper(period);
    END IF;
    UPDATE billing.subscriptions x
       SET status = s.status, timezone = s.timezone, anchor = s.anchor, current_period_start = s.current_period_start,
           current_period_end = s.current_period_end
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO s;
    PERFORM billing._subscription_changed('connect_stripe', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.connect_stripe(text, text) IS
    'has a tenant that was billed without Stripe billed through it from the current hour on: its subscription begins a new period then, in UTC, and nothing of before is billed there; a running trial goes on. Raises UB010, UB038, UB040, UB045';
