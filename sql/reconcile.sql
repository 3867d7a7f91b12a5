-- Reconciliation: proof that the ledger, what was sent, what Stripe counts and what it invoiced are the same, and a list
-- of where they are not (billing.stripe_drift).
--
-- A reconciliation is a row, its steps are rows, and what it reads of Stripe are requests in stripe_outbox like any
-- others: it goes on where it was, whatever was restarted meanwhile. Steps, for each tenant and billing period:
--
--   ledger     the events once more, against usage_aggregates and usage_quotas; reads nothing of Stripe
--   meter      what was sent of a metric's closed hours, against Stripe's summaries: first the total, one read; only where
--              that differs, or by_hour is wanted, hour by hour; of what has one figure per period, that one
--   invoices   a period that is over, against the lines of its final invoices; reads only where the stored ones differ
--
-- Stripe's summaries lag behind. So an hour is closed only once it is pg_billing.reconcile_settle old, and a difference is
-- looked at again, a twelfth of that later, before it counts. Reads keep to pg_billing.reconcile_reads a day.

CREATE FUNCTION billing._install_reconcile() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.reconciliations (
        id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        only_tenant text COLLATE "C",           -- null: all
        period      text NOT NULL,              -- as it was asked for
        by_hour     boolean NOT NULL,
        steps       bigint NOT NULL,
        started_at  timestamptz NOT NULL,
        finished_at timestamptz                 -- null: under way
    );
    COMMENT ON TABLE billing.reconciliations IS 'every reconciliation; what those under way still have to do is in reconcile_steps';

    CREATE TABLE IF NOT EXISTS billing.reconcile_steps (
        tenant_id         text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        reconciliation_id bigint NOT NULL REFERENCES billing.reconciliations,
        kind              text NOT NULL CHECK (kind IN ('ledger', 'meter', 'invoices')),
        metric            text NOT NULL,        -- '': all
        subscription_id   bigint,
        starts            timestamptz NOT NULL, -- the billing period
        ends              timestamptz NOT NULL,
        until             timestamptz NOT NULL, -- the end of its closed hours
        state             text NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'asked', 'done', 'failed')),
        due_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
        looks             int NOT NULL DEFAULT 0,   -- at Stripe, that found a difference
        read              jsonb NOT NULL DEFAULT '{}',  -- of the present look: Stripe's hours so far
        cursor            text,                     -- … and where its next page begins
        error             text,
        PRIMARY KEY (tenant_id, reconciliation_id, kind, metric, starts)
    );
    CREATE INDEX IF NOT EXISTS reconcile_steps_open ON billing.reconcile_steps (reconciliation_id, due_at)
        WHERE state IN ('due', 'asked');
    COMMENT ON TABLE billing.reconcile_steps IS 'what reconciliations have to do, and how far they are';

    CREATE TABLE IF NOT EXISTS billing.drift (
        tenant_id         text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        id                bigint GENERATED ALWAYS AS IDENTITY,
        reconciliation_id bigint NOT NULL,      -- that saw it last
        metric            text NOT NULL,
        kind              text NOT NULL CHECK (kind IN ('aggregate', 'quota', 'unsent', 'stripe', 'invoice')),
        period_start      timestamptz NOT NULL,
        hour              timestamptz NOT NULL, -- of a whole period: its start
        ledger            numeric,
        aggregated        numeric,
        sent              numeric,
        stripe            numeric,
        invoiced          numeric,
        found_at          timestamptz NOT NULL,
        repaired_at       timestamptz,          -- by repair(), or found to be gone
        repair            text,
        PRIMARY KEY (tenant_id, id)
    );
    CREATE UNIQUE INDEX IF NOT EXISTS drift_open ON billing.drift (tenant_id, metric, kind, period_start, hour)
        WHERE repaired_at IS NULL;
    COMMENT ON TABLE billing.drift IS 'every difference that a reconciliation found, and what became of it';
END $$;

