-- What an event of each type leads to: a fetch of the object, or of the invoice or subscription it belongs to, or nothing.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT FROM billing.create_subscription('bolt', 'standard') \g /dev/null
CALL stripe();
SELECT stripe_subscription_id AS sub FROM billing.subscriptions WHERE tenant_id = 'acme' \gset
SELECT stripe_subscription_id AS bolts FROM billing.subscriptions WHERE tenant_id = 'bolt' \gset
CREATE VIEW requests AS
    SELECT tenant_id, kind, subject, method, path, params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending');

-- Every type that Stripe's guide to billing names, on an object as Stripe has it.
CREATE TABLE types (n int GENERATED ALWAYS AS IDENTITY, object text, types text, members text DEFAULT '{}');
INSERT INTO types (object, types, members) VALUES
    ('customer', 'customer.created customer.updated customer.deleted', '{}'),
    ('subscription', 'customer.subscription.created customer.subscription.updated customer.subscription.deleted customer.subscription.paused customer.subscription.resumed customer.subscription.trial_will_end customer.subscription.pending_update_applied customer.subscription.pending_update_expired', '{}'),
    ('invoice', 'invoice.created invoice.updated invoice.finalized invoice.finalization_failed invoice.paid invoice.payment_succeeded invoice.payment_failed invoice.payment_action_required invoice.payment_attempt_required invoice.overdue invoice.overpaid invoice.voided invoice.marked_uncollectible invoice.deleted invoice.sent invoice.will_be_due', '{"parent": {"subscription_details": {"subscription": "sub_x"}}}'),
    ('invoice', 'invoice.upcoming', '{"id": null, "parent": {"subscription_details": {"subscription": "sub_x"}}}'),
    ('invoice_payment', 'invoice_payment.paid', '{"invoice": "in_x"}'),
    ('checkout.session', 'checkout.session.completed checkout.session.async_payment_succeeded checkout.session.async_payment_failed checkout.session.expired', '{"subscription": "sub_x"}'),
    ('payment_intent', 'payment_intent.succeeded payment_intent.payment_failed payment_intent.requires_action', '{}'),
    ('charge', 'charge.succeeded charge.failed charge.refunded', '{}'),
    ('dispute', 'charge.dispute.created charge.dispute.closed', '{"customer": null, "charge": "ch_x"}'),
    ('refund', 'refund.created refund.updated refund.failed', '{"customer": null, "charge": "ch_x"}'),
    ('credit_note', 'credit_note.created credit_note.updated credit_note.voided', '{"invoice": "in_x"}'),
    ('payment_method', 'payment_method.attached payment_method.detached payment_method.automatically_updated', '{}'),
    ('subscription_schedule', 'subscription_schedule.created subscription_schedule.updated subscription_schedule.aborted subscription_schedule.canceled subscription_schedule.completed subscription_schedule.expiring', '{"subscription": "sub_x"}'),
    ('subscription_schedule', 'subscription_schedule.released', '{"subscription": null, "released_subscription": "sub_x"}'),
    ('billing.alert_triggered', 'billing.alert.triggered', '{"id": null}'),
    ('billing.credit_grant', 'billing.credit_grant.created billing.credit_grant.updated', '{}'),
    ('billing.credit_balance_transaction', 'billing.credit_balance_transaction.created', '{"customer": null, "credit_grant": "credgr_x"}'),
    ('billing.meter', 'billing.meter.created billing.meter.updated billing.meter.deactivated billing.meter.reactivated', '{"customer": null}'),
    ('price', 'price.created price.updated price.deleted', '{"customer": null}'),
    ('product', 'product.created product.updated product.deleted', '{"customer": null}'),
    ('entitlements.active_entitlement_summary', 'entitlements.active_entitlement_summary.updated', '{"id": null}'),
    -- as versions of before 2025-03-31.basil have them: a payment names its invoice
    ('payment_intent', 'payment_intent.succeeded/old', '{"invoice": "in_x"}'),
    ('charge', 'charge.refunded/old', '{"invoice": "in_x"}'),
    -- nobody here knows these, whatever they name
    ('file', 'file.created', '{"customer": null}'),
    ('quote', 'quote.accepted', '{"invoice": "in_x", "subscription": "sub_x"}'),
    -- ids that would lead elsewhere
    ('invoice', 'invoice.paid/odd', '{"id": "in_x/../../customers"}'),
    ('credit_note', 'credit_note.created/odd', '{"invoice": {"id": "in_x"}}');
