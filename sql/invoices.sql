-- Invoices as Stripe has them, with their lines: stored whenever one is fetched, which a webhook leads to, or
-- refresh_invoice(). Money is in the currency's minor unit.

CREATE FUNCTION billing._install_invoices() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.invoices (
        tenant_id                  text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        stripe_invoice_id          text NOT NULL,
        stripe_subscription_id     text,                 -- null: it is of none
        number                     text,
        status                     text NOT NULL,
        billing_reason             text,
        currency                   text NOT NULL,
        subtotal                   numeric NOT NULL,
        total_taxes                numeric NOT NULL DEFAULT 0,     -- the sum of all
        total                      numeric NOT NULL,
        amount_due                 numeric NOT NULL,
        amount_paid                numeric NOT NULL,
        amount_remaining           numeric NOT NULL,
        period_start               timestamptz,
        period_end                 timestamptz,
        due_date                   timestamptz,
        attempt_count              int NOT NULL DEFAULT 0,
        next_payment_attempt       timestamptz,
        automatically_finalizes_at timestamptz,          -- of a draft
        finalized_at               timestamptz,
        last_finalization_error    text,
        hosted_invoice_url         text,                 -- both expire: see refresh_invoice()
        invoice_pdf                text,
        created_at                 timestamptz NOT NULL,
        fetched_at                 timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (tenant_id, stripe_invoice_id)
    );
    CREATE INDEX IF NOT EXISTS invoices_stripe ON billing.invoices (stripe_invoice_id);      -- thin events do not say whose
    CREATE INDEX IF NOT EXISTS invoices_created ON billing.invoices (tenant_id, created_at, stripe_invoice_id);
    COMMENT ON TABLE billing.invoices IS 'invoices as Stripe has them; money in minor units';

    CREATE TABLE IF NOT EXISTS billing.invoice_lines (
        tenant_id         text COLLATE "C" NOT NULL,
        stripe_invoice_id text NOT NULL,
        stripe_line_id    text NOT NULL,
        ordinal           int NOT NULL,          -- its place on the invoice
        metric            text,                  -- null: the plan's flat fee, or a line made elsewhere
        description       text,
        quantity          numeric,
        amount            numeric NOT NULL,
        currency          text NOT NULL,
        period_start      timestamptz,
        period_end        timestamptz,
        stripe_price_id   text,
        PRIMARY KEY (tenant_id, stripe_invoice_id, stripe_line_id),
        FOREIGN KEY (tenant_id, stripe_invoice_id) REFERENCES billing.invoices
    );
    COMMENT ON TABLE billing.invoice_lines IS 'lines of an invoice; graduated usage has one line per tier';
END $$;