-- How long a closed hour has to settle, and how long a difference waits for its second look.
CREATE FUNCTION billing._settle_delay() RETURNS interval
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT billing._duration('pg_billing.reconcile_settle') $$;

-- The period of a subscription around a time, whether it is live or not.
CREATE FUNCTION billing._subscription_period(tenant_id text, subscription_id bigint, at timestamptz) RETURNS tstzrange
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN f.anchor IS NOT NULL THEN tstzrange(lower(y.period), least(upper(y.period), f.ends))
                WHEN f.starts IS NOT NULL THEN tstzrange(f.starts, f.ends)
                ELSE billing._period_from(s.starts, billing._period_at(s.anchor, s.interval_months, s.timezone, $3)) END
      FROM billing.subscriptions s
      LEFT JOIN billing.subscription_stretches f
             ON f.tenant_id = s.tenant_id AND f.subscription_id = s.id AND f.starts <= $3 AND f.ends > $3
      LEFT JOIN LATERAL billing._period_at(f.anchor, s.interval_months, f.timezone, $3) y (period) ON true
     WHERE s.tenant_id = $1 AND s.id = $2
$$;

-- The subscription that a tenant had at a time, and its period then.
CREATE FUNCTION billing._period_of(tenant_id text, at timestamptz) RETURNS TABLE (subscription_id bigint, period tstzrange)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.id, billing._subscription_period(s.tenant_id, s.id, $2)
      FROM billing.subscriptions s
     WHERE s.tenant_id = $1 AND s.starts <= $2 AND (s.ended_at IS NULL OR greatest(s.ended_at, s.starts + interval '1 second') > $2)
     ORDER BY s.id DESC LIMIT 1
$$;