CREATE VIEW events AS
    SELECT t.n, 'evt_' || t.n || '_' || type AS id, type,
           jsonb_build_object('id', 'evt_' || t.n || '_' || type, 'object', 'event', 'type', split_part(type, '/', 1), 'livemode', false,
               'data', jsonb_build_object('object', jsonb_build_object('object', t.object, 'id', t.object || '_' || type, 'customer', 'cus_acme')
                                                    || t.members::jsonb))::text AS body,
           jsonb_build_object('id', 'evt_' || t.n || '_v1.' || type, 'object', 'v2.core.event', 'type', 'v1.' || split_part(type, '/', 1), 'livemode', false,
               'created', '2030-01-31T12:30:00.000Z', 'context', null, 'related_object',
               jsonb_build_object('id', t.object || '_' || type, 'type', t.object, 'url', '/v1/…'))::text AS thin
      FROM types t, unnest(string_to_array(t.types, ' ')) type;
SELECT type, subject_type, subject_id
  FROM events e, jsonb_to_record(e.body::jsonb) b (id text, data jsonb),
       LATERAL (SELECT s.type AS subject_type, s.id AS subject_id FROM billing._webhook_subject(b.id, e.type, b.data -> 'object') s) s
 ORDER BY e.n, e.type COLLATE "C";
-- the thin notification of an event leads to the same, where its own object is fetched
SELECT billing.receive_webhook(body), billing.receive_webhook(thin) FROM events WHERE type !~ '/' \g /dev/null
SELECT s.type, s.subject_type, s.subject_id, t.subject_type, t.subject_id
  FROM billing.webhook_events s JOIN billing.webhook_events t ON t.type = 'v1.' || s.type
 WHERE (s.subject_type, s.subject_id) IS DISTINCT FROM (t.subject_type, t.subject_id) ORDER BY 1;
SELECT api_version, object_type, object_id, customer_id FROM billing.webhook_events WHERE type = 'v1.invoice.paid';

-- what they lead to, by the two kinds of their payload; one request for an object, however many events
SELECT billing._stripe_plan() > 0 AS planned;
SELECT e.outcome, e.payload::jsonb ->> 'object' AS object, string_agg(e.type, E'\n' ORDER BY e.type COLLATE "C") AS types
  FROM billing.webhook_events e WHERE outcome IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2;
SELECT tenant_id, kind, count(*), min(method || ' ' || path) AS example FROM requests GROUP BY 1, 2 ORDER BY 1, 2;
SELECT count(*) AS open, count(DISTINCT request_id) AS requests FROM billing.webhook_events WHERE processed_at IS NULL;
UPDATE billing.webhook_events SET processed_at = clock_timestamp(), outcome = 'kept' WHERE processed_at IS NULL;
DELETE FROM billing.stripe_outbox WHERE state = 'waiting';

-- a customer: its name and address are ours; its end at Stripe ends its billing, once
CREATE PROCEDURE receive(id text, type text, object jsonb, more jsonb DEFAULT '{}') LANGUAGE plpgsql AS $$
BEGIN
    PERFORM billing.receive_webhook((jsonb_build_object('id', id, 'object', 'event', 'type', type, 'livemode', false,
                                                        'data', jsonb_build_object('object', object)) || more)::text);
    PERFORM billing._stripe_plan();
    PERFORM billing._stripe_claim(1000, '0');
