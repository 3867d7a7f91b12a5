-- How credit is spent: on metered usage, never on flat fees; lower priority numbers first, then what expires sooner, then
-- what is older. What a plan includes costs nothing, so credit pays for overage only. docs/credits.md has examples.
--
-- Here that happens once, when a billing period ends, in the order of time: what expired by then is gone, or has rolled
-- over, before. It is valid up to, and not including, the moment at which it expires. A tenant billed through Stripe
-- has its credit spent there (sql/stripe_credits.sql).

-- What credit pays of charges (metric by metric, in that order) at a moment.
CREATE FUNCTION billing._credit_for(own text, charged_in text, charged text[], amounts numeric[], at timestamptz)
RETURNS TABLE (grant_id bigint, name text, metric text, amount numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due numeric[] := amounts;
    g record;
BEGIN
    FOR g IN
        SELECT x.id, coalesce(x.name, x.category || ' credit') AS name, x.metrics, x.balance FROM billing.credit_grants x
         WHERE x.tenant_id = own AND x.balance > 0 AND x.currency = charged_in AND x.voided_at IS NULL
           AND (x.expires_at > _credit_for.at) IS NOT FALSE
         ORDER BY x.priority, x.expires_at, x.created_at, x.id
    LOOP
        FOR i IN 1 .. coalesce(cardinality(charged), 0) LOOP
            CONTINUE WHEN charged[i] <> ALL (g.metrics) OR least(g.balance, due[i]) <= 0;
            grant_id := g.id;
            name := g.name;
            metric := charged[i];
            amount := least(g.balance, due[i]);
            due[i] := due[i] - amount;
            g.balance := g.balance - amount;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;

-- Ends a grant with its expiry: up to rollover_max of what is left begins anew, as a grant of its own. Both are entries
-- of the same transaction, if Stripe's led to it.
CREATE FUNCTION billing._expire_grant(tenant text, credit_grant bigint, left_over numeric, at timestamptz,
                                      stripe_transaction jsonb DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    g billing.credit_grants;
    successor bigint;
    rolled numeric := 0;
BEGIN
    SELECT * INTO STRICT g FROM billing.credit_grants x WHERE x.tenant_id = tenant AND x.id = credit_grant;
    IF g.rollover_times > 0 AND g.voided_at IS NULL THEN
        rolled := least(left_over, g.rollover_max);
    END IF;
    IF billing._credit_entry(tenant, g.id, 'rolled_over', -rolled, at, stripe_transaction => _expire_grant.stripe_transaction) THEN
        INSERT INTO billing.credit_grants AS x (tenant_id, name, amount, currency, category, priority, metrics, created_at,
                expires_at, rollover_max, rollover_for, rollover_times, rolled_over_from)
        VALUES (tenant, g.name, rolled, g.currency, g.category, g.priority, g.metrics, at,
                at + coalesce(g.rollover_for, g.expires_at - g.created_at), g.rollover_max, g.rollover_for,
                g.rollover_times - 1, g.id)
        RETURNING x.id INTO successor;
        PERFORM billing._credit_entry(tenant, successor, 'granted', rolled, at);
    END IF;
    PERFORM billing._credit_entry(tenant, g.id, CASE WHEN g.voided_at IS NULL THEN 'expired' ELSE 'voided' END,
                                  rolled - left_over, at, stripe_transaction => _expire_grant.stripe_transaction,
                                  reason => g.void_reason);
END $$;

-- Expires what has to by a moment, of one tenant; what rolled over may have to, too. The caller has locked the grants.
CREATE FUNCTION billing._expire_credit_until(tenant text, until timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    g record;
BEGIN
    LOOP
        SELECT x.id, x.balance, x.expires_at INTO g FROM billing.credit_grants x
         WHERE x.tenant_id = tenant AND x.balance > 0 AND x.expires_at <= until AND billing._credit_is_here(x.tenant_id, x.id)
         ORDER BY x.expires_at, x.id LIMIT 1;
        EXIT WHEN NOT FOUND;
        PERFORM billing._expire_grant(tenant, g.id, g.balance, g.expires_at);
    END LOOP;
END $$;

-- Expires what has to by now, of all tenants; part of the rollup, which waits for nobody: whom somebody has locked it
-- leaves for the next time, and whose period is over it leaves to _advance_periods().
CREATE FUNCTION billing._expire_credits() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant text;
BEGIN
    FOR tenant IN
        SELECT DISTINCT g.tenant_id FROM billing.credit_grants g
         WHERE g.balance > 0 AND g.expires_at <= billing.now() AND billing._credit_is_here(g.tenant_id, g.id) ORDER BY 1
    LOOP
        PERFORM FROM billing.subscriptions s
          WHERE s.tenant_id = tenant AND s.status NOT IN ('canceled', 'incomplete_expired') FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND AND EXISTS (SELECT FROM billing.subscriptions s WHERE s.tenant_id = tenant
                                               AND s.status NOT IN ('canceled', 'incomplete_expired'));
        CONTINUE WHEN EXISTS (SELECT FROM billing.subscriptions s WHERE s.tenant_id = tenant
                                 AND s.status NOT IN ('canceled', 'incomplete_expired') AND s.current_period_end <= billing.now());
        CONTINUE WHEN (SELECT count(*) FROM billing.credit_grants g WHERE g.tenant_id = tenant AND g.balance > 0)
                    > (SELECT count(*) FROM (SELECT FROM billing.credit_grants g WHERE g.tenant_id = tenant AND g.balance > 0
                                              ORDER BY g.id FOR NO KEY UPDATE SKIP LOCKED) locked);
        PERFORM billing._expire_credit_until(tenant, billing.now());
    END LOOP;
END $$;

-- Spends credit on the periods of a subscription, as it was, that are over by a moment; on the last one up to that moment
-- if the subscription ends or pauses there. Called by whoever moves it on, with the row locked.
CREATE FUNCTION billing._spend_credit(subscription jsonb, until timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, subscription);
    period tstzrange := tstzrange(s.current_period_start, s.current_period_end);
    charged_in text := (SELECT w.terms ->> 'currency' FROM billing._prices_of(s.tenant_id, s.plan, s.plan_version) w WHERE w.metric IS NULL);
    charged text[];
    amounts numeric[];
BEGIN
    IF until <= s.current_period_start
       OR NOT EXISTS (SELECT FROM billing.credit_grants g WHERE g.tenant_id = s.tenant_id AND g.balance > 0)
       OR (SELECT c.stripe FROM billing.billing_customers c WHERE c.tenant_id = s.tenant_id) THEN
        RETURN;
    END IF;
    PERFORM FROM billing.credit_grants g WHERE g.tenant_id = s.tenant_id AND g.balance > 0 ORDER BY g.id FOR NO KEY UPDATE;
    LOOP
        period := tstzrange(lower(period), least(upper(period), until));
        PERFORM billing._expire_credit_until(s.tenant_id, upper(period));
        IF s.status NOT IN ('trialing', 'paused') THEN
            SELECT array_agg(u.metric ORDER BY u.metric), array_agg(u.amount - u.paid ORDER BY u.metric) INTO charged, amounts
              FROM (SELECT w.metric, sum(r.amount) AS amount,
                           (SELECT coalesce(-sum(e.amount), 0) FROM billing.credit_ledger e
                             WHERE e.tenant_id = s.tenant_id AND e.metric = w.metric AND e.period_start = lower(period)) AS paid
                      FROM billing._prices_of(s.tenant_id, s.plan, s.plan_version) w
                     CROSS JOIN LATERAL billing._rate(w.terms, billing._billable(s.tenant_id, w.metric, period)) r
                     WHERE w.metric IS NOT NULL GROUP BY 1) u;
            PERFORM billing._credit_entry(s.tenant_id, c.grant_id, 'applied', -c.amount, upper(period), c.metric, lower(period))
               FROM billing._credit_for(s.tenant_id, charged_in, charged, amounts, upper(period)) c;
        END IF;
        EXIT WHEN s.cancel_at_period_end OR upper(period) = until;
        period := billing._period_at(s.anchor, s.interval_months, s.timezone, upper(period));
        EXIT WHEN upper(period) > until;
        s.status := CASE s.status WHEN 'trialing' THEN 'active' ELSE s.status END;
    END LOOP;
END $$;