CREATE FUNCTION billing.reconcile(period text DEFAULT 'previous', tenant_id text DEFAULT NULL, by_hour boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own text := coalesce(tenant_id, billing.current_tenant());
    meant timestamptz := billing.now();
    closed timestamptz := date_trunc('hour', billing.now() - billing._settle_delay(), 'UTC');
    run_id bigint;
    planned bigint;
BEGIN
    IF own IS NOT NULL THEN
        PERFORM billing._check_tenant(own);
    END IF;
    IF period IS NULL OR period NOT IN ('current', 'previous') THEN
        BEGIN
            meant := period::timestamptz;
        EXCEPTION WHEN data_exception THEN
            meant := NULL;
        END;
        IF meant IS NULL THEN
            RAISE EXCEPTION 'period "%" is not valid', period
                USING ERRCODE = 'UB032', HINT = 'Use ''current'', ''previous'' or a time within the wanted period.';
        END IF;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('pg_billing.reconcile'));
    SELECT r.id INTO run_id FROM billing.reconciliations r
     WHERE r.finished_at IS NULL AND (r.only_tenant, r.period, r.by_hour)
           IS NOT DISTINCT FROM (own, reconcile.period, coalesce(reconcile.by_hour, false));
    IF FOUND THEN
        RETURN run_id;
    END IF;
    INSERT INTO billing.reconciliations (only_tenant, period, by_hour, steps, started_at)
    VALUES (own, reconcile.period, coalesce(reconcile.by_hour, false), 0, clock_timestamp())
    RETURNING id INTO run_id;
    WITH subscribed AS (
        SELECT s.tenant_id, s.id AS subscription_id, s.stripe_subscription_id, p.span
          FROM billing.subscriptions s
         CROSS JOIN LATERAL (
               SELECT billing._subscription_period(s.tenant_id, s.id, CASE WHEN period <> 'previous' THEN meant
                   ELSE lower(billing._subscription_period(s.tenant_id, s.id, meant)) - interval '1 microsecond' END) AS span) p
         WHERE (own IS NULL OR s.tenant_id = own) AND upper(p.span) > s.created_at
           AND (s.ended_at IS NULL OR lower(p.span) < s.ended_at)
    ), periods AS (
        SELECT * FROM subscribed
        UNION ALL
        -- who had no subscription counts by the month
        SELECT c.tenant_id, NULL, NULL, billing._period_at(m.first, 1, c.timezone, CASE WHEN period <> 'previous' THEN meant
                   ELSE lower(billing._period_at(m.first, 1, c.timezone, meant)) - interval '1 microsecond' END)
          FROM billing.billing_customers c
         CROSS JOIN LATERAL (SELECT timestamp '2000-01-01' AT TIME ZONE c.timezone AS first) m
         WHERE (own IS NULL OR c.tenant_id = own)
           AND NOT EXISTS (SELECT FROM subscribed s WHERE s.tenant_id = c.tenant_id)
    ), steps AS (
        INSERT INTO billing.reconcile_steps (tenant_id, reconciliation_id, kind, metric, subscription_id, starts, ends, until)
        SELECT p.tenant_id, run_id, w.kind, w.metric, p.subscription_id, lower(p.span), upper(p.span),
               least(closed, upper(p.span))
          FROM periods p
          CROSS JOIN LATERAL (
               SELECT 'ledger' AS kind, '' AS metric
               UNION ALL
               SELECT 'meter', m.name
                 FROM billing.metrics m
                WHERE p.stripe_subscription_id IS NOT NULL AND closed > lower(p.span)
                  AND m.stripe_meter_id IS NOT NULL
                  AND (EXISTS (SELECT FROM billing.subscription_items i
                                WHERE i.tenant_id = p.tenant_id AND i.subscription_id = p.subscription_id AND i.metric = m.name)
                       OR EXISTS (SELECT FROM billing.usage_aggregates a
                                   WHERE a.tenant_id = p.tenant_id AND a.metric = m.name AND a.period_start = lower(p.span)
                                     AND a.submitted IS NOT NULL))
               UNION ALL
               SELECT 'invoices', '' WHERE p.stripe_subscription_id IS NOT NULL AND closed >= upper(p.span)) w
        ON CONFLICT DO NOTHING      -- a subscription that follows another in the same period
        RETURNING *
    )
    SELECT count(*) INTO planned FROM steps;
    UPDATE billing.reconciliations r SET steps = planned WHERE r.id = run_id;
    PERFORM billing._wake_worker('stripe');
    RETURN run_id;
END $$;
COMMENT ON FUNCTION billing.reconcile(text, text, boolean) IS
    'has the worker compare ledger, aggregates, what was sent, Stripe''s summaries and invoice lines, of one tenant or of all, for the billing period ''current'', ''previous'' or around a time; by_hour reads every hour of Stripe''s even where the total agrees. Returns the id in billing.reconciliations, of the one under way if there is one; run_stripe_sync() waits for it, billing.stripe_drift has what it finds. Raises UB010, UB032, UB040';

-- How many reads are left of today's allowance.
CREATE FUNCTION billing._reads_left() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN s.a_day < 0 THEN 1000000
           ELSE greatest(0, s.a_day - (SELECT coalesce(sum(greatest(o.attempts, 1)), 0)
                                         FROM billing.stripe_outbox o
                                        WHERE o.kind IN ('meter_summary', 'invoice_list')
                                          AND o.created_at > clock_timestamp() - interval '24 hours')) END
      FROM (SELECT current_setting('pg_billing.reconcile_reads')::int AS a_day) s
$$;