END $$;
CALL receive('evt_c1', 'customer.updated', '{"object": "customer", "id": "cus_acme", "name": "Other"}');
SELECT outcome FROM billing.webhook_events WHERE id = 'evt_c1';
CALL receive('evt_c2', 'customer.deleted', '{"object": "customer", "id": "cus_acme"}');
SELECT tenant_id, kind, method, path FROM requests;
CALL settle('acme', 'customer_fetch', 'cus_acme', 'delivered', '{"id": "cus_acme", "object": "customer"}');    -- it is there after all
SELECT stripe_deleted_at, (SELECT outcome FROM billing.webhook_events WHERE id = 'evt_c2') FROM billing.billing_customers WHERE tenant_id = 'acme';
SELECT billing.record_usage('acme', 'api_calls', 5), billing.record_usage('bolt', 'api_calls', 5) \g /dev/null
SELECT billing.run_rollup();
CALL receive('evt_c3', 'customer.deleted', '{"object": "customer", "id": "cus_acme"}');
CALL settle('acme', 'customer_fetch', 'cus_acme', 'delivered', '{"id": "cus_acme", "object": "customer", "deleted": true}');
SELECT name, stripe_deleted_at IS NOT NULL AS deleted FROM billing.billing_customers WHERE tenant_id = 'acme';
SELECT action, before ->> 'stripe_deleted_at' AS before, after ->> 'stripe_deleted_at' IS NOT NULL AS after, after ? 'name' AS named
  FROM billing.audit_log WHERE tenant_id = 'acme' AND action = 'deleted_at_stripe';
SELECT tenant_id, kind, path = '/v1/subscriptions/' || :'sub' AS of_sub FROM requests WHERE kind <> 'meter_event';
SELECT tenant_id FROM billing.stripe_unsubmitted;
SELECT FROM billing._stripe_claim(1000, '0') \g /dev/null
CALL settle('acme', 'subscription_fetch', :'sub', 'delivered', jsonb_build_object('id', :'sub', 'status', 'canceled', 'ended_at', 1896093000, 'items', '{"data": []}'::jsonb));
SELECT status, ended_at FROM billing.subscriptions WHERE tenant_id = 'acme';
SELECT billing._stripe_plan();
-- told again, nothing happens; who subscribes again is another customer
CALL receive('evt_c4', 'customer.deleted', '{"object": "customer", "id": "cus_acme"}');
CALL settle('acme', 'customer_fetch', 'cus_acme', 'delivered', '{"id": "cus_acme", "object": "customer", "deleted": true}');
SELECT count(*) FROM billing.audit_log WHERE tenant_id = 'acme' AND action = 'deleted_at_stripe';
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
SELECT billing._stripe_plan();
SELECT kind, path FROM requests WHERE tenant_id = 'acme';
SELECT FROM billing._stripe_claim(1000, '0') \g /dev/null
CALL settle('acme', 'customer_create', '', 'delivered', '{"id": "cus_acme2"}');
SELECT stripe_customer_id, stripe_deleted_at FROM billing.billing_customers WHERE tenant_id = 'acme';
SELECT billing._stripe_plan();
SELECT kind, params ->> 'customer' AS customer FROM requests WHERE tenant_id = 'acme';
CALL stripe();

