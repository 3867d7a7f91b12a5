-- The upcoming invoice as it is rated here, beside Stripe's own preview of it, line by line. A preview has no effect at
-- Stripe, and lags behind usage: where lines differ the reason is told, as far as it is known.

CREATE FUNCTION billing._install_invoice_preview() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.invoice_comparisons (
        tenant_id       text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        ordinal         int NOT NULL,
        metric          text,               -- null: the flat fee, or a line made elsewhere
        description     text,
        quantity        numeric,            -- as rated here; null: the line is Stripe's alone
        stripe_quantity numeric,            -- null: the line is ours alone
        amount          numeric,
        stripe_amount   numeric,
        unsubmitted     numeric NOT NULL,   -- usage of the metric that Stripe does not have yet
        difference      text,               -- why; null: there is none
        compared_at     timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, ordinal)
    );
    COMMENT ON TABLE billing.invoice_comparisons IS
        'the upcoming invoice of each tenant as rated here and as Stripe previews it, as of the last compare_upcoming_invoice()';
END $$;

CREATE FUNCTION billing.compare_upcoming_invoice(tenant_id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subscription text;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    SELECT s.stripe_subscription_id INTO subscription FROM billing.subscriptions s
     WHERE s.tenant_id = compare_upcoming_invoice.tenant_id AND s.status NOT IN ('canceled', 'incomplete_expired')
       AND s.stripe_status NOT IN ('canceled', 'incomplete_expired');
    IF subscription IS NULL THEN
        RAISE EXCEPTION 'tenant "%" has no subscription at Stripe', tenant_id
            USING ERRCODE = 'UB036', HINT = 'Wait until the worker has made it: see billing.stripe_waiting.';
    END IF;
    IF NOT EXISTS (SELECT FROM billing.stripe_outbox o
                    WHERE o.tenant_id = compare_upcoming_invoice.tenant_id
                      AND o.kind IN ('invoice_preview', 'invoice_preview_lines') AND o.state IN ('waiting', 'sending')) THEN
        PERFORM billing._stripe_enqueue(tenant_id, 'invoice_preview', subscription, 'POST', '/v1/invoices/create_preview',
                                        jsonb_build_object('subscription', subscription));
    END IF;
    PERFORM billing._wake_worker('stripe');
END $$;
COMMENT ON FUNCTION billing.compare_upcoming_invoice(text) IS
    'has the worker ask for Stripe''s preview of a tenant''s upcoming invoice and compare it with get_upcoming_invoice(); billing.invoice_comparisons has the result. Raises UB010, UB036, UB040';

-- Compares all lines of a preview with ours of now. The n-th line of a metric's usage is the n-th here, too: a tier each.
CREATE FUNCTION billing._compare_preview(own text, stripe_lines jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM billing.invoice_comparisons c WHERE c.tenant_id = own;
    WITH stripe AS (
        SELECT x.line, x.n, m.metric, coalesce(x.line ->> 'quantity_decimal', x.line ->> 'quantity')::numeric AS quantity,
               CASE WHEN (x.line #>> '{parent,subscription_item_details,proration}')::boolean THEN 'a change of plan, prorated'
                    WHEN x.line #>> '{parent,type}' = 'invoice_item_details' THEN 'an invoice item'
                    -- billed when its price went
                    WHEN m.metric IS NOT NULL AND (x.line #>> '{period,end}')::bigint < max((x.line #>> '{period,end}')::bigint)
                         OVER (PARTITION BY m.metric) THEN 'used at the price before' END AS extra
          FROM jsonb_array_elements(stripe_lines) WITH ORDINALITY x (line, n)
         CROSS JOIN LATERAL billing._line_metric(own, x.line) m (metric)
    ), theirs AS (
        SELECT s.*, row_number() OVER (PARTITION BY s.metric, s.extra ORDER BY s.n) AS nth FROM stripe s
    ), ours AS (
        SELECT i.*, row_number() OVER (PARTITION BY i.metric, i.extra ORDER BY i.n) AS nth
          FROM (SELECT x.*, CASE WHEN x.kind = 'proration' THEN 'a change of plan, prorated'
                                 WHEN x.kind = 'usage' AND x.period_end < max(x.period_end) OVER (PARTITION BY x.metric, x.kind)
                                 THEN 'used at the price before' END AS extra
                  FROM billing._invoice(own, false) WITH ORDINALITY x (metric, tier, description, quantity, unit_amount, amount, currency,
                                                                       period_start, period_end, kind, n)) i
    ), lines AS (
        SELECT coalesce(o.metric, t.metric) AS metric, coalesce(o.description, t.line ->> 'description') AS description,
               o.quantity, t.quantity AS stripe_quantity, o.amount, (t.line ->> 'amount')::numeric AS stripe_amount,
               coalesce(o.extra, t.extra) AS extra,
               o.nth AS here, t.nth AS there, coalesce(u.unsubmitted, 0) AS unsubmitted, u.kind, u.by_item,
               row_number() OVER (ORDER BY o.n NULLS LAST, t.n) AS ordinal
          FROM ours o
          FULL JOIN theirs t ON (t.metric, t.extra) IS NOT DISTINCT FROM (o.metric, o.extra) AND t.nth = o.nth
          LEFT JOIN LATERAL (
               SELECT m.kind, m.export = 'invoice_items' AS by_item, billing._billable(own, m.name, q.billing_period)
                      - coalesce((SELECT sum(a.submitted) FROM billing.usage_aggregates a
                                   WHERE a.tenant_id = own AND a.metric = m.name AND a.period_start = lower(q.billing_period)), 0)
                          AS unsubmitted
                 FROM billing.metrics m, billing._quota_in_force(own, NULL, billing.now()) q
                WHERE m.name = coalesce(o.metric, t.metric)) u ON true
    )
    INSERT INTO billing.invoice_comparisons (tenant_id, ordinal, metric, description, quantity, stripe_quantity, amount,
                                             stripe_amount, unsubmitted, difference, compared_at)
    SELECT own, l.ordinal, l.metric, l.description, l.quantity, l.stripe_quantity, l.amount, l.stripe_amount,
           trim_scale(l.unsubmitted),
           CASE WHEN l.here IS NULL THEN coalesce(l.extra, 'only at Stripe')
                WHEN (l.quantity, l.amount) IS NOT DISTINCT FROM (l.stripe_quantity, l.stripe_amount) THEN NULL
                WHEN l.extra IS NOT NULL THEN l.extra
                WHEN l.by_item THEN 'an invoice item, once the period is over'
                WHEN l.there IS NULL AND l.unsubmitted = 0 THEN 'only here'
                WHEN l.kind = 'gauge' THEN 'Stripe has the level that was submitted last'
                WHEN l.unsubmitted <> 0 THEN 'usage that is not submitted yet'
                ELSE 'unexplained' END, billing.now()
      FROM lines l;
END $$;

-- Takes a preview, or further pages of its lines; what came before is kept with the request.
CREATE FUNCTION billing._apply_preview(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    page jsonb := CASE r.kind WHEN 'invoice_preview' THEN response -> 'lines' ELSE response END;
    lines jsonb := coalesce(r.detail -> 'lines', '[]') || (page -> 'data');
BEGIN
    IF (page ->> 'has_more')::boolean THEN
        PERFORM billing._stripe_enqueue(r.tenant_id, 'invoice_preview_lines', r.subject, 'GET',
                    CASE r.kind WHEN 'invoice_preview' THEN format('/v1/invoices/%s/lines', response ->> 'id') ELSE r.path END,
                    jsonb_build_object('limit', 100, 'starting_after', page #>> '{data,-1,id}'),
                    jsonb_build_object('lines', lines));
    ELSE
        PERFORM billing._compare_preview(r.tenant_id, lines);
    END IF;
END $$;
