-- Mode invoice_items: Stripe neither meters the usage nor has a price of it. What a billing period comes to is rated here and
-- becomes an item of an invoice, whatever the metric's kind and aggregation:
--
--   - Each period of a subscription that is billed has a row with the terms of its price (item_periods). Half an hour after
--     its end, while the invoice that ends it is a draft still, what it has come to is billed.
--   - A change of its price, a pause and an end at once close it: what it has come to by then is billed at once, at the terms
--     that go, and what comes later at the new ones, or not at all. Stripe is told of the change only afterwards.
--   - What is billed is a row of late_usage, and so becomes one item at Stripe, whatever is repeated (reconcile_late.sql).
--     Usage that comes later makes the period due again, and the difference another item.

CREATE FUNCTION billing._install_export_items() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.item_periods (
        tenant_id       text COLLATE "C" NOT NULL,
        subscription_id bigint NOT NULL,
        metric          text NOT NULL REFERENCES billing.metrics,
        period_start    timestamptz NOT NULL,       -- of the billing period, of a gauge, too
        period_end      timestamptz NOT NULL,
        terms           jsonb,                      -- of the price in force; null: it is billed no more
        due_at          timestamptz,                -- when to look at it next; null: once late usage makes it due
        PRIMARY KEY (tenant_id, subscription_id, metric, period_start),
        FOREIGN KEY (tenant_id, subscription_id) REFERENCES billing.subscriptions
    );
    CREATE INDEX IF NOT EXISTS item_periods_due ON billing.item_periods (due_at);
    COMMENT ON TABLE billing.item_periods IS
        'the billing periods of metrics with export = ''invoice_items'', and what they are billed at';
END $$;

-- Whether a subscription (a row, passed as JSON) bills its present period: no trial, pause or end, and known to Stripe.
CREATE FUNCTION billing._bills_items(subscription jsonb) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.stripe_subscription_id IS NOT NULL AND s.status IN ('active', 'past_due', 'unpaid', 'canceled')
           AND s.paused_at IS NULL AND s.current_period_start >= s.anchor AND (s.ended_at > s.current_period_start) IS NOT FALSE
      FROM jsonb_populate_record(NULL::billing.subscriptions, $1) s
$$;

-- Makes the rows of the periods that a subscription has begun, also of those that were missed. A period that Stripe has begun later
-- than it was begun here takes the other one's place.
CREATE FUNCTION billing._begin_item_periods(subscription jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, subscription);
BEGIN
    UPDATE billing.item_periods x SET terms = NULL
     WHERE x.tenant_id = s.tenant_id AND x.subscription_id = s.id AND x.terms IS NOT NULL
       AND x.period_start < s.current_period_start AND x.period_end > s.current_period_start;
    WHILE billing._bills_items(subscription) LOOP
        INSERT INTO billing.item_periods (tenant_id, subscription_id, metric, period_start, period_end, terms, due_at)
        SELECT s.tenant_id, s.id, p.metric, lower(n.period), upper(n.period), p.terms, upper(n.period) + interval '30 minutes'
          FROM billing._prices_of(s.tenant_id, s.plan, s.plan_version) p
          JOIN billing.metrics m ON m.name = p.metric AND m.export = 'invoice_items'
          LEFT JOIN LATERAL (
               SELECT x.period_start, x.period_end FROM billing.item_periods x
                WHERE x.tenant_id = s.tenant_id AND x.subscription_id = s.id AND x.metric = p.metric
                ORDER BY x.period_start DESC LIMIT 1) last ON true
         CROSS JOIN LATERAL billing._period_at(s.anchor, s.interval_months, s.timezone,
                       CASE WHEN last.period_start >= s.anchor THEN last.period_end ELSE s.anchor END) y (period)
         CROSS JOIN LATERAL (SELECT CASE WHEN upper(y.period) > s.current_period_start
                                         THEN tstzrange(s.current_period_start, s.current_period_end)
                                         ELSE billing._period_from(s.starts, y.period) END) n (period)
         WHERE (last.period_start < s.current_period_start) IS NOT FALSE;
        EXIT WHEN NOT FOUND;
    END LOOP;
END $$;

-- Takes down that a part of a period is to be an item: one of no amount has nothing to ask Stripe for.
CREATE FUNCTION billing._bill_item(p jsonb, ends timestamptz, quantity numeric, amount numeric) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.late_usage (tenant_id, subscription_id, metric, period_start, period_end, quantity, policy, amount, currency,
                                    noted_at, billed_at)
    SELECT x.tenant_id, x.subscription_id, x.metric, x.period_start, $2, $3, 'invoice_item', $4, x.terms ->> 'currency',
           billing.now(), CASE $4 WHEN 0 THEN billing.now() END
      FROM jsonb_populate_record(NULL::billing.item_periods, $1) x
$$;

-- What a quantity costs at some terms.
CREATE FUNCTION billing._rated(terms jsonb, quantity numeric) RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(sum(r.amount), 0) FROM billing._rate($1, greatest($2, 0)) r
$$;

