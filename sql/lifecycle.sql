-- The life of a subscription after its creation: change of plan, cancellation, resumption.
--
-- Each is in force here at its commit; what it asks of Stripe is found by comparing (sql/stripe_changes.sql). Anchor and
-- period stay what they are, so usage goes on counting where it did.

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

-- What every change of a subscription brings with it: the audit log, the quotas, and Stripe, where a request that was
-- made for an earlier wish and never sent is made anew.
CREATE FUNCTION billing._subscription_changed(action text, before jsonb, after jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant text := after ->> 'tenant_id';
BEGIN
    PERFORM billing._audit(tenant, action, before, after);
    PERFORM billing._refresh_quotas(tenant);
    IF (SELECT c.stripe FROM billing.billing_customers c WHERE c.tenant_id = tenant) THEN
        DELETE FROM billing.stripe_outbox o
         WHERE o.tenant_id = tenant AND o.kind IN ('subscription_create', 'subscription_update')
           AND o.subject = after ->> 'id' AND o.state = 'waiting' AND o.attempts = 0;
        PERFORM billing._wake_worker('stripe');
    END IF;
END $$;

CREATE FUNCTION billing.update_subscription(tenant_id text, plan text,
                                            proration_behavior text DEFAULT 'create_prorations')
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions;
    present billing.plans;
    wanted billing.plans;
BEGIN
    SELECT * INTO STRICT present FROM billing.plans p WHERE p.name = was.plan;
    SELECT * INTO wanted FROM billing.plans p WHERE p.name = update_subscription.plan;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown plan "%"', plan
            USING ERRCODE = 'UB012', HINT = 'SELECT name FROM billing.plans lists the plans.';
    END IF;
    IF (proration_behavior IN ('create_prorations', 'always_invoice', 'none')) IS NOT TRUE THEN
        RAISE EXCEPTION 'proration behavior "%" is not valid', proration_behavior
            USING ERRCODE = 'UB032', HINT = 'Use create_prorations, always_invoice or none.';
    END IF;
    IF (wanted.interval_months, wanted.currency) <> (was.interval_months, present.currency) THEN
        RAISE EXCEPTION 'plan "%" bills in % every % months, not in % every %', wanted.name, wanted.currency,
                wanted.interval_months, present.currency, was.interval_months
            USING ERRCODE = 'UB032', HINT = 'Cancel the subscription and create another one.';
    END IF;
    IF wanted.name = was.plan THEN
        RETURN;
    END IF;
    UPDATE billing.subscriptions x
       SET plan = wanted.name, proration_behavior = update_subscription.proration_behavior, changed_at = billing.now()
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO s;
    PERFORM billing._subscription_changed('update_subscription', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.update_subscription(text, text, text) IS
    'puts a tenant on another plan of the same interval and currency; its quotas are in force at commit, for the usage of the whole running period, and the worker carries it out at Stripe, which prorates the flat fee as told: create_prorations, always_invoice or none. Raises UB010, UB012, UB032, UB036, UB040';

CREATE FUNCTION billing.cancel_subscription(tenant_id text, at_period_end boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions;
BEGIN
    IF at_period_end IS NOT FALSE THEN
        IF was.cancel_at_period_end THEN
            RETURN;
        END IF;
        UPDATE billing.subscriptions x SET cancel_at_period_end = true, canceled_at = billing.now()
         WHERE x.tenant_id = was.tenant_id AND x.id = was.id
        RETURNING * INTO s;
    ELSE
        UPDATE billing.subscriptions x
           SET status = 'canceled', canceled_at = coalesce(was.canceled_at, billing.now()),
               ended_at = billing.now(), changed_at = billing.now()
         WHERE x.tenant_id = was.tenant_id AND x.id = was.id
        RETURNING * INTO s;
    END IF;
    PERFORM billing._subscription_changed('cancel_subscription', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.cancel_subscription(text, boolean) IS
    'ends a tenant''s subscription with its period, or else at once: then Stripe bills what was used until now, and gives nothing of the flat fee back. Afterwards the tenant has no subscription, and may get another one. Raises UB010, UB036, UB040';

CREATE FUNCTION billing.resume_subscription(tenant_id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, billing._lock_subscription(tenant_id));
    s billing.subscriptions;
BEGIN
    IF NOT was.cancel_at_period_end THEN
        RETURN;
    END IF;
    UPDATE billing.subscriptions x SET cancel_at_period_end = false, canceled_at = NULL
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO s;
    PERFORM billing._subscription_changed('resume_subscription', to_jsonb(was), to_jsonb(s));
END $$;
COMMENT ON FUNCTION billing.resume_subscription(text) IS
    'takes back a cancellation at the period''s end, before that. Raises UB010, UB036, UB040';
