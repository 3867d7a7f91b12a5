-- What Stripe says of usage that it had accepted and then could not count: thin events v1.billing.meter.error_report_triggered
-- and no_meter_found, whose content is fetched by their id. They name a few of the meter events by identifier or by
-- idempotency key, which are the same here (sql/stripe.sql), and count the others only.
--
-- The hours, or figures, of those that are named are unsubmitted again, and their requests are in the dead letter with Stripe's reason, until
-- retry_failed(). A request whose total was sent anew since then is of no account any more. The others are found by comparing
-- with Stripe; until then, stripe_meter_errors says how many they are.

CREATE FUNCTION billing._install_meter_errors() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.stripe_meter_errors (
        event_id   text NOT NULL,
        code       text NOT NULL,
        meter_id   text,                -- null: there is none of the name that was sent
        errors     bigint NOT NULL,     -- meter events that were not counted
        samples    bigint NOT NULL,     -- of these, the ones that Stripe names
        refused    bigint NOT NULL,     -- of the samples, the ones that are in the dead letter on account of this
        message    text,
        since      timestamptz,         -- when Stripe looked at them
        until      timestamptz,
        PRIMARY KEY (event_id, code)
    );
    COMMENT ON TABLE billing.stripe_meter_errors IS
        'usage that Stripe accepted and did not count, by its report and reason; of more errors than samples only the samples can be told';
END $$;

-- Takes back that Stripe has what a meter event carried; returns whether that is so still.
CREATE FUNCTION billing._refuse_meter_event(key text, code text, message text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    refused billing.stripe_outbox;
BEGIN
    UPDATE billing.stripe_outbox o
       SET state = 'failed', settled_at = clock_timestamp(), error = concat_ws(': ', 'accepted, but not counted', code, message),
           response = jsonb_build_object('error', jsonb_build_object('code', code, 'message', message))
     WHERE o.idempotency_key = key AND o.kind = 'meter_event' AND o.state = 'delivered'
       AND (o.detail ? 'delta' OR NOT EXISTS (
                       SELECT FROM billing.stripe_outbox later
                        WHERE later.tenant_id = o.tenant_id AND later.kind = o.kind AND later.subject = o.subject
                          AND later.id > o.id AND later.state <> 'failed'
                          AND later.detail - '{quantity,figure}'::text[] = o.detail - '{quantity,figure}'::text[]))
    RETURNING * INTO refused;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF refused.detail ? 'delta' THEN        -- the hour's other deltas are counted, or will be
        UPDATE billing.stripe_outbox o
           SET detail = o.detail || jsonb_build_object('quantity',
                   (o.detail ->> 'quantity')::numeric - (refused.detail ->> 'delta')::numeric)
         WHERE o.tenant_id = refused.tenant_id AND o.kind = refused.kind AND o.subject = refused.subject
           AND o.state IN ('waiting', 'sending') AND o.detail ->> 'hour' = refused.detail ->> 'hour'
           AND o.detail ->> 'period_start' = refused.detail ->> 'period_start';
        UPDATE billing.usage_aggregates a SET submitted = a.submitted - (refused.detail ->> 'delta')::numeric, blocked = true
         WHERE a.tenant_id = refused.tenant_id AND a.metric = refused.subject
           AND a.period_start = (refused.detail ->> 'period_start')::timestamptz
           AND a.hour = (refused.detail ->> 'hour')::timestamptz;
    ELSE
        PERFORM billing._stripe_usage_settled(ARRAY[refused.tenant_id], ARRAY[refused.id]);
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION billing._apply_meter_errors(event jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    report jsonb;
    e billing.stripe_meter_errors;
BEGIN
    e.event_id := event ->> 'id';
    e.meter_id := event #>> '{related_object,id}';
    e.since := (event #>> '{data,validation_start}')::timestamptz;
    e.until := (event #>> '{data,validation_end}')::timestamptz;
    FOR report IN SELECT jsonb_array_elements(event #> '{data,reason,error_types}') LOOP
        e.code := report ->> 'code';
        e.errors := (report ->> 'error_count')::bigint;
        SELECT count(*), count(*) FILTER (WHERE billing._refuse_meter_event(
                   coalesce(s #>> '{request,identifier}', s #>> '{request,idempotency_key}'), e.code, s ->> 'error_message')),
               min(s ->> 'error_message')
          INTO e.samples, e.refused, e.message
          FROM jsonb_array_elements(coalesce(nullif(report -> 'sample_errors', 'null'), '[]')) s;
        INSERT INTO billing.stripe_meter_errors VALUES (e.*) ON CONFLICT DO NOTHING;
        IF e.errors > e.samples THEN
            RAISE WARNING 'Stripe did not count % meter events (%), and names % of them', e.errors, e.code, e.samples
                USING HINT = 'The others can be found by comparing with Stripe only. Look at billing.stripe_meter_errors.';
        END IF;
    END LOOP;
END $$;
