-- What a webhook leads to. It is taken as a hint that an object changed: the object is fetched anew and stored as it is then,
-- so the order of events makes no difference, nor how often they come, nor in which version of Stripe's they were written.
--
-- Events of one object share a fetch. Those that arrive while it is under way wait for the next one; those of a subscription
-- also for a wish that is under way, as the answer may show what was before it.

-- What can be fetched, by the type of the object. An object of the catalogue is not a customer's.
CREATE FUNCTION billing._webhook_objects() RETURNS TABLE (type text, kind text, path text, params jsonb, of_customer boolean)
LANGUAGE sql IMMUTABLE AS $$
    VALUES ('subscription', 'subscription_fetch', '/v1/subscriptions/', '{}'::jsonb, true),
           ('invoice', 'invoice_fetch', '/v1/invoices/', '{}', true),
           ('customer', 'customer_fetch', '/v1/customers/', '{}', true),
           ('checkout.session', 'checkout.session_fetch', '/v1/checkout/sessions/', '{"expand": ["subscription"]}', true),
           ('billing.credit_grant', 'credit_grant_fetch', '/v1/billing/credit_grants/', '{}', true),
           ('billing.meter', 'meter_fetch', '/v1/billing/meters/', '{}', false),
           ('price', 'price_fetch', '/v1/prices/', '{}', false),
           ('product', 'product_fetch', '/v1/products/', '{}', false),
           ('v2.core.event', 'event_fetch', '/v2/core/events/', '{}', false)
$$;

-- Types of objects whose events are kept, beside those that can be fetched; their objects may name one that can. What Stripe
-- attaches to payments, refunds and disputes since 2025-03-31.basil names no invoice: the invoice has events of its own.
CREATE FUNCTION billing._webhook_kept() RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT '{billing.alert_triggered,billing.credit_balance_transaction,charge,credit_note,dispute,
             entitlements.active_entitlement_summary,invoice_payment,invoiceitem,payment_intent,payment_method,refund,
             subscription_schedule}'::text[]
$$;

