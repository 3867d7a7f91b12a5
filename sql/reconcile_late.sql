-- Late usage: what a billing period comes to after its invoice is final, so that Stripe bills it on none. What becomes
-- of it is a policy, the plan's (plans.late_usage) or the installation's (pg_billing.late_usage):
--
--   ignore         nothing: it stays visible as drift
--   next_period    it is added to what Stripe is told of an hour of the current period, and billed with that
--   invoice_item   the difference it makes to its own period's price becomes an item of the next invoice
--
-- Items also bill all usage of metrics with export = 'invoice_items' (export_items.sql). An item goes on the draft of the
-- subscription's invoice where there is one, else on the next one. Who has no subscription any more gets an invoice for it.
--
-- Difference-driven: what is late is the ledger less what was invoiced less what was late before, taken only from an
-- invoice that has just been fetched. So it is billed once, whatever is repeated.

CREATE FUNCTION billing._install_late_usage() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.late_usage (
        tenant_id              text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        id                     bigint GENERATED ALWAYS AS IDENTITY,
        subscription_id        bigint NOT NULL,
        metric                 text NOT NULL REFERENCES billing.metrics,
        period_start           timestamptz NOT NULL,    -- in which it was used
        period_end             timestamptz NOT NULL,
        quantity               numeric NOT NULL,        -- below zero: it was taken back late
        policy                 text NOT NULL CHECK (policy IN ('next_period', 'invoice_item')),
        hour                   timestamptz,             -- next_period: the hour that carries it
        amount                 numeric,                 -- invoice_item: in minor units
        currency               text,
        stripe_invoice_item_id text,
        stripe_invoice_id      text,                    -- that it is on; null: not known yet
        unattached             boolean NOT NULL DEFAULT false,  -- it is for whatever invoice the customer gets next
        noted_at               timestamptz NOT NULL,
        billed_at              timestamptz,             -- null: it is not at Stripe yet
        PRIMARY KEY (tenant_id, id)
    );
    CREATE INDEX IF NOT EXISTS late_usage_hour ON billing.late_usage (tenant_id, metric, hour);
    CREATE INDEX IF NOT EXISTS late_usage_due ON billing.late_usage (tenant_id, id) WHERE billed_at IS NULL;
    CREATE INDEX IF NOT EXISTS late_usage_item ON billing.late_usage (tenant_id, stripe_invoice_item_id);
    COMMENT ON TABLE billing.late_usage IS
        'usage that no line of its own period''s invoice bills, as it came after that was final or has no meter, and how it is billed';
END $$;

-- The late usage that an hour carries for earlier periods. Of what was told before a change of price Stripe has billed it.
CREATE FUNCTION billing._carried(tenant_id text, metric text, hour timestamptz, price_since timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(l.quantity), 0) FROM billing.late_usage l
     WHERE l.tenant_id = $1 AND l.metric = $2 AND l.hour = $3 AND ($4 IS NULL OR $4 <= $3 OR l.noted_at > $4)
$$;

-- … and a whole period, which so bills it, too.
CREATE FUNCTION billing._late_usage_in(tenant_id text, metric text, period tstzrange) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(l.quantity), 0) FROM billing.late_usage l
     WHERE l.tenant_id = $1 AND l.metric = $2 AND l.hour >= date_trunc('hour', lower($3), 'UTC') AND l.hour < upper($3)
$$;

-- Makes an hour due at Stripe, whatever Stripe has confirmed of it; one without usage, too. With raised rights, because the
-- worker is a superuser, who may not write there directly (extension/direct_writes.hpp).
CREATE FUNCTION billing._send_anew(tenant_id text, metric text, period_start timestamptz, hour timestamptz) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.usage_aggregates AS a (tenant_id, metric, period_start, hour, quantity, events)
    VALUES ($1, $2, $3, $4, 0, 0)
    ON CONFLICT ON CONSTRAINT usage_aggregates_pkey DO UPDATE SET submitted = NULL
$$;