-- a meter that was deactivated takes no usage, and usage says why it waits
CALL receive('evt_m1', 'billing.meter.deactivated', '{"object": "billing.meter", "id": "mtr_api_calls"}');
SELECT tenant_id, kind, method, path FROM requests WHERE kind <> 'meter_event';
CALL settle('', 'meter_fetch', 'mtr_api_calls', 'delivered', '{"id": "mtr_api_calls", "status": "inactive"}');
SELECT name FROM billing.metrics WHERE NOT stripe_meter_active;
CALL stripe();
SELECT billing.record_usage('bolt', 'api_calls', 5), billing.record_usage('bolt', 'llm_tokens', 5) \g /dev/null
SELECT billing.run_rollup();
SELECT billing._stripe_plan();
SELECT tenant_id, kind, subject FROM requests;
SELECT * FROM billing.stripe_unsubmitted ORDER BY metric;
CALL receive('evt_m2', 'billing.meter.reactivated', '{"object": "billing.meter", "id": "mtr_api_calls"}');
CALL settle('', 'meter_fetch', 'mtr_api_calls', 'delivered', '{"id": "mtr_api_calls", "status": "active"}');
SELECT billing._stripe_plan();
SELECT tenant_id, kind, subject FROM requests ORDER BY subject;
CALL stripe();
SELECT * FROM billing.stripe_unsubmitted;

-- products and prices of ours that were changed there
CALL receive('evt_p1', 'product.updated', '{"object": "product", "id": "pgb_plan_standard"}');
CALL settle('', 'product_fetch', 'pgb_plan_standard', 'delivered', '{"id": "pgb_plan_standard", "active": true, "name": "Other"}');
CALL receive('evt_p2', 'price.updated', '{"object": "price", "id": "price_pgb_standard_month"}');
CALL settle('', 'price_fetch', 'price_pgb_standard_month', 'delivered', '{"id": "price_pgb_standard_month", "active": false, "lookup_key": "pgb_standard_month"}');
CALL receive('evt_p3', 'price.updated', '{"object": "price", "id": "price_pgb_standard_api_calls_month"}');
CALL settle('', 'price_fetch', 'price_pgb_standard_api_calls_month', 'delivered', '{"id": "price_pgb_standard_api_calls_month", "active": true, "lookup_key": null}');
CALL receive('evt_p4', 'product.deleted', '{"object": "product", "id": "pgb_metric_api_calls"}');
CALL settle('', 'product_fetch', 'pgb_metric_api_calls', 'failed', '{"error": {"code": "resource_missing", "message": "No such product"}}', 404);
CALL receive('evt_p5', 'price.deleted', '{"object": "price", "id": "price_elsewhere"}');
CALL settle('', 'price_fetch', 'price_elsewhere', 'failed', '{"error": {"code": "resource_missing", "message": "No such price"}}', 404);
SELECT object_type, object_id, note FROM billing.catalog_drift ORDER BY 1, 2;
SELECT id, outcome, error FROM billing.webhook_events WHERE id ~ '^evt_p\d' ORDER BY 1;
-- as they were
CALL receive('evt_p6', 'product.updated', '{"object": "product", "id": "pgb_plan_standard"}');
CALL settle('', 'product_fetch', 'pgb_plan_standard', 'delivered', '{"id": "pgb_plan_standard", "active": true, "name": "Standard"}');
CALL receive('evt_p7', 'price.updated', '{"object": "price", "id": "price_pgb_standard_month"}');
CALL settle('', 'price_fetch', 'price_pgb_standard_month', 'delivered', '{"id": "price_pgb_standard_month", "active": true, "lookup_key": "pgb_standard_month"}');
SELECT object_type, object_id, note FROM billing.catalog_drift ORDER BY 1, 2;

-- a draft that was deleted; what was final does not go away
CREATE FUNCTION invoice(id text, status text, customer text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', id, 'customer', customer, 'status', status, 'currency', 'usd', 'subtotal', 3, 'total', 3, 'amount_due', 3,
        'amount_paid', 0, 'amount_remaining', 3, 'created', 1, 'lines', '{"has_more": false, "data": [{"id": "il_1", "amount": 3, "currency": "usd"}]}'::jsonb)