-- What is to be fetched on account of an event about an object: the object itself, or else the invoice, the subscription or
-- the grant of credit that it belongs to. Of a customer, name and address are ours: only its end is of interest. Nulls: nothing.
CREATE FUNCTION billing._webhook_subject(event_id text, event_type text, about jsonb, OUT type text, OUT id text)
LANGUAGE sql IMMUTABLE AS $$
    SELECT max(s.type), max(s.id)
      FROM (SELECT x.type, x.id
              FROM (VALUES (1, CASE WHEN $2 IN ('v1.billing.meter.error_report_triggered', 'v1.billing.meter.no_meter_found')
                                    THEN 'v2.core.event' END, $1),
                           (2, (SELECT o.type FROM billing._webhook_objects() o
                                 WHERE o.type = $3 ->> 'object' AND (o.type <> 'customer' OR $2 LIKE '%customer.deleted')), $3 ->> 'id'),
                           (3, 'invoice', $3 ->> 'invoice'),
                           (4, 'subscription', coalesce($3 ->> 'subscription', $3 ->> 'released_subscription',
                                                        $3 #>> '{parent,subscription_details,subscription}')),
                           (5, 'billing.credit_grant', $3 ->> 'credit_grant')) x (n, type, id)
             WHERE x.type IS NOT NULL
               AND (x.n <= 2 OR $3 ->> 'object' = ANY (billing._webhook_kept()))
               AND x.id ~ '^[A-Za-z0-9_.-]{1,255}$'     -- it becomes part of a path
             ORDER BY x.n LIMIT 1) s
$$;

-- Processes the events that need no fetch.
CREATE FUNCTION billing._dismiss_webhooks() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.webhook_events e
       SET processed_at = clock_timestamp(), outcome = d.outcome
      FROM (SELECT x.id,
                   CASE WHEN x.livemode <> s.livemode THEN 'wrong mode'
                        WHEN x.account IS NOT NULL THEN 'other account'
                        WHEN x.subject_type IS NULL AND (x.object_type = ANY (billing._webhook_kept()) OR o.type IS NOT NULL) THEN 'kept'
                        WHEN x.subject_type IS NULL THEN 'unknown type'
                        -- a thin event does not say whose its object is
                        WHEN so.of_customer AND (x.customer_id IS NOT NULL OR NOT x.thin AND x.subject_id = x.object_id)
                             AND NOT EXISTS (SELECT FROM billing.billing_customers c WHERE c.stripe_customer_id = x.customer_id)
                             THEN 'unknown customer' END AS outcome
              FROM billing.webhook_events x
              JOIN billing.stripe_state s ON true
              LEFT JOIN billing._webhook_objects() o ON o.type = x.object_type
              LEFT JOIN billing._webhook_objects() so ON so.type = x.subject_type
             WHERE x.processed_at IS NULL AND x.request_id IS NULL) d
     WHERE d.id = e.id AND d.outcome IS NOT NULL
$$;

-- Whose the object of a type is: by its customer, or because it is known here; '' while that is not known.
CREATE FUNCTION billing._webhook_tenant(type text, id text, customer text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT c.tenant_id FROM billing.billing_customers c WHERE c.stripe_customer_id = $3 LIMIT 1),
                    CASE $1 WHEN 'subscription' THEN
                        (SELECT s.tenant_id FROM billing.subscriptions s WHERE s.stripe_subscription_id = $2 LIMIT 1)
                    WHEN 'invoice' THEN
                        (SELECT i.tenant_id FROM billing.invoices i WHERE i.stripe_invoice_id = $2 LIMIT 1) END,
                    '')
$$;

CREATE FUNCTION billing._stripe_plan_webhooks() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    w record;
    fetch_id bigint;
    requests bigint := 0;
BEGIN
    PERFORM billing._dismiss_webhooks();
    FOR w IN
        SELECT e.type, e.id, o.kind, o.path, o.params, billing._webhook_tenant(e.type, e.id, e.customer) AS tenant
          FROM (SELECT x.subject_type AS type, x.subject_id AS id, max(x.customer_id) AS customer
                  FROM billing.webhook_events x WHERE x.processed_at IS NULL AND x.request_id IS NULL
                 GROUP BY 1, 2) e
          JOIN billing._webhook_objects() o ON o.type = e.type
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM billing.stripe_outbox o
                               WHERE o.tenant_id = w.tenant AND o.state IN ('waiting', 'sending')
                                 AND (o.kind = w.kind AND o.subject = w.id
                                      OR w.type = 'subscription' AND o.kind IN ('subscription_update', 'subscription_cancel')));
        fetch_id := billing._stripe_enqueue(w.tenant, w.kind, w.id, 'GET', w.path || w.id, w.params);
        UPDATE billing.webhook_events e SET request_id = fetch_id
         WHERE e.processed_at IS NULL AND e.request_id IS NULL AND e.subject_type = w.type AND e.subject_id = w.id;
        requests := requests + 1;
    END LOOP;
    RETURN requests;
END $$;