-- Asks Stripe for what a step needs next. The tenant's own subject keeps one step from being asked twice.
CREATE FUNCTION billing._reconcile_ask(step jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s billing.reconcile_steps := jsonb_populate_record(NULL::billing.reconcile_steps, step);
    customer text := (SELECT c.stripe_customer_id FROM billing.billing_customers c WHERE c.tenant_id = s.tenant_id);
    by_hour boolean := billing._by_hour(s.metric)
                       AND (s.looks > 0 OR (SELECT r.by_hour FROM billing.reconciliations r WHERE r.id = s.reconciliation_id));
BEGIN
    PERFORM billing._stripe_enqueue(s.tenant_id, w.kind, concat_ws(' ', s.reconciliation_id, nullif(s.metric, ''),
                                        extract(epoch FROM s.starts)::bigint), 'GET', w.path,
                w.params || jsonb_strip_nulls(jsonb_build_object('customer', customer, 'limit', 100, 'starting_after', s.cursor)),
                jsonb_build_object('reconciliation', s.reconciliation_id, 'kind', s.kind, 'metric', s.metric,
                                   'starts', s.starts, 'by_hour', by_hour))
       FROM (SELECT 'meter_summary' AS kind, format('/v1/billing/meters/%s/event_summaries', m.stripe_meter_id) AS path,
                    jsonb_build_object('start_time', extract(epoch FROM date_trunc('hour', s.starts, 'UTC'))::bigint,
                                       'end_time', extract(epoch FROM s.until)::bigint)
                    || CASE WHEN by_hour THEN '{"value_grouping_window": "hour"}'::jsonb ELSE '{}' END AS params
               FROM billing.metrics m WHERE s.kind = 'meter' AND m.name = s.metric
             UNION ALL
             SELECT 'invoice_list', '/v1/invoices', jsonb_build_object('subscription', x.stripe_subscription_id,
                        'created', jsonb_build_object('gte', extract(epoch FROM s.starts)::bigint))
               FROM billing.subscriptions x
              WHERE s.kind = 'invoices' AND x.tenant_id = s.tenant_id AND x.id = s.subscription_id) w;
    UPDATE billing.reconcile_steps x SET state = 'asked'
     WHERE (x.tenant_id, x.reconciliation_id, x.kind, x.metric, x.starts)
         = (s.tenant_id, s.reconciliation_id, s.kind, s.metric, s.starts);
END $$;

-- Does what steps can do by themselves and asks for the rest, as far as the allowance goes; returns how many moved on.
CREATE FUNCTION billing._stripe_plan_reconcile() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    every interval := billing._duration('pg_billing.reconcile_interval');
    reads bigint;
    moved bigint := 0;
    s billing.reconcile_steps;
BEGIN
    IF every > interval '0'
       AND NOT EXISTS (SELECT FROM billing.reconciliations r
                        WHERE r.only_tenant IS NULL AND (r.finished_at IS NULL OR r.started_at > clock_timestamp() - every)) THEN
        PERFORM billing.reconcile(p) FROM unnest('{previous,current}'::text[]) p;
    END IF;
    IF NOT EXISTS (SELECT FROM billing.reconciliations r WHERE r.finished_at IS NULL) THEN
        RETURN 0;
    END IF;
    reads := billing._reads_left();
    FOR s IN
        SELECT x.* FROM billing.reconcile_steps x
         WHERE x.state = 'due' AND x.due_at <= clock_timestamp() AND (x.kind <> 'meter' OR reads > 0)
         ORDER BY x.reconciliation_id, x.looks DESC, x.tenant_id, x.kind, x.metric
         LIMIT 100 FOR UPDATE SKIP LOCKED
    LOOP
        IF s.kind = 'ledger' THEN
            PERFORM billing._reconcile_ledger(to_jsonb(s));
        ELSIF s.kind <> 'invoices' OR NOT billing._reconcile_invoices(to_jsonb(s)) THEN
            CONTINUE WHEN reads = 0;
            PERFORM billing._reconcile_ask(to_jsonb(s));
            reads := reads - 1;
        END IF;
        moved := moved + 1;
    END LOOP;
    UPDATE billing.reconciliations r SET finished_at = clock_timestamp()
     WHERE r.finished_at IS NULL
       AND NOT EXISTS (SELECT FROM billing.reconcile_steps x
                        WHERE x.reconciliation_id = r.id AND x.state IN ('due', 'asked'));
    RETURN moved;
END $$;