$$;
CALL receive('evt_i1', 'invoice.created', '{"object": "invoice", "id": "in_1", "customer": "cus_bolt"}');
CALL settle('bolt', 'invoice_fetch', 'in_1', 'delivered', invoice('in_1', 'draft', 'cus_bolt'));
CALL receive('evt_i2', 'invoice.deleted', '{"object": "invoice", "id": "in_1", "customer": "cus_bolt"}');
CALL settle('bolt', 'invoice_fetch', 'in_1', 'failed', '{"error": {"code": "resource_missing", "message": "No such invoice"}}', 404);
SELECT (SELECT count(*) FROM billing.invoices) AS invoices, (SELECT count(*) FROM billing.invoice_lines) AS lines,
       (SELECT string_agg(outcome, ' ') FROM billing.webhook_events WHERE id ~ '^evt_i') AS outcomes;
CALL receive('evt_i3', 'invoice.finalized', '{"object": "invoice", "id": "in_2", "customer": "cus_bolt"}');
CALL settle('bolt', 'invoice_fetch', 'in_2', 'delivered', invoice('in_2', 'open', 'cus_bolt'));
CALL receive('evt_i4', 'invoice.paid', '{"object": "invoice", "id": "in_2", "customer": "cus_bolt"}');
CALL settle('bolt', 'invoice_fetch', 'in_2', 'failed', '{"error": {"code": "resource_missing", "message": "No such invoice"}}', 404);
SELECT (SELECT status FROM billing.invoices), outcome, error FROM billing.webhook_events WHERE id = 'evt_i4';
SELECT kind, subject, error FROM billing.stripe_dead_letter;

-- thin events do not say whose: known objects are their tenant's, others are fetched and tell
CREATE PROCEDURE receive_thin(id text, type text, related_type text, related_id text, more jsonb DEFAULT '{}') LANGUAGE plpgsql AS $$
BEGIN
    PERFORM billing.receive_webhook((jsonb_build_object('id', id, 'object', 'v2.core.event', 'type', type, 'livemode', false, 'context', null,
        'related_object', jsonb_build_object('type', related_type, 'id', related_id)) || more)::text);
    PERFORM billing._stripe_plan();
    PERFORM billing._stripe_claim(1000, '0');
END $$;
CALL receive_thin('evt_t1', 'v1.customer.subscription.updated', 'subscription', :'bolts');
CALL receive_thin('evt_t2', 'v1.invoice.paid', 'invoice', 'in_2');
CALL receive_thin('evt_t3', 'v1.invoice.created', 'invoice', 'in_3');
CALL receive_thin('evt_t4', 'v1.invoice.created', 'invoice', 'in_4');
SELECT tenant_id, kind, replace(path, :'bolts', 'BOLTS') AS path FROM requests ORDER BY path;
CALL settle('', 'invoice_fetch', 'in_3', 'delivered', invoice('in_3', 'draft', 'cus_bolt'));
CALL settle('', 'invoice_fetch', 'in_4', 'delivered', invoice('in_4', 'draft', 'cus_stranger'));
SELECT tenant_id, stripe_invoice_id FROM billing.invoices ORDER BY 2;
SELECT id, outcome FROM billing.webhook_events WHERE id ~ '^evt_t[34]' ORDER BY 1;

-- test mode and live mode; connected accounts
SELECT billing._stripe_note_mode(true);
CALL receive('evt_w1', 'invoice.paid', '{"object": "invoice", "id": "in_5", "customer": "cus_bolt"}');
CALL receive('evt_w2', 'invoice.paid', '{"object": "invoice", "id": "in_5", "customer": "cus_bolt"}', '{"livemode": true}');
CALL receive_thin('evt_w3', 'v1.billing.meter.no_meter_found', NULL, NULL);
CALL receive_thin('evt_w4', 'v1.invoice.paid', 'invoice', 'in_5', '{"livemode": true, "context": "acct_1"}');
CALL receive('evt_w5', 'invoice.paid', '{"object": "invoice", "id": "in_5", "customer": "cus_bolt"}', '{"livemode": true, "account": "acct_1"}');
SELECT id, outcome, request_id IS NOT NULL AS fetched FROM billing.webhook_events WHERE id ~ '^evt_w' ORDER BY 1;
