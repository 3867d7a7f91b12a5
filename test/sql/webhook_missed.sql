-- Events whose delivery failed are asked for: by type, page by page, until there is none that is new.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
CREATE VIEW requests AS
    SELECT kind, subject, method, path, params - 'types' AS params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending');
CREATE FUNCTION page(has_more boolean, VARIADIC ids int[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('object', 'list', 'has_more', has_more, 'data', jsonb_agg(jsonb_build_object('id', 'evt_' || id, 'object', 'event',
        'type', 'invoice.paid', 'livemode', false, 'api_version', '2026-10-28.endive',
        'data', jsonb_build_object('object', jsonb_build_object('object', 'invoice', 'id', 'in_1', 'customer', 'cus_acme'))) ORDER BY n))
      FROM unnest(ids) WITH ORDINALITY i (id, n)
$$;
CREATE FUNCTION thin(next text, VARIADIC ids int[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('next_page_url', next, 'previous_page_url', NULL, 'data', jsonb_agg(jsonb_build_object('id', 'thin_' || id,
        'object', 'v2.core.event', 'type', 'v1.billing.meter.no_meter_found', 'livemode', false, 'created', format('2030-01-01T00:00:0%s.000Z', id)) ORDER BY n))
      FROM unnest(ids) WITH ORDINALITY i (id, n)
$$;
-- none are asked for, unless the setting says how often
SELECT billing._stripe_plan();
SET pg_billing.missed_events_interval = '1h';
SELECT billing._stripe_plan();
SELECT * FROM requests ORDER BY subject;
SELECT subject, jsonb_array_length(params -> 'types') BETWEEN 1 AND 20 AS as_many_as_stripe_takes FROM billing.stripe_outbox WHERE kind = 'events_list' ORDER BY 1;
SELECT billing._stripe_plan();
-- every type that leads to a fetch of an object that changes is among them
SELECT t.type FROM billing._webhook_types() p, unnest(p.types) t (type)
 WHERE t.type !~ '^(invoice|checkout.session|customer|subscription_schedule|credit_note|(v1\.)?billing\.(meter|credit)|price|product|invoice_payment)';

-- the first time to the end, whether events are new or not
SELECT billing.receive_webhook(page(false, 9) #>> '{data,0}') \g /dev/null
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'subscriptions', 'delivered', '{"data": [], "has_more": false}');
CALL settle('', 'events_list', 'others', 'delivered', '{"data": [], "has_more": false}');
CALL settle('', 'events_list', 'invoices', 'delivered', page(true, 9));
CALL settle('', 'events_list', 'meter_errors', 'delivered', thin('/v2/core/events?page=x', 3, 2));
SELECT * FROM requests WHERE kind = 'events_list' ORDER BY subject;
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
-- a page of what is known at one moment is not asked for for ever
CALL settle('', 'events_list', 'meter_errors', 'delivered', thin('/v2/core/events?page=y', 2, 2));
CALL settle('', 'events_list', 'invoices', 'delivered', page(true, 8, 7));
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'delivered', page(false, 6));
SELECT * FROM requests WHERE kind = 'events_list';
SELECT id, type, origin, subject_id, payload::jsonb ->> 'id' AS payload_of FROM billing.webhook_events ORDER BY 1;
-- delivered after all: known
SELECT billing.receive_webhook(page(false, 7) #>> '{data,0}');
SELECT billing._stripe_plan();
SELECT * FROM requests ORDER BY kind, subject;
CALL stripe();

-- later only as long as there are new ones
UPDATE billing.stripe_state SET missed_asked_at = clock_timestamp() - interval '59 minutes';
SELECT billing._stripe_plan();
UPDATE billing.stripe_state SET missed_asked_at = clock_timestamp() - interval '61 minutes';
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'delivered', page(true, 11, 10, 9));
SELECT params FROM requests WHERE kind = 'events_list' AND params ? 'starting_after';
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'delivered', page(true, 8, 7));
SELECT params FROM requests WHERE kind = 'events_list' AND params ? 'starting_after';
CALL stripe();

-- a list that was broken off is not gone on with, but read anew and to its end
UPDATE billing.stripe_state SET missed_asked_at = clock_timestamp() - interval '61 minutes';
SELECT billing._stripe_plan();
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'delivered', page(true, 15, 14));
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'failed', '{"error": {"message": "Odd"}}', 400);
CALL stripe();
SELECT subject, error FROM billing.stripe_dead_letter;
UPDATE billing.stripe_state SET missed_asked_at = clock_timestamp() - interval '61 minutes';
SELECT billing._stripe_plan();
CALL stripe();
SELECT billing.retry_failed();
SELECT * FROM requests;
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'delivered', page(true, 15, 14));
SELECT params FROM requests WHERE kind = 'events_list' AND params ? 'starting_after';
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'delivered', page(false, 13));
SELECT count(*) FROM billing.webhook_events;
-- an answer that is none
UPDATE billing.stripe_state SET missed_asked_at = clock_timestamp() - interval '61 minutes';
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'events_list', 'invoices', 'delivered', '{"data": 5}');
SELECT subject, error FROM billing.stripe_dead_letter;
