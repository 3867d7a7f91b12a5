-- Stripe's webhooks, stored raw by the shim. webhook_events belongs to no tenant.

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