-- Closes what a change of a subscription, from one row to another, leaves of its present period: where the price of a metric
-- is another one afterwards, or none. With proration_behavior none all of the period is billed at the new one.
CREATE FUNCTION billing._close_item_periods(before jsonb, after jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s billing.subscriptions := jsonb_populate_record(NULL::billing.subscriptions, after);
    -- by Stripe's clock the period may have begun a little later
    at timestamptz := greatest(coalesce(s.ended_at, s.paused_at, billing.now()), (before ->> 'current_period_start')::timestamptz);
    runs boolean := s.ended_at IS NULL AND s.paused_at IS NULL;
    -- of an end that comes from Stripe, Stripe has decided what is billed of it
    bills boolean := s.ended_at IS NULL OR s.end_invoices AND s.stripe_status NOT IN ('canceled', 'incomplete_expired');
    p record;
BEGIN
    IF NOT EXISTS (SELECT FROM billing.metrics m WHERE m.export = 'invoice_items') OR billing._bills_items(before) IS NOT TRUE THEN
        RETURN;
    END IF;
    PERFORM billing._begin_item_periods(before);
    INSERT INTO billing.item_periods (tenant_id, subscription_id, metric, period_start, period_end, due_at)
    SELECT s.tenant_id, s.id, n.metric, s.current_period_start, s.current_period_end, s.current_period_end + interval '30 minutes'
      FROM billing._prices_of(s.tenant_id, s.plan, s.plan_version) n
      JOIN billing.metrics m ON m.name = n.metric AND m.export = 'invoice_items'
     WHERE runs
    ON CONFLICT DO NOTHING;
    FOR p IN
        SELECT x.*, n.terms AS next_terms,
               billing._figure_closed(x.tenant_id, x.metric, tstzrange(x.period_start, x.period_end), at)
               - billing._priced_before(x.tenant_id, x.subscription_id, x.period_start, x.metric) AS quantity
          FROM billing.item_periods x
          LEFT JOIN billing._prices_of(s.tenant_id, s.plan, s.plan_version) n ON n.metric = x.metric AND runs
         WHERE x.tenant_id = s.tenant_id AND x.subscription_id = s.id AND x.period_end > at
           AND x.period_start = (before ->> 'current_period_start')::timestamptz     -- not one that a pause has cut short
           AND x.terms IS DISTINCT FROM n.terms
         ORDER BY x.metric FOR UPDATE OF x
    LOOP
        IF NOT runs OR p.terms IS NULL OR s.proration_behavior <> 'none' THEN
            INSERT INTO billing.price_changes (tenant_id, subscription_id, period_start, metric, changed_at, terms, next_terms, quantity,
                                               proration_behavior)
            VALUES (p.tenant_id, p.subscription_id, p.period_start, p.metric, at, coalesce(p.terms, '{}'), p.next_terms, p.quantity,
                    'create_prorations');
            PERFORM billing._bill_item(to_jsonb(p), at, p.quantity, billing._rated(p.terms, p.quantity))
              WHERE p.terms IS NOT NULL AND bills;
        END IF;
        UPDATE billing.item_periods x SET terms = p.next_terms
         WHERE x.tenant_id = p.tenant_id AND x.subscription_id = p.subscription_id AND x.metric = p.metric
           AND x.period_start = p.period_start;
    END LOOP;
END $$;

-- Bills the periods that are due, the longest due first; returns how many it looked at. A row is locked before its usage is read,
-- so that late usage rolled up meanwhile makes it due once more.
CREATE FUNCTION billing._bill_item_periods(stock int) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    p record;
    noted record;
    used numeric;
    looked_at bigint := 0;
BEGIN
    IF NOT EXISTS (SELECT FROM billing.metrics m WHERE m.export = 'invoice_items') THEN
        RETURN 0;
    END IF;
    PERFORM billing._advance_periods();
    PERFORM billing._begin_item_periods(to_jsonb(s))
       FROM billing.subscriptions s
      WHERE billing._bills_items(to_jsonb(s))
        AND EXISTS (SELECT FROM billing.metrics m JOIN billing.plan_prices y ON y.plan = s.plan AND y.metric = m.name
                     WHERE m.export = 'invoice_items'
                       AND NOT EXISTS (SELECT FROM billing.item_periods x
                                        WHERE x.tenant_id = s.tenant_id AND x.subscription_id = s.id AND x.metric = m.name
                                          AND x.period_start >= s.current_period_start));
    FOR p IN
        SELECT x.* FROM billing.item_periods x WHERE x.due_at <= billing.now()
         ORDER BY x.due_at, x.tenant_id, x.metric LIMIT stock FOR UPDATE SKIP LOCKED
    LOOP
        IF p.terms IS NOT NULL THEN
            used := billing._billable(p.tenant_id, p.metric, tstzrange(p.period_start, p.period_end))
                    - billing._priced_before(p.tenant_id, p.subscription_id, p.period_start, p.metric);
            SELECT coalesce(sum(l.quantity), 0) AS quantity, coalesce(sum(l.amount), 0) AS amount INTO noted
              FROM billing.late_usage l
             WHERE l.tenant_id = p.tenant_id AND l.subscription_id = p.subscription_id AND l.metric = p.metric
               AND l.period_start = p.period_start AND l.period_end = p.period_end;
            PERFORM billing._bill_item(to_jsonb(p), p.period_end, used - noted.quantity, billing._rated(p.terms, used) - noted.amount)
              WHERE (used, billing._rated(p.terms, used)) <> (noted.quantity, noted.amount);
        END IF;
        UPDATE billing.item_periods x SET due_at = NULL
         WHERE x.tenant_id = p.tenant_id AND x.subscription_id = p.subscription_id AND x.metric = p.metric
           AND x.period_start = p.period_start;
        looked_at := looked_at + 1;
    END LOOP;
    RETURN looked_at;
END $$;
