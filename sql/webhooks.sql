-- Stripe's webhooks, stored raw by the shim, and the invoices they lead to. webhook_events belongs to no tenant.

CREATE FUNCTION billing._install_webhooks() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.webhook_events (
        id           text PRIMARY KEY,      -- Stripe's event id: a second delivery is a duplicate
        type         text NOT NULL,
        livemode     boolean,
        api_version  text,
        object_type  text,
        object_id    text,
        customer_id  text,
        payload      text NOT NULL,         -- the body as it came
        received_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        request_id   bigint,                -- the fetch in stripe_outbox that takes care of it
        processed_at timestamptz,
        outcome      text                   -- applied, ignored, unknown customer, or what went wrong
    );
    CREATE INDEX IF NOT EXISTS webhook_events_open ON billing.webhook_events (object_type, object_id)
        WHERE processed_at IS NULL;
    CREATE INDEX IF NOT EXISTS webhook_events_request ON billing.webhook_events (request_id) WHERE processed_at IS NULL;
    COMMENT ON TABLE billing.webhook_events IS 'every verified webhook of Stripe''s, raw, and what became of it';

    CREATE TABLE IF NOT EXISTS billing.invoices (
        tenant_id          text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        stripe_invoice_id  text NOT NULL,
        number             text,
        status             text NOT NULL,
        billing_reason     text,
        currency           text NOT NULL,
        subtotal           numeric NOT NULL,     -- money in minor units
        total              numeric NOT NULL,
        amount_due         numeric NOT NULL,
        amount_paid        numeric NOT NULL,
        amount_remaining   numeric NOT NULL,
        period_start       timestamptz,
        period_end         timestamptz,
        due_date           timestamptz,
        finalized_at       timestamptz,
        hosted_invoice_url text,
        invoice_pdf        text,
        created_at         timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, stripe_invoice_id)
    );
    COMMENT ON TABLE billing.invoices IS 'invoices as Stripe has them; money in minor units';

    CREATE TABLE IF NOT EXISTS billing.invoice_lines (
        tenant_id         text COLLATE "C" NOT NULL,
        stripe_invoice_id text NOT NULL,
        stripe_line_id    text NOT NULL,
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

CREATE FUNCTION billing.receive_webhook(payload text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    event jsonb;
    subject jsonb;
BEGIN
    BEGIN
        event := payload::jsonb;
    EXCEPTION WHEN data_exception THEN
        event := NULL;
    END;
    IF (octet_length(event ->> 'id') <= 255 AND event ->> 'type' IS NOT NULL
        AND coalesce(jsonb_typeof(event -> 'livemode'), 'null') IN ('boolean', 'null')) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'webhook body is not a Stripe event'
            USING ERRCODE = 'UB032', HINT = 'An event is a JSON object with an id and a type.';
    END IF;
    subject := event #> '{data,object}';
    INSERT INTO billing.webhook_events (id, type, livemode, api_version, object_type, object_id, customer_id, payload)
    VALUES (event ->> 'id', event ->> 'type', (event ->> 'livemode')::boolean, event ->> 'api_version',
            subject ->> 'object', subject ->> 'id', subject ->> 'customer', receive_webhook.payload)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'duplicate';
    END IF;
    PERFORM billing._wake_worker('stripe');
    RETURN 'stored';
END $$;
COMMENT ON FUNCTION billing.receive_webhook(text) IS
    'stores the body of a webhook whose signature the caller has verified, once per event id: stored or duplicate. Raises UB032';