-- The plan and the terms of the price that a period was invoiced at, by its lines.
CREATE FUNCTION billing._invoiced_at(own text, what text, starts timestamptz, ends timestamptz, OUT plan text, OUT terms jsonb)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT p.plan, p.terms
      FROM billing._period_lines($1, $3, $4) l
      JOIN billing._known_prices($1) p ON p.stripe_price_id = l.stripe_price_id
     WHERE l.metric = $2 AND l.finalized_at IS NOT NULL
     ORDER BY l.period_end DESC LIMIT 1
$$;

CREATE FUNCTION billing._invoiced_plan(own text, what text, starts timestamptz, ends timestamptz) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT i.plan FROM billing._invoiced_at($1, $2, $3, $4) i $$;

-- What usage beyond that which is billed costs.
CREATE FUNCTION billing._rated_difference(terms jsonb, billed numeric, used numeric) RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT sum(r.amount) FROM billing._rate($1, greatest($3, 0)) r), 0)
         - coalesce((SELECT sum(r.amount) FROM billing._rate($1, greatest($2, 0)) r), 0)
$$;

CREATE FUNCTION billing._late_policy(plan text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT p.late_usage FROM billing.plans p WHERE p.name = $1), current_setting('pg_billing.late_usage'))
$$;

-- Takes down what is late of a period whose invoices have just been fetched, by the policy.
CREATE FUNCTION billing._note_late_usage(own text, starts timestamptz, ends timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    i record;
    plan text;
    policy text;
    live record;
    at timestamptz := date_trunc('hour', billing.now(), 'UTC');
BEGIN
    PERFORM FROM billing.billing_customers c WHERE c.tenant_id = own FOR NO KEY UPDATE;
    FOR i IN
        SELECT x.*, x.expected - x.invoiced AS quantity FROM billing._invoiced(own, starts, ends) x WHERE x.expected <> x.invoiced
    LOOP
        plan := billing._invoiced_plan(own, i.metric, starts, ends);
        policy := billing._late_policy(plan);
        CONTINUE WHEN plan IS NULL OR policy = 'ignore';
        IF policy = 'invoice_item' THEN
            INSERT INTO billing.late_usage (tenant_id, subscription_id, metric, period_start, period_end, quantity, policy,
                                            amount, currency, noted_at, billed_at)
            SELECT own, x.subscription_id, i.metric, starts, ends, i.quantity, policy, r.amount, p.terms ->> 'currency', billing.now(),
                   CASE r.amount WHEN 0 THEN billing.now() END      -- nothing to ask Stripe for
              FROM billing._invoiced_at(own, i.metric, starts, ends) p
              CROSS JOIN billing._rated_difference(p.terms, i.priced - i.quantity, i.priced) r (amount)
              CROSS JOIN billing._period_of(own, starts) x;
            CONTINUE;
        END IF;
        -- The hour that it is in when it is noted: Stripe has the metric there, or it waits until it has.
        SELECT x.id, q.billing_period INTO live
          FROM billing.subscriptions x
          JOIN billing.subscription_items y ON y.tenant_id = x.tenant_id AND y.subscription_id = x.id AND y.metric = i.metric
          CROSS JOIN LATERAL billing._quota_in_force(own, i.metric, billing.now()) q
         WHERE x.tenant_id = own AND x.status IN ('active', 'past_due') AND lower(q.billing_period) >= ends;
        -- what an hour carries is part of a total: a meter that adds has none
        CONTINUE WHEN NOT FOUND OR (SELECT billing._meter_adds(m.export) FROM billing.metrics m WHERE m.name = i.metric);
        INSERT INTO billing.late_usage (tenant_id, subscription_id, metric, period_start, period_end, quantity, policy, hour,
                                        noted_at)
        VALUES (own, live.id, i.metric, starts, ends, i.quantity, policy, at, billing.now());
    END LOOP;
END $$;

-- The same for all periods on an invoice.
CREATE FUNCTION billing._note_late_usage_on(own text, invoice text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._note_late_usage($1, lower(x.period), upper(x.period))
      FROM (SELECT DISTINCT p.period, s.ended_at
              FROM billing.invoice_lines l
              JOIN billing.invoices i USING (tenant_id, stripe_invoice_id)
              JOIN billing.subscriptions s ON s.tenant_id = i.tenant_id AND s.stripe_subscription_id = i.stripe_subscription_id
             CROSS JOIN billing._subscription_period(s.tenant_id, s.id, l.period_start) p (period)
             WHERE l.tenant_id = $1 AND l.stripe_invoice_id = $2 AND l.metric IS NOT NULL AND i.finalized_at IS NOT NULL) x
     WHERE least(upper(x.period), x.ended_at) <= billing.now()
$$;

-- Usage of a period that is over has reached Stripe, or was refused: its invoices are fetched anew if they lack it.
CREATE FUNCTION billing._look_for_late_usage(own text, what text, starts timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    period tstzrange;
BEGIN
    SELECT p.period INTO period FROM billing._period_of(own, starts) p;
    IF period IS NULL OR upper(period) > billing.now()
       OR NOT EXISTS (SELECT FROM billing._invoiced(own, lower(period), upper(period)) x
                       WHERE x.metric = what AND x.expected <> x.invoiced
                         AND billing._late_policy(billing._invoiced_plan(own, what, lower(period), upper(period))) <> 'ignore') THEN
        RETURN;
    END IF;
    PERFORM billing._stripe_enqueue(own, 'invoice_fetch', i.stripe_invoice_id, 'GET', '/v1/invoices/' || i.stripe_invoice_id, '{}')
       FROM billing.invoices i
      WHERE i.tenant_id = own
        AND i.stripe_invoice_id IN (SELECT l.stripe_invoice_id FROM billing._period_lines(own, lower(period), upper(period)) l
                                     WHERE l.metric = what)
        AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                         WHERE o.tenant_id = own AND o.kind = 'invoice_fetch' AND o.subject = i.stripe_invoice_id
                           AND o.state IN ('waiting', 'sending'));
END $$;

-- Whether an item may be planned: no request for it is under way, and none was refused.
CREATE FUNCTION billing._late_item_free(tenant_id text, id bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._stripe_free($1, 'late_item_create', $2::text) AND billing._stripe_free($1, 'late_item_find', $2::text)
$$;

-- Makes what is late due: the hours that carry it, once no total without it is under way, and items: one for each, found
-- by our metadata where an attempt may have made it already.
CREATE FUNCTION billing._stripe_plan_late_usage() RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH carried AS (
        UPDATE billing.late_usage l SET billed_at = billing.now()
         WHERE l.billed_at IS NULL AND l.policy = 'next_period'
           AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                            WHERE o.tenant_id = l.tenant_id AND o.kind = 'meter_event' AND o.subject = l.metric
                              AND o.state IN ('waiting', 'sending'))
        RETURNING billing._send_anew(l.tenant_id, l.metric, (SELECT lower(q.billing_period)
                      FROM billing._quota_in_force(l.tenant_id, l.metric, l.hour) q), l.hour)
    ), requests AS (
        SELECT billing._stripe_enqueue(l.tenant_id, 'late_item_create', l.id::text, 'POST', '/v1/invoiceitems',
                   jsonb_strip_nulls(jsonb_build_object('customer', c.stripe_customer_id, 'amount', l.amount, 'currency', l.currency,
                       'invoice', d.draft, 'subscription',
                       CASE WHEN d.draft IS NULL AND s.stripe_status NOT IN ('canceled', 'incomplete_expired')
                                 AND NOT (s.ended_at IS NOT NULL AND s.stripe_cancels)     -- by itself, of which we may not have heard yet
                            THEN s.stripe_subscription_id END,
                       'description', format('%s × %s, used until %s', trim_scale(l.quantity), m.display_name,
                                             to_char(l.period_end AT TIME ZONE 'UTC', 'YYYY-MM-DD')),
                       'period', jsonb_build_object('start', extract(epoch FROM l.period_start)::bigint,
                                                    'end', extract(epoch FROM l.period_end)::bigint),
                       'metadata', jsonb_build_object('tenant_id', l.tenant_id, 'late_usage_id', l.id::text))))
          FROM billing.late_usage l
          JOIN billing.metrics m ON m.name = l.metric
          JOIN billing.billing_customers c ON c.tenant_id = l.tenant_id
          JOIN billing.subscriptions s ON s.tenant_id = l.tenant_id AND s.id = l.subscription_id
          LEFT JOIN LATERAL (
               SELECT i.stripe_invoice_id AS draft FROM billing.invoices i
                WHERE i.tenant_id = l.tenant_id AND i.stripe_subscription_id = s.stripe_subscription_id AND i.status = 'draft'
                ORDER BY i.created_at DESC LIMIT 1) d ON true
         WHERE l.billed_at IS NULL AND l.policy = 'invoice_item' AND billing._late_item_free(l.tenant_id, l.id)
           -- whether it is a draft still is just being asked
           AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                            WHERE o.tenant_id = l.tenant_id AND o.kind = 'invoice_fetch' AND o.subject = d.draft
                              AND o.state IN ('waiting', 'sending'))
    ), invoices AS (
        SELECT billing._stripe_enqueue(c.tenant_id, 'item_invoice_create', l.latest::text, 'POST', '/v1/invoices',
                   jsonb_strip_nulls(jsonb_build_object('customer', c.stripe_customer_id, 'auto_advance', true,
                       'collection_method', s.collection_method, 'days_until_due', s.days_until_due,
                       'pending_invoice_items_behavior', 'include', 'metadata', jsonb_build_object('tenant_id', c.tenant_id))))
          FROM (SELECT x.tenant_id, max(x.id) AS latest, max(x.subscription_id) AS subscription_id FROM billing.late_usage x
                 WHERE x.unattached GROUP BY 1) l
          JOIN billing.billing_customers c ON c.tenant_id = l.tenant_id
          JOIN billing.subscriptions s ON s.tenant_id = l.tenant_id AND s.id = l.subscription_id
         WHERE NOT EXISTS (SELECT FROM billing.subscriptions n
                            WHERE n.tenant_id = l.tenant_id AND n.status NOT IN ('canceled', 'incomplete_expired'))
           -- others that are on their way are to be on it, too
           AND NOT EXISTS (SELECT FROM billing.late_usage o
                            WHERE o.tenant_id = l.tenant_id AND o.billed_at IS NULL AND o.policy = 'invoice_item'
                              AND o.noted_at > billing.now() - interval '1 hour')
           AND billing._stripe_free(l.tenant_id, 'item_invoice_create', l.latest::text)
    )
    SELECT (SELECT count(*) FROM requests) + (SELECT count(*) FROM carried) + (SELECT count(*) FROM invoices)
$$;

-- Takes the item that was made, or a page of those among which it may be. Where the invoice that it was to go on is no draft any
-- more (invoice_not_editable), that is fetched, and the item goes on the next one.
CREATE FUNCTION billing._apply_late_item(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    item jsonb := response;
BEGIN
    IF response ? 'error' THEN
        PERFORM billing._stripe_enqueue(r.tenant_id, 'invoice_fetch', r.params ->> 'invoice', 'GET', '/v1/invoices/' || (r.params ->> 'invoice'), '{}');
        RETURN;
    END IF;
    IF r.kind = 'late_item_find' THEN
        item := (SELECT d FROM jsonb_array_elements(response -> 'data') d
                  WHERE d #>> '{metadata,late_usage_id}' = r.subject AND d #>> '{metadata,tenant_id}' = r.tenant_id);
        IF item IS NULL AND (response ->> 'has_more')::boolean THEN
            PERFORM billing._stripe_enqueue(r.tenant_id, r.kind, r.subject, 'GET', r.path,
                        r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'));
        END IF;
    END IF;
    UPDATE billing.late_usage l
       SET stripe_invoice_item_id = item ->> 'id', stripe_invoice_id = item ->> 'invoice', billed_at = billing.now(),
           unattached = item ->> 'invoice' IS NULL AND item #>> '{parent,subscription_details,subscription}' IS NULL
     WHERE l.tenant_id = r.tenant_id AND l.id::text = r.subject AND l.billed_at IS NULL AND item IS NOT NULL;
END $$;
