-- Events whose delivery failed: Stripe lists them for 30 days (docs.stripe.com/webhooks/process-undelivered-events). They are
-- asked for every pg_billing.missed_events_interval, by type, newest first, page by page until a page has none that is new, and
-- stored as if they had been received. Of events that come thin only (v2) it does not list what it could not deliver, but all;
-- the next page is what is not newer than the last one's oldest.
--
-- A list that was broken off (the request is in the dead letter) is begun anew by retry_failed(), and then read to its end: what
-- is older than a page that is known already may not be.

-- The types that change something here, 20 at most in a request.
CREATE FUNCTION billing._webhook_types() RETURNS TABLE (part text, path text, types text[])
LANGUAGE sql IMMUTABLE AS $$
    VALUES ('invoices', '/v1/events', '{invoice.created,invoice.deleted,invoice.finalization_failed,invoice.finalized,invoice.marked_uncollectible,
                          invoice.overdue,invoice.overpaid,invoice.paid,invoice.payment_action_required,
                          invoice.payment_attempt_required,invoice.payment_failed,invoice.payment_succeeded,invoice.sent,
                          invoice.updated,invoice.voided,invoice_payment.paid,credit_note.created,credit_note.updated,
                          credit_note.voided}'::text[]),
           ('subscriptions', '/v1/events', '{checkout.session.async_payment_succeeded,checkout.session.completed,customer.deleted,
                               customer.subscription.created,customer.subscription.deleted,
                               customer.subscription.paused,customer.subscription.pending_update_applied,
                               customer.subscription.pending_update_expired,customer.subscription.resumed,
                               customer.subscription.trial_will_end,customer.subscription.updated,subscription_schedule.aborted,
                               subscription_schedule.canceled,subscription_schedule.completed,subscription_schedule.released,
                               subscription_schedule.updated}'),
           ('others', '/v1/events', '{billing.credit_balance_transaction.created,billing.credit_grant.created,billing.credit_grant.updated,
                        billing.meter.deactivated,billing.meter.reactivated,billing.meter.updated,price.deleted,
                        price.updated,product.deleted,product.updated}'),
           ('meter_errors', '/v2/core/events', '{v1.billing.meter.error_report_triggered,v1.billing.meter.no_meter_found}')
$$;

CREATE FUNCTION billing._stripe_ask_missed(part text, to_its_end boolean) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._stripe_enqueue('', 'events_list', t.part, 'GET', t.path,
               jsonb_build_object('types', t.types, 'limit', 100)
               || CASE t.path WHEN '/v1/events' THEN '{"delivery_success": false}' ELSE '{}' END::jsonb,
               jsonb_build_object('to_its_end', $2))
      FROM billing._webhook_types() t WHERE t.part = $1
$$;

CREATE FUNCTION billing._stripe_plan_missed() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    every interval := billing._duration('pg_billing.missed_events_interval');
    before timestamptz;
    requests bigint;
BEGIN
    IF every < interval '0' THEN
        RETURN 0;
    END IF;
    SELECT s.missed_asked_at INTO before FROM billing.stripe_state s;
    IF before + every > clock_timestamp() THEN
        RETURN 0;
    END IF;
    UPDATE billing.stripe_state SET missed_asked_at = clock_timestamp();
    SELECT count(billing._stripe_ask_missed(t.part, before IS NULL)) INTO requests
      FROM billing._webhook_types() t WHERE billing._stripe_free('', 'events_list', t.part);
    RETURN requests;
END $$;

-- Stores a page of events, the oldest first, and asks for the next one if that may have some that are new.
CREATE FUNCTION billing._apply_missed(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    event jsonb;
    new boolean := false;
    older jsonb;    -- what asks for the next page; null: there is none
BEGIN
    FOR event IN SELECT d.event FROM jsonb_array_elements(response -> 'data') WITH ORDINALITY d (event, n) ORDER BY d.n DESC LOOP
        new := billing._store_event(event, event::text, 'fetched') OR new;
    END LOOP;
    IF (response ->> 'has_more')::boolean THEN
        older := jsonb_build_object('starting_after', response #>> '{data,-1,id}');
    ELSIF response ->> 'next_page_url' IS NOT NULL THEN
        older := jsonb_build_object('created', jsonb_build_object('lte', response #>> '{data,-1,created}'));
    END IF;
    IF NOT r.params @> older AND (new OR (r.detail ->> 'to_its_end')::boolean) THEN
        PERFORM billing._stripe_enqueue('', r.kind, r.subject, 'GET', r.path, r.params || older, r.detail);
    END IF;
END $$;
