-- Mode delta: a raw meter counts every event, so an hour is sent as what it has grown by since Stripe confirmed it last.
--
-- Stripe accepts an identifier, which is the request's key, once in 24 hours: until then a repeat is refused as known, which
-- means delivered. After that a repeat would count twice. So a request whose effect is in doubt for that long, or whose
-- failure does not tell it, is never sent again: the hour's sum is asked of Stripe (event summaries), and what was confirmed
-- of it before tells whether this one is in it.

-- Whether the meter of a mode adds.
CREATE FUNCTION billing._meter_adds(export text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT $1 IN ('delta', 'delta_stream') $$;

CREATE FUNCTION billing._stripe_doubtful(detail jsonb, sent_at timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$ SELECT $1 ? 'delta' AND coalesce($2 < clock_timestamp() - interval '23 hours', false) $$;

-- Asks Stripe for the sum of the hour that a request was about; until the answer is here that hour is not planned.
CREATE FUNCTION billing._stripe_find_delta(request jsonb, delay interval) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    starts timestamptz := r.detail ->> 'hour';
BEGIN
    UPDATE billing.usage_aggregates a SET blocked = true
     WHERE a.tenant_id = r.tenant_id AND a.metric = r.subject
       AND a.period_start = (r.detail ->> 'period_start')::timestamptz AND a.hour = starts;
    PERFORM billing._stripe_enqueue(r.tenant_id, 'delta_find', r.subject, 'GET',
                format('/v1/billing/meters/%s/event_summaries', m.stripe_meter_id),
                jsonb_build_object('customer', r.params #>> '{payload,stripe_customer_id}',
                    'start_time', extract(epoch FROM starts)::bigint, 'end_time', extract(epoch FROM starts + interval '1 hour')::bigint),
                r.detail || jsonb_build_object('request', r.id), delay)
       FROM billing.metrics m WHERE m.name = r.subject;
END $$;

-- Gives up the deltas whose effect has been unknown for a day, and asks for it; returns how many.
CREATE FUNCTION billing._stripe_settle_doubts() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    doubtful jsonb;
    asked bigint := 0;
BEGIN
    FOR doubtful IN
        UPDATE billing.stripe_outbox o
           SET state = 'failed', error = concat('after a day it was not known whether Stripe has it; ' || o.error),
               settled_at = clock_timestamp(), retried_at = clock_timestamp(), lease_until = NULL, sender = NULL
         WHERE o.kind = 'meter_event' AND billing._stripe_doubtful(o.detail, o.sent_at)
           AND (o.state = 'waiting' OR o.state = 'sending' AND (o.sender <> pg_backend_pid() OR o.lease_until < clock_timestamp()))
        RETURNING to_jsonb(o)
    LOOP
        PERFORM billing._stripe_find_delta(doubtful, '0');
        asked := asked + 1;
    END LOOP;
    RETURN asked;
END $$;

-- Takes an hour's sum: with the request in question it has that one's quantity, without it the hour is planned anew.
CREATE FUNCTION billing._apply_delta_found(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    delta numeric := r.detail ->> 'delta';
    found_there numeric := coalesce((SELECT sum((d ->> 'aggregated_value')::numeric) FROM jsonb_array_elements(response -> 'data') d), 0);
    confirmed numeric := coalesce((SELECT sum((o.detail ->> 'delta')::numeric) FROM billing.stripe_outbox o
                                    WHERE o.tenant_id = r.tenant_id AND o.kind = 'meter_event' AND o.subject = r.subject
                                      AND o.state = 'delivered' AND o.detail ->> 'hour' = r.detail ->> 'hour'), 0);
    counted boolean;
BEGIN
    -- a sum is a JSON number, exact to 15 digits
    counted := CASE WHEN abs(found_there - confirmed - delta) < 0.0000000005 THEN true
                    WHEN abs(found_there - confirmed) < 0.0000000005 THEN false END;
    IF counted IS NULL THEN
        RAISE EXCEPTION 'Stripe has % of that hour, where % was confirmed and % is in doubt', found_there, confirmed, delta;
    END IF;
    UPDATE billing.stripe_outbox o SET state = 'delivered' WHERE counted AND o.tenant_id = r.tenant_id AND o.id = (r.detail ->> 'request')::bigint;
    UPDATE billing.usage_aggregates a
       SET submitted = CASE WHEN counted THEN (r.detail ->> 'quantity')::numeric ELSE a.submitted END, blocked = false
     WHERE a.tenant_id = r.tenant_id AND a.metric = r.subject
       AND a.period_start = (r.detail ->> 'period_start')::timestamptz AND a.hour = (r.detail ->> 'hour')::timestamptz;
END $$;

CREATE FUNCTION billing._install_export_deltas() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $install$
BEGIN
    -- Another mode means another meter, as a meter's rules stand, and another price. A subscription keeps the ones it has, so
    -- the mode stands while any bills the metric: nothing is counted by two meters, or by none. Not a member of the
    -- extension: the table keeps it after DROP EXTENSION.
    CREATE OR REPLACE FUNCTION billing._change_export() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        subscriptions bigint := (SELECT count(DISTINCT i.subscription_id) FROM billing.subscription_items i
                                   JOIN billing.subscriptions s ON s.tenant_id = i.tenant_id AND s.id = i.subscription_id
                                  WHERE i.metric = old.name AND billing._stripe_counts(s.stripe_status, s.ended_at))
                              + (SELECT count(DISTINCT p.subscription_id) FROM billing.item_periods p
                                  WHERE p.metric = old.name AND p.terms IS NOT NULL AND p.due_at IS NOT NULL)
                              + (SELECT count(*) FROM billing.stripe_outbox o
                                  WHERE o.kind IN ('subscription_create', 'subscription_update') AND o.state IN ('waiting', 'sending'));
    BEGIN
        IF subscriptions > 0 THEN
            RAISE EXCEPTION 'metric "%" is billed by % subscriptions in the mode %', old.name, subscriptions, old.export
                USING ERRCODE = 'UB070', HINT = 'Make a metric of the other mode, and a plan that has it: subscriptions change with their plan.';
        END IF;
        new.stripe_meter_id := NULL;
        IF new.stripe_event_name = old.stripe_event_name THEN   -- the name is taken by the other meter
            new.stripe_event_name := CASE WHEN billing._meter_adds(new.export) THEN old.stripe_event_name || '_delta'
                                          WHEN billing._meter_adds(old.export) THEN regexp_replace(old.stripe_event_name, '_delta$', '')
                                          ELSE old.stripe_event_name END;
        END IF;
        UPDATE billing.plan_prices p SET stripe_price_id = NULL, stripe_active = true WHERE p.metric = new.name;
        UPDATE billing.tenant_prices p SET stripe_price_id = NULL, stripe_active = true WHERE p.metric = new.name;
        RETURN new;
    END $$;
    REVOKE ALL ON FUNCTION billing._change_export() FROM PUBLIC;
    CREATE OR REPLACE TRIGGER export BEFORE UPDATE OF export ON billing.metrics
        -- the event stream leads to the meter that deltas have anyhow
        FOR EACH ROW WHEN (replace(old.export, '_stream', '') <> replace(new.export, '_stream', '')) EXECUTE FUNCTION billing._change_export();
END $install$;
