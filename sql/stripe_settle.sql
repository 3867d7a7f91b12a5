-- What an answer of Stripe's changes here.

-- Takes the answer to a catalogue request: stores the id, or turns "not found" into "create". The request is a row of
-- stripe_outbox, passed as JSON because a table's type cannot be an argument before the table exists.
CREATE FUNCTION billing._apply_catalog(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    plan_name text := r.detail ->> 'plan';
    metric_name text := r.detail ->> 'metric';
    event text := r.detail ->> 'event_name';
    found_id text := response ->> 'id';
BEGIN
    IF r.kind = 'product_create' THEN
        UPDATE billing.plans p SET stripe_product_id = r.subject WHERE p.name = plan_name;
        UPDATE billing.metrics m SET stripe_product_id = r.subject WHERE m.name = metric_name;
        RETURN;
    END IF;
    -- What was asked before metrics.export changed is asked anew.
    IF EXISTS (SELECT FROM billing.metrics m
                WHERE m.name = r.subject AND m.stripe_event_name <> coalesce(r.params ->> 'event_name', event)
                   OR m.name = metric_name AND r.kind = 'price_find' AND m.stripe_meter_id IS NULL
                   OR m.name = metric_name AND r.kind = 'price_create'
                      AND m.stripe_meter_id IS DISTINCT FROM r.params #>> '{recurring,meter}') THEN
        RETURN;
    END IF;
    IF r.kind = 'meter_find' THEN
        -- A meter of that name with other rules would count differently: creating ours then fails, and says why.
        SELECT d ->> 'id' INTO found_id FROM jsonb_array_elements(response -> 'data') d, billing.metrics m
         WHERE m.name = r.subject AND d ->> 'event_name' = event
           AND d #>> '{default_aggregation,formula}' = CASE WHEN billing._adds_up(m.kind, m.aggregation) THEN 'sum' ELSE 'last' END
           AND d ->> 'event_time_window' IS NOT DISTINCT FROM CASE m.export WHEN 'hourly_total' THEN 'hour' END;
        IF found_id IS NULL AND (response ->> 'has_more')::boolean THEN
            PERFORM billing._stripe_enqueue('', 'meter_find', r.subject, 'GET', r.path,
                        r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'), r.detail);
        ELSIF found_id IS NULL THEN
            PERFORM billing._stripe_enqueue('', 'meter_create', m.name, 'POST', '/v1/billing/meters',
                        jsonb_strip_nulls(jsonb_build_object('display_name', m.display_name, 'event_name', event,
                            'default_aggregation', jsonb_build_object('formula',
                                CASE WHEN billing._adds_up(m.kind, m.aggregation) THEN 'sum' ELSE 'last' END),
                            'event_time_window', CASE m.export WHEN 'hourly_total' THEN 'hour' END)))
               FROM billing.metrics m WHERE m.name = r.subject;
        END IF;
    ELSIF r.kind = 'price_find' THEN
        -- one of another meter gives way: metrics.export has changed
        found_id := CASE WHEN response #>> '{data,0,recurring,meter}' IS NOT DISTINCT FROM
                              (SELECT m.stripe_meter_id FROM billing.metrics m WHERE m.name = metric_name)
                         THEN response #>> '{data,0,id}' END;
        IF found_id IS NULL THEN
            PERFORM billing._stripe_enqueue('', 'price_create', r.subject, 'POST', '/v1/prices',
                        billing._stripe_price_params(plan_name, metric_name)
                            || CASE WHEN response #> '{data,0}' IS NULL THEN '{}' ELSE '{"transfer_lookup_key": true}'::jsonb END,
                        r.detail);
        END IF;
    END IF;
    IF r.kind IN ('meter_find', 'meter_create') THEN
        UPDATE billing.metrics m SET stripe_meter_id = found_id WHERE m.name = r.subject AND found_id IS NOT NULL;
    ELSIF metric_name IS NULL THEN
        UPDATE billing.plans p SET stripe_price_id = found_id WHERE p.name = plan_name AND found_id IS NOT NULL;
    ELSE
        UPDATE billing.plan_metrics pm SET stripe_price_id = found_id
         WHERE pm.plan = plan_name AND pm.metric = metric_name AND found_id IS NOT NULL;
    END IF;
END $$;

-- Changes what a delivered answer changes. The row's own state is settled before, so that it may be followed by another
-- request of the same kind and subject.
CREATE FUNCTION billing._stripe_apply(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
BEGIN
    CASE r.kind
    WHEN 'product_create', 'meter_find', 'meter_create', 'price_find', 'price_create' THEN
        PERFORM billing._apply_catalog(request, response);
    WHEN 'customer_create' THEN
        UPDATE billing.billing_customers c SET stripe_customer_id = response ->> 'id' WHERE c.tenant_id = r.tenant_id;
    WHEN 'subscription_create', 'subscription_update', 'subscription_fetch' THEN
        PERFORM billing._apply_subscription(r.tenant_id, response, r.kind = 'subscription_fetch');
    WHEN 'subscription_cancel' THEN
        UPDATE billing.subscriptions s SET stripe_status = 'canceled'
         WHERE s.tenant_id = r.tenant_id AND s.id::text = r.subject;
    WHEN 'delta_find' THEN
        PERFORM billing._apply_delta_found(request, response);
    WHEN 'customer_find', 'subscription_find' THEN
        PERFORM billing._apply_found(request, response);
    WHEN 'session_create' THEN
        PERFORM billing._apply_session(r.tenant_id, r.subject, response, NULL);
    WHEN 'checkout.session_fetch' THEN
        IF jsonb_typeof(response -> 'subscription') = 'object' THEN
            PERFORM billing._apply_subscription(r.tenant_id, response -> 'subscription', true);
        END IF;
    WHEN 'credit_grant_create', 'credit_grant_find', 'credit_grant_fetch', 'credit_grant_void', 'credit_grant_expire',
         'credit_transactions' THEN
        PERFORM billing._apply_credit(request, response);
    WHEN 'invoice_fetch' THEN
        PERFORM billing._apply_invoice(r.tenant_id, response);
    WHEN 'invoice_preview', 'invoice_preview_lines' THEN
        PERFORM billing._apply_preview(request, response);
    WHEN 'meter_summary' THEN
        PERFORM billing._apply_summary(request, response);
    WHEN 'invoice_list' THEN
        PERFORM billing._apply_invoice_list(request, response);
    WHEN 'invoice_lines' THEN
        PERFORM billing._apply_invoice_lines(r.tenant_id, r.subject, response -> 'data',
                                             NOT r.params ? 'starting_after');
        IF (response ->> 'has_more')::boolean THEN
            PERFORM billing._stripe_enqueue(r.tenant_id, r.kind, r.subject, 'GET', r.path,
                        r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'));
        ELSE
            PERFORM billing._note_late_usage_on(r.tenant_id, r.subject);
        END IF;
    WHEN 'late_item_create', 'late_item_find' THEN
        PERFORM billing._apply_late_item(request, response);
    END CASE;
END $$;

-- Settles one attempt; an answer to an attempt that has been given up changes nothing. An error that Stripe remembers for
-- the key, and so would repeat for a day (outcome renew), is waited out for half a minute of attempts; then another request
-- takes this one's place.
CREATE FUNCTION billing._stripe_settle(tenant_id text, id bigint, attempt int, outcome text, http_status int,
                                       response jsonb, error text, retry_in interval)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    request billing.stripe_outbox;
    verdict text := outcome;
    complaint text := error;
BEGIN
    IF outcome = 'renew' THEN
        verdict := CASE WHEN attempt < 6 THEN 'retry' ELSE 'failed' END;
    END IF;
    -- A product of ours that exists already is as good as created (other objects have ids of Stripe's own, which such
    -- a refusal does not give), and a subscription that is no more is as good as canceled: a DELETE has no key by which
    -- Stripe would know it again.
    IF verdict = 'failed'
       AND EXISTS (SELECT FROM billing.stripe_outbox o
                    WHERE o.tenant_id = _stripe_settle.tenant_id AND o.id = _stripe_settle.id
                      AND (o.kind, _stripe_settle.response #>> '{error,code}') IN
                          (('product_create', 'resource_already_exists'), ('subscription_cancel', 'resource_missing'))) THEN
        verdict := 'delivered';
    END IF;
    UPDATE billing.stripe_outbox o
       SET state = CASE verdict WHEN 'retry' THEN 'waiting' ELSE verdict END,
           not_before = CASE verdict WHEN 'retry' THEN clock_timestamp() + coalesce(retry_in, '0') ELSE o.not_before END,
           settled_at = CASE verdict WHEN 'retry' THEN NULL ELSE clock_timestamp() END,
           lease_until = NULL, sender = NULL, error = complaint,
           http_status = _stripe_settle.http_status,
           -- a session's secrets are kept nowhere but in stripe_sessions, until they are fetched
           response = CASE WHEN o.kind IN ('session_create', 'checkout.session_fetch')
                           THEN _stripe_settle.response - '{url,client_secret}'::text[] ELSE _stripe_settle.response END
     WHERE o.tenant_id = _stripe_settle.tenant_id AND o.id = _stripe_settle.id
       AND o.attempts = attempt AND o.state = 'sending'
    RETURNING * INTO request;
    IF NOT FOUND OR verdict = 'retry' THEN
        RETURN;
    END IF;
    IF verdict = 'delivered' AND request.kind <> 'meter_event' THEN
        BEGIN
            PERFORM billing._stripe_apply(to_jsonb(request), response);
        EXCEPTION WHEN OTHERS THEN      -- an answer nobody can make sense of must not hold up all others
            verdict := 'failed';
            complaint := format('the answer could not be applied: %s', SQLERRM);
            UPDATE billing.stripe_outbox o SET state = verdict, error = complaint
             WHERE o.tenant_id = request.tenant_id AND o.id = request.id;
        END;
    END IF;
    IF verdict = 'failed' AND request.kind IN ('credit_grant_void', 'credit_grant_expire') THEN
        PERFORM billing._credit_stale(request.tenant_id);       -- it may have been spent before
    END IF;
    IF request.kind = 'meter_event' THEN
        PERFORM billing._stripe_usage_settled(to_jsonb(request));
        PERFORM billing._look_for_late_usage(request.tenant_id, request.subject, (request.detail ->> 'period_start')::timestamptz);
    END IF;
    IF verdict = 'failed' AND request.kind IN ('meter_summary', 'invoice_list') THEN
        PERFORM billing._reconcile_refused(to_jsonb(request), complaint);
    END IF;
    IF request.kind = 'session_create' AND verdict = 'failed' THEN
        PERFORM billing._apply_session(request.tenant_id, request.subject, NULL, complaint);
    END IF;
    UPDATE billing.webhook_events e
       SET processed_at = clock_timestamp(), outcome = CASE verdict WHEN 'delivered' THEN 'applied' ELSE complaint END
     WHERE e.request_id = request.id AND e.processed_at IS NULL;
    IF outcome = 'renew' THEN
        PERFORM billing._stripe_put_back(to_jsonb(request));
    END IF;
END $$;
