-- Checkout and portal sessions: a URL is handed out once and kept nowhere, and what came about there is the tenant's.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('local', 'Local', 'l@l.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('bolt', 'free') \g /dev/null
CALL stripe();
CREATE VIEW requests AS
    SELECT kind, method, path, params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending') ORDER BY id;
CREATE VIEW sessions AS
    SELECT kind, state, stripe_session_id, url IS NOT NULL AS has_url, error FROM billing.stripe_sessions ORDER BY id;
CREATE PROCEDURE send() LANGUAGE sql AS $$ SELECT count(*) FROM billing._stripe_claim(100, '1 minute') $$;

CALL attempt($$SELECT billing.create_checkout_session('nobody', 'standard', 'https://a.example/done')$$);
CALL attempt($$SELECT billing.create_checkout_session('acme', 'platinum', 'https://a.example/done')$$);
CALL attempt($$SELECT billing.create_checkout_session('acme', 'standard', 'javascript:alert(1)')$$);
CALL attempt($$SELECT billing.create_checkout_session('acme', 'standard', NULL)$$);
CALL attempt($$SELECT billing.create_checkout_session('acme', 'standard', 'https://a.example/done', 'no')$$);
CALL attempt($$SELECT billing.create_checkout_session('acme', 'standard', 'https://a.example/done', trial_days => 0)$$);
CALL attempt($$SELECT billing.create_checkout_session('bolt', 'standard', 'https://a.example/done')$$);
CALL attempt($$SELECT billing.create_checkout_session('local', 'standard', 'https://a.example/done')$$);
CALL attempt($$SELECT billing.create_portal_session('local', 'https://a.example/account')$$);
CALL attempt($$SELECT billing.create_portal_session('acme', '')$$);
CALL attempt($$SELECT billing.get_session_url('acme', 1)$$);
SET pg_billing.tenant_id = 'bolt';
CALL attempt($$SELECT billing.create_portal_session('acme', 'https://a.example/account')$$);
CALL attempt($$SELECT billing.get_session_url('acme', 1)$$);
RESET pg_billing.tenant_id;
SELECT count(*) FROM sessions;

-- what Stripe is asked; until it answers there is no URL
SELECT billing.create_checkout_session('acme', 'standard', 'https://a.example/done', 'https://a.example/no', trial_days => 14) AS checkout \gset
SELECT billing.create_portal_session('bolt', 'https://b.example/account') AS portal \gset
SELECT billing._stripe_plan();
SELECT kind, method, path, jsonb_pretty(params) FROM requests ORDER BY path DESC;
SELECT billing.get_session_url('acme', :checkout, '10 ms');
CALL send();
CALL settle('acme', 'session_create', :'checkout', 'delivered',
            '{"id": "cs_1", "url": "https://checkout.example/secret", "client_secret": "cs_1_secret", "status": "open"}');
CALL settle('bolt', 'session_create', :'portal', 'delivered', '{"id": "bps_1", "url": "https://portal.example/secret"}');
SELECT * FROM sessions;
-- neither in the outbox nor for anybody to read
SELECT response FROM billing.stripe_outbox WHERE kind = 'session_create' ORDER BY id;
SET ROLE billing_admin;
CALL attempt('SELECT url FROM billing.stripe_sessions');
RESET ROLE;
-- once
CALL attempt($$SELECT billing.get_session_url('bolt', 1)$$);
SELECT billing.get_session_url('acme', :checkout), billing.get_session_url('bolt', :portal, '0');
CALL attempt($$SELECT billing.get_session_url('acme', 1)$$);
SELECT * FROM sessions;

-- refused, never fetched, never answered
SELECT billing.create_portal_session('bolt', 'https://b.example/account') AS portal \gset
SELECT billing._stripe_plan();
CALL send();
CALL settle('bolt', 'session_create', :'portal', 'failed', '{"error": {"message": "No configuration provided"}}', 400);
CALL attempt(format($$SELECT billing.get_session_url('bolt', %s)$$, :portal));
SELECT billing._stripe_plan();
SELECT billing.create_portal_session('bolt', 'https://b.example/account') AS portal \gset
SELECT billing._stripe_plan();
CALL send();
CALL settle('bolt', 'session_create', :'portal', 'delivered', '{"id": "bps_2", "url": "https://portal.example/secret2"}');
UPDATE billing.stripe_sessions SET ready_at = ready_at - interval '11 minutes' WHERE id = :portal;
CALL attempt(format($$SELECT billing.get_session_url('bolt', %s)$$, :portal));
SELECT billing.create_portal_session('bolt', 'https://b.example/account') AS portal \gset
UPDATE billing.stripe_sessions SET created_at = created_at - interval '61 minutes' WHERE id = :portal;
SELECT billing._stripe_plan();
SELECT * FROM sessions;

-- the subscription that came about in Checkout: by its own events, or by the session's, in any order and any number
CREATE FUNCTION made(sub text, session bigint) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('id', sub, 'status', 'trialing', 'created', 1896093420, 'start_date', 1896093420,
               'trial_end', 1897303020, 'billing_cycle_anchor', 1897303020, 'collection_method', 'charge_automatically',
               'cancel_at_period_end', false, 'metadata', jsonb_build_object('tenant_id', 'acme', 'session_id', session::text),
               'items', jsonb_build_object('data',
                   (SELECT jsonb_agg(jsonb_build_object('id', 'si_' || o.subject, 'price', jsonb_build_object('id', o.response -> 'id'),
                                     'current_period_start', 1896093420, 'current_period_end', 1897303020))
                      FROM billing.stripe_outbox o WHERE o.kind = 'price_create' AND o.subject LIKE 'pgb_standard%')))
$$;
SELECT billing._apply_subscription('acme', made('sub_out', :checkout) #- '{metadata,session_id}', true);
SELECT count(*) FROM billing.subscriptions WHERE tenant_id = 'acme';
SELECT billing.receive_webhook('{"id": "evt_1", "type": "checkout.session.completed", "data": {"object": {"object": "checkout.session", "id": "cs_1", "customer": "cus_acme"}}}');
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests;
CALL send();
CALL settle('acme', 'checkout.session_fetch', 'cs_1', 'delivered',
            jsonb_build_object('id', 'cs_1', 'status', 'complete', 'subscription', made('sub_out', :checkout)));
SELECT plan, status, anchor, current_period_start, current_period_end, trial_start, trial_end, collection_method, stripe_subscription_id
  FROM billing.subscriptions WHERE tenant_id = 'acme';
SELECT state FROM sessions LIMIT 1;
SELECT billing._apply_subscription('acme', made('sub_out', :checkout), true);
SELECT count(*) FROM billing.subscriptions WHERE tenant_id = 'acme';
SELECT billing._stripe_plan();
SELECT allowed, quota FROM billing.check_quota('acme', 'api_calls');
SELECT action FROM billing.audit_log WHERE tenant_id = 'acme' ORDER BY id;
-- a second one is not taken for the tenant's
CALL attempt(format($$SELECT billing._apply_subscription('acme', made('sub_two', %s), true)$$, :checkout));
