-- What an answer of Stripe's changes here.

-- Changes what a delivered answer changes. The row's own state is settled before, so that it may be followed by another
-- request of the same kind and subject.
CREATE FUNCTION billing._stripe_apply(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
BEGIN
    CASE r.kind
    WHEN 'product_create', 'product_find', 'product_update', 'meter_find', 'meter_create', 'meter_update', 'feature_find', 'feature_create',
         'feature_update', 'features_find', 'feature_attach', 'feature_detach', 'price_find', 'price_create', 'price_update' THEN
        PERFORM billing._apply_catalog(request, response);
    WHEN 'customer_create' THEN
        UPDATE billing.billing_customers c SET stripe_customer_id = response ->> 'id', stripe_deleted_at = NULL
         WHERE c.tenant_id = r.tenant_id;
    WHEN 'subscription_create', 'subscription_update' THEN
        PERFORM billing._apply_subscription(r.tenant_id, response, false);
    WHEN 'subscription_cancel' THEN
        UPDATE billing.subscriptions s      -- one that was gone, at this moment at the latest
           SET stripe_status = 'canceled', stripe_ended_at = coalesce(to_timestamp((response ->> 'ended_at')::bigint), billing.now())
         WHERE s.tenant_id = r.tenant_id AND s.id::text = r.subject;
    WHEN 'delta_find' THEN
        PERFORM billing._apply_delta_found(request, response);
    WHEN 'customer_find', 'subscription_find' THEN
        PERFORM billing._apply_found(request, response);
    WHEN 'session_create' THEN
        PERFORM billing._apply_session(r.tenant_id, r.subject, response, NULL);
    WHEN 'credit_grant_create', 'credit_grant_find', 'credit_grant_void', 'credit_grant_expire', 'credit_transactions' THEN
        PERFORM billing._apply_credit(request, response);
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
    WHEN 'item_invoice_create' THEN
        PERFORM billing._apply_invoice(r.tenant_id, response);
    WHEN 'events_list' THEN
        PERFORM billing._apply_missed(request, response);
    ELSE
        PERFORM billing._apply_fetched(request, response);
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
    -- a refusal does not give; what is attached to a product is read again), and a subscription that is no more is as good
    -- as canceled: a DELETE has no key by which Stripe would know it again. That something of what may be deleted is gone
    -- is an answer, too.
    IF verdict = 'failed'
       AND EXISTS (SELECT FROM billing.stripe_outbox o
                    WHERE o.tenant_id = _stripe_settle.tenant_id AND o.id = _stripe_settle.id
                      AND (o.kind, _stripe_settle.response #>> '{error,code}') IN
                          (('product_create', 'resource_already_exists'), ('feature_attach', 'resource_already_exists'),
                           ('late_item_create', 'invoice_not_editable'),
                           ('subscription_cancel', 'resource_missing'),
                           ('feature_detach', 'resource_missing'), ('invoice_fetch', 'resource_missing'),
                           ('price_fetch', 'resource_missing'), ('product_fetch', 'resource_missing'))) THEN
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
        EXCEPTION WHEN transaction_rollback OR lock_not_available OR insufficient_resources THEN
            RAISE;                      -- not the answer's fault: it is asked for again
        WHEN OTHERS THEN                -- an answer nobody can make sense of must not hold up all others
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
        PERFORM billing._stripe_usage_settled(ARRAY[request.tenant_id], ARRAY[request.id]);
    END IF;
    IF verdict = 'failed' AND request.kind IN ('meter_summary', 'invoice_list') THEN
        PERFORM billing._reconcile_refused(to_jsonb(request), complaint);
    END IF;
    IF request.kind = 'session_create' AND verdict = 'failed' THEN
        PERFORM billing._apply_session(request.tenant_id, request.subject, NULL, complaint);
    END IF;
    UPDATE billing.webhook_events e
       SET processed_at = clock_timestamp(), outcome = CASE verdict WHEN 'delivered' THEN 'applied' ELSE 'failed' END,
           error = CASE verdict WHEN 'delivered' THEN NULL ELSE complaint END
     WHERE e.request_id = request.id AND e.processed_at IS NULL;
    IF outcome = 'renew' THEN
        PERFORM billing._stripe_put_back(to_jsonb(request));
    END IF;
END $$;

-- Settles many attempts, an object with the arguments of _stripe_settle each. Most are of meter events that were delivered: those
-- at once. The others tenant by tenant, in the order in which the rollup, beside which this runs, takes their rows.
CREATE FUNCTION billing._stripe_settle_all(settlements jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    tenants text[];
    ids bigint[];
BEGIN
    WITH events AS (
        UPDATE billing.stripe_outbox o
           SET state = 'delivered', settled_at = clock_timestamp(), lease_until = NULL, sender = NULL, error = NULL,
               http_status = s.http_status, response = s.response
          FROM jsonb_to_recordset(settlements) s (tenant_id text, id bigint, attempt int, outcome text, http_status int, response jsonb)
         WHERE o.tenant_id = s.tenant_id COLLATE "C" AND o.id = s.id AND o.attempts = s.attempt AND o.state = 'sending'
           AND o.kind = 'meter_event' AND s.outcome = 'delivered'
        RETURNING o.tenant_id, o.id
    )
    SELECT array_agg(e.tenant_id), array_agg(e.id) INTO tenants, ids FROM events e;
    IF ids IS NOT NULL THEN
        PERFORM billing._stripe_usage_settled(tenants, ids);
    END IF;
    PERFORM billing._stripe_settle(s.tenant_id, s.id, s.attempt, s.outcome, s.http_status, s.response, s.error, s.retry_in)
       FROM jsonb_to_recordset(settlements) s (tenant_id text, id bigint, attempt int, outcome text, http_status int, response jsonb,
                                               error text, retry_in interval)
      WHERE s.id <> ALL (coalesce(ids, '{}'))
      ORDER BY coalesce(nullif(s.tenant_id, ''),
                        billing._webhook_tenant('', '', coalesce(s.response ->> 'customer', s.response ->> 'id'))) COLLATE "C", s.id;
END $$;