-- Which metric a line bills: by its item, or by the price where the item is gone since, or as an invoice item of ours; null: none.
CREATE FUNCTION billing._line_metric(tenant text, line jsonb) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT i.metric FROM billing.subscription_items i
                      WHERE i.tenant_id = $1
                        AND i.stripe_item_id = coalesce($2 #>> '{parent,subscription_item_details,subscription_item}',
                                                        $2 ->> 'subscription_item')
                      LIMIT 1),
                    (SELECT p.metric FROM billing._known_prices($1) p
                      WHERE p.stripe_price_id = coalesce($2 #>> '{pricing,price_details,price}', $2 #>> '{price,id}')
                      LIMIT 1),
                    (SELECT l.metric FROM billing.late_usage l
                      WHERE l.tenant_id = $1 AND l.stripe_invoice_item_id = $2 #>> '{parent,invoice_item_details,invoice_item}'))
$$;

-- Stores lines of an invoice; with the first of them, what was stored before is gone: a draft's lines change.
CREATE FUNCTION billing._apply_invoice_lines(tenant text, invoice text, lines jsonb, first boolean) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.late_usage l SET stripe_invoice_id = $2, unattached = false
      FROM jsonb_array_elements($3) line
     WHERE l.tenant_id = $1 AND l.stripe_invoice_item_id = line #>> '{parent,invoice_item_details,invoice_item}';
    DELETE FROM billing.invoice_lines l WHERE $4 AND l.tenant_id = $1 AND l.stripe_invoice_id = $2;
    INSERT INTO billing.invoice_lines AS l (tenant_id, stripe_invoice_id, stripe_line_id, ordinal, metric, description,
                                            quantity, amount, currency, period_start, period_end, stripe_price_id)
    SELECT $1, $2, line ->> 'id', before.lines + n,
           billing._line_metric($1, line),
           line ->> 'description',
           coalesce((SELECT u.quantity FROM billing.late_usage u
                      WHERE u.tenant_id = $1 AND u.stripe_invoice_item_id = line #>> '{parent,invoice_item_details,invoice_item}'),
                    (line ->> 'quantity_decimal')::numeric, (line ->> 'quantity')::numeric),
           (line ->> 'amount')::numeric,
           line ->> 'currency',
           to_timestamp((line #>> '{period,start}')::bigint),
           to_timestamp((line #>> '{period,end}')::bigint),
           coalesce(line #>> '{pricing,price_details,price}', line #>> '{price,id}')
      FROM jsonb_array_elements($3) WITH ORDINALITY x (line, n),
           (SELECT count(*) AS lines FROM billing.invoice_lines e
             WHERE NOT $4 AND e.tenant_id = $1 AND e.stripe_invoice_id = $2) before
    ON CONFLICT ON CONSTRAINT invoice_lines_pkey
    DO UPDATE SET ordinal = excluded.ordinal, metric = excluded.metric, description = excluded.description,
                  quantity = excluded.quantity, amount = excluded.amount,
                  period_start = excluded.period_start, period_end = excluded.period_end
$$;

-- Stores an invoice; an invoice longer than its embedded first page has all its lines fetched.
CREATE FUNCTION billing._apply_invoice(tenant text, invoice jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO billing.invoices AS i (tenant_id, stripe_invoice_id, stripe_subscription_id, number, status, billing_reason,
        currency, subtotal, total_taxes, total, amount_due, amount_paid, amount_remaining, period_start, period_end, due_date,
        attempt_count, next_payment_attempt, automatically_finalizes_at, finalized_at, last_finalization_error,
        hosted_invoice_url, invoice_pdf, created_at)
    VALUES (tenant, invoice ->> 'id',
            coalesce(invoice #>> '{parent,subscription_details,subscription}', invoice ->> 'subscription'),
            invoice ->> 'number', invoice ->> 'status', invoice ->> 'billing_reason',
            invoice ->> 'currency', (invoice ->> 'subtotal')::numeric,
            -- one tax before 2025-03-31.basil
            coalesce((SELECT sum((t ->> 'amount')::numeric) FROM jsonb_array_elements(
                          CASE jsonb_typeof(invoice -> 'total_taxes') WHEN 'array' THEN invoice -> 'total_taxes' END) t),
                     (invoice ->> 'tax')::numeric, 0),
            (invoice ->> 'total')::numeric,
            (invoice ->> 'amount_due')::numeric, (invoice ->> 'amount_paid')::numeric,
            (invoice ->> 'amount_remaining')::numeric,
            to_timestamp((invoice ->> 'period_start')::bigint), to_timestamp((invoice ->> 'period_end')::bigint),
            to_timestamp((invoice ->> 'due_date')::bigint), coalesce((invoice ->> 'attempt_count')::int, 0),
            to_timestamp((invoice ->> 'next_payment_attempt')::bigint),
            to_timestamp((invoice ->> 'automatically_finalizes_at')::bigint),
            to_timestamp((invoice #>> '{status_transitions,finalized_at}')::bigint),
            invoice #>> '{last_finalization_error,message}',
            invoice ->> 'hosted_invoice_url', invoice ->> 'invoice_pdf', to_timestamp((invoice ->> 'created')::bigint))
    ON CONFLICT ON CONSTRAINT invoices_pkey
    DO UPDATE SET number = excluded.number, status = excluded.status, subtotal = excluded.subtotal,
        total_taxes = excluded.total_taxes, total = excluded.total, amount_due = excluded.amount_due,
        amount_paid = excluded.amount_paid, amount_remaining = excluded.amount_remaining, due_date = excluded.due_date,
        attempt_count = excluded.attempt_count, next_payment_attempt = excluded.next_payment_attempt,
        automatically_finalizes_at = excluded.automatically_finalizes_at, finalized_at = excluded.finalized_at,
        last_finalization_error = excluded.last_finalization_error, hosted_invoice_url = excluded.hosted_invoice_url,
        invoice_pdf = excluded.invoice_pdf, fetched_at = excluded.fetched_at;
    PERFORM billing._compare_credit(tenant, invoice);
    IF (invoice #>> '{lines,has_more}')::boolean THEN
        IF billing._stripe_free(tenant, 'invoice_lines', invoice ->> 'id') THEN
            PERFORM billing._stripe_enqueue(tenant, 'invoice_lines', invoice ->> 'id', 'GET',
                        format('/v1/invoices/%s/lines', invoice ->> 'id'), '{"limit": 100}');
        END IF;
    ELSE
        PERFORM billing._apply_invoice_lines(tenant, invoice ->> 'id', invoice #> '{lines,data}', true);
        PERFORM billing._note_late_usage_on(tenant, invoice ->> 'id');
    END IF;
END $$;

-- What readers return of an invoice.
CREATE TYPE billing.invoice AS (
    invoice text, number text, status text, billing_reason text, currency text, subtotal numeric, total_taxes numeric,
    total numeric, amount_due numeric, amount_paid numeric, amount_remaining numeric, period_start timestamptz,
    period_end timestamptz, due_date timestamptz, attempt_count int, next_payment_attempt timestamptz,
    automatically_finalizes_at timestamptz, finalized_at timestamptz, last_finalization_error text,
    hosted_invoice_url text, invoice_pdf text, created_at timestamptz, fetched_at timestamptz
);

-- A tenant's invoices, or one of them. A plain inlined query: a page of them is read from the index.
CREATE FUNCTION billing._invoices(own text, one text) RETURNS SETOF billing.invoice
LANGUAGE sql STABLE AS $$
    SELECT i.stripe_invoice_id, i.number, i.status, i.billing_reason, i.currency, i.subtotal, i.total_taxes, i.total,
           i.amount_due, i.amount_paid, i.amount_remaining, i.period_start, i.period_end, i.due_date, i.attempt_count,
           i.next_payment_attempt, i.automatically_finalizes_at, i.finalized_at, i.last_finalization_error,
           i.hosted_invoice_url, i.invoice_pdf, i.created_at, i.fetched_at
      FROM billing.invoices i WHERE i.tenant_id = $1 AND ($2 IS NULL OR i.stripe_invoice_id = $2)
$$;

CREATE FUNCTION billing.get_invoice(tenant_id text, invoice text) RETURNS billing.invoice
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one billing.invoice;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    SELECT i.* INTO one FROM billing._invoices(get_invoice.tenant_id, get_invoice.invoice) i
     WHERE get_invoice.invoice IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'tenant "%" has no invoice "%"', tenant_id, left(invoice, 64)
            USING ERRCODE = 'UB064', HINT = 'billing.get_invoices() lists the tenant''s invoices.';
    END IF;
    RETURN one;
END $$;
COMMENT ON FUNCTION billing.get_invoice(text, text) IS
    'returns one of a tenant''s invoices by its Stripe id, in minor units. Raises UB010, UB040, UB064';

CREATE FUNCTION billing.get_invoices(tenant_id text, max_invoices int DEFAULT 20, after text DEFAULT NULL,
                                     before text DEFAULT NULL)
RETURNS SETOF billing.invoice
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    later billing.invoice;
    earlier billing.invoice;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    IF after IS NOT NULL THEN
        later := billing.get_invoice(tenant_id, after);
    END IF;
    IF before IS NOT NULL THEN
        earlier := billing.get_invoice(tenant_id, before);
        RETURN QUERY
        SELECT p.* FROM (
               SELECT i.* FROM billing._invoices(get_invoices.tenant_id, NULL) i
                WHERE (i.created_at, i.invoice) > (earlier.created_at, earlier.invoice)
                  AND (after IS NULL OR (i.created_at, i.invoice) < (later.created_at, later.invoice))
                ORDER BY i.created_at, i.invoice LIMIT greatest(max_invoices, 0)) p
         ORDER BY p.created_at DESC, p.invoice DESC;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT i.* FROM billing._invoices(get_invoices.tenant_id, NULL) i
     WHERE after IS NULL OR (i.created_at, i.invoice) < (later.created_at, later.invoice)
     ORDER BY i.created_at DESC, i.invoice DESC LIMIT greatest(max_invoices, 0);
END $$;
COMMENT ON FUNCTION billing.get_invoices(text, int, text, text) IS
    'returns a tenant''s invoices, the latest first, in minor units; the next page is what comes after the last invoice of a page, the one before it ends before its first. Raises UB010, UB040, UB064';

CREATE FUNCTION billing.get_invoice_lines(tenant_id text, invoice text)
RETURNS TABLE (line text, metric text, description text, quantity numeric, amount numeric, currency text,
               period_start timestamptz, period_end timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing.get_invoice(tenant_id, invoice);
    RETURN QUERY
    SELECT l.stripe_line_id, l.metric, l.description, l.quantity, l.amount, l.currency, l.period_start, l.period_end
      FROM billing.invoice_lines l
     WHERE l.tenant_id = get_invoice_lines.tenant_id AND l.stripe_invoice_id = get_invoice_lines.invoice
     ORDER BY l.ordinal;
END $$;
COMMENT ON FUNCTION billing.get_invoice_lines(text, text) IS
    'returns the lines of one of a tenant''s invoices, in minor units; metric null: the flat fee, or a line made elsewhere. Raises UB010, UB040, UB064';

CREATE FUNCTION billing.refresh_invoice(tenant_id text, invoice text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing.get_invoice(tenant_id, invoice);
    IF NOT EXISTS (SELECT FROM billing.stripe_outbox o
                    WHERE o.tenant_id = refresh_invoice.tenant_id AND o.kind = 'invoice_fetch'
                      AND o.subject = refresh_invoice.invoice AND o.state IN ('waiting', 'sending')) THEN
        PERFORM billing._stripe_enqueue(tenant_id, 'invoice_fetch', invoice, 'GET', '/v1/invoices/' || invoice, '{}');
    END IF;
    PERFORM billing._wake_worker('stripe');
END $$;
COMMENT ON FUNCTION billing.refresh_invoice(text, text) IS
    'has the worker fetch an invoice anew: its status, and the links to its PDF and its page, which expire; fetched_at tells when it has. Raises UB010, UB040, UB064';