-- Stores what a webhook had fetched, or that it is gone: what is gone is {"deleted": true}. Of an object that was fetched for
-- no tenant, the tenant is told by its customer.
CREATE FUNCTION billing._apply_fetched(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    object jsonb := CASE WHEN response ? 'error' THEN jsonb_build_object('id', r.subject, 'deleted', true) ELSE response END;
    whose text := CASE WHEN r.tenant_id <> '' THEN r.tenant_id
                       ELSE billing._webhook_tenant('', '', CASE r.kind WHEN 'customer_fetch' THEN r.subject
                                                                        ELSE object ->> 'customer' END) END;
BEGIN
    IF whose = '' AND (SELECT o.of_customer FROM billing._webhook_objects() o WHERE o.kind = r.kind) THEN
        UPDATE billing.webhook_events e SET processed_at = clock_timestamp(), outcome = 'unknown customer'
         WHERE e.request_id = r.id AND e.processed_at IS NULL;
        RETURN;
    END IF;
    CASE r.kind
    WHEN 'subscription_fetch' THEN
        PERFORM billing._apply_subscription(whose, object, true);
    WHEN 'invoice_fetch' THEN
        IF object ? 'deleted' THEN
            PERFORM billing._forget_draft(whose, r.subject);
        ELSE
            PERFORM billing._apply_invoice(whose, object);
        END IF;
    WHEN 'checkout.session_fetch' THEN
        IF jsonb_typeof(object -> 'subscription') = 'object' THEN
            PERFORM billing._apply_subscription(whose, object -> 'subscription', true);
        END IF;
    WHEN 'customer_fetch' THEN
        PERFORM billing._apply_customer(whose, object);
    WHEN 'credit_grant_fetch' THEN
        PERFORM billing._apply_credit_grant(whose, object);
        PERFORM billing._credit_stale(whose);
    WHEN 'meter_fetch' THEN
        UPDATE billing.metrics m SET stripe_meter_active = object ->> 'status' = 'active' WHERE m.stripe_meter_id = r.subject;
    WHEN 'price_fetch', 'product_fetch' THEN
        PERFORM billing._note_catalog_drift(split_part(r.kind, '_', 1), object);
    WHEN 'event_fetch' THEN
        PERFORM billing._apply_meter_errors(object);
    END CASE;
END $$;

-- A draft that is gone was deleted; anything else Stripe never loses.
CREATE FUNCTION billing._forget_draft(tenant text, invoice text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM billing.invoices i WHERE i.tenant_id = tenant AND i.stripe_invoice_id = invoice AND i.status <> 'draft') THEN
        RAISE EXCEPTION 'Stripe does not have invoice % any more, which was no draft', invoice;
    END IF;
    DELETE FROM billing.invoice_lines l WHERE l.tenant_id = tenant AND l.stripe_invoice_id = invoice;
    DELETE FROM billing.invoices i WHERE i.tenant_id = tenant AND i.stripe_invoice_id = invoice;
END $$;

-- A customer that was deleted at Stripe is billed no more: Stripe has canceled its subscriptions, which are fetched, and takes no
-- usage of it. A subscription that is created afterwards brings another customer about.
CREATE FUNCTION billing._apply_customer(tenant text, customer jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.billing_customers;
    c billing.billing_customers;
BEGIN
    IF (customer ->> 'deleted')::boolean IS NOT TRUE THEN
        RETURN;
    END IF;
    SELECT * INTO was FROM billing.billing_customers x
     WHERE x.tenant_id = tenant AND x.stripe_customer_id = customer ->> 'id' AND x.stripe_deleted_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE billing.billing_customers x SET stripe_deleted_at = billing.now() WHERE x.tenant_id = tenant RETURNING * INTO c;
    PERFORM billing._audit(tenant, 'deleted_at_stripe', to_jsonb(was) - '{name,email}'::text[], to_jsonb(c) - '{name,email}'::text[]);
    PERFORM billing._stripe_enqueue(tenant, 'subscription_fetch', s.stripe_subscription_id, 'GET',
                '/v1/subscriptions/' || s.stripe_subscription_id, '{}')
       FROM billing.subscriptions s
      WHERE s.tenant_id = tenant AND s.stripe_status NOT IN ('canceled', 'incomplete_expired')
        AND billing._stripe_free(tenant, 'subscription_fetch', s.stripe_subscription_id);
END $$;

CREATE FUNCTION billing._install_webhook_objects() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.catalog_drift (
        object_type text NOT NULL CHECK (object_type IN ('price', 'product')),
        object_id   text NOT NULL,
        note        text NOT NULL,
        noted_at    timestamptz NOT NULL,
        PRIMARY KEY (object_type, object_id)
    );
    COMMENT ON TABLE billing.catalog_drift IS
        'products and prices of ours that somebody changed at Stripe, so that new subscriptions may fail; the rows go once they are as they were';
END $$;

-- Amounts, tiers and intervals of a price can never change. What can is whether it may be used, and what it is found by.
CREATE FUNCTION billing._note_catalog_drift(kind text, object jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;      -- what it is called, or a price is found by
    used boolean;   -- whether it has to be active; null: not ours
    found text := coalesce(object ->> 'lookup_key', object ->> 'name', '');
    finding text;
BEGIN
    IF kind = 'product' THEN
        SELECT p.display_name, true INTO name, used FROM billing.plans p WHERE p.stripe_product_id = object ->> 'id'
        UNION ALL
        SELECT m.display_name, true FROM billing.metrics m WHERE m.stripe_product_id = object ->> 'id';
    ELSE
        SELECT p.lookup_key, p.wanted INTO name, used FROM billing._stripe_prices() p WHERE p.stripe_price_id = object ->> 'id';
    END IF;
    finding := CASE WHEN used IS NULL THEN NULL
                    WHEN (object ->> 'deleted')::boolean THEN 'deleted'
                    ELSE nullif(concat_ws(', ', CASE WHEN used AND object ->> 'active' = 'false' THEN 'archived' END,
                                          CASE WHEN found <> name THEN format('called "%s" instead of "%s"', found, name) END), '') END;
    DELETE FROM billing.catalog_drift d
     WHERE d.object_type = kind AND d.object_id = object ->> 'id' AND d.note IS DISTINCT FROM finding;
    INSERT INTO billing.catalog_drift SELECT kind, object ->> 'id', finding, billing.now() WHERE finding IS NOT NULL
    ON CONFLICT DO NOTHING;
END $$;
