-- Notifications: for each event one row per channel that wants it, in the transaction of the event; claimed, settled,
-- retried; a circuit for each channel. Who sends them is the worker (e2e/notify.sh).
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
CREATE PROCEDURE use(tenant text, metric text, quantity numeric) LANGUAGE sql AS $$
    SELECT billing.record_usage(tenant, metric, quantity);
    SELECT billing.run_rollup();
$$;
CREATE VIEW told AS
    SELECT c.kind || ' of ' || coalesce(nullif(n.tenant_id, ''), 'operator') AS channel, n.event, n.about, n.title
      FROM billing.notifications n JOIN billing.notification_channels c ON c.id = n.channel_id ORDER BY n.created_at, n.channel_id;
-- Settles what is claimed now with one outcome.
CREATE FUNCTION send(outcome text, error text DEFAULT NULL) RETURNS TABLE (kind text, address text, title text, attempt int) LANGUAGE sql AS $$
    SELECT c.kind, c.address, c.title, c.attempt FROM billing._notify_claim(100, '1 minute') c,
           billing._notify_settle(c.tenant_id, c.id, c.attempt, $1, 200, $2, '1 hour')
     ORDER BY c.kind, c.address, c.title
$$;

-- nobody to tell
CALL use('acme', 'user_seats', 20);
SELECT count(*) FROM billing.usage_alerts;
TABLE told;

-- channels: the secret of a webhook is shown once, and no other way
SELECT channel AS operator, secret FROM billing.create_channel('email', 'ops@example.com') \gset
SELECT channel AS hook, secret ~ '^whsec_[A-Za-z0-9+/]{43}=$' AS secret FROM billing.create_channel('webhook', 'https://acme.example/hook?x=1', 'acme') \gset
\echo :secret
SELECT channel AS phone FROM billing.create_channel('sms', '+4915112345678', 'acme', '{usage.alert}') \gset
SELECT channel AS bolts FROM billing.create_channel('webhook', 'https://[2001:db8::1]:8443', 'bolt') \gset
SELECT tenant_id, kind, address, events, enabled FROM billing.notification_channels ORDER BY id;
SELECT tenant_id, count(*) FROM billing.notification_secrets GROUP BY 1 ORDER BY 1;
SELECT tenant_id, action, after ? 'address' AS address FROM billing.audit_log WHERE action = 'create_channel' ORDER BY id;

-- an alert: once to each, with what was known then
CALL use('acme', 'user_seats', 5);
CALL use('acme', 'user_seats', -1);
CALL use('acme', 'user_seats', 1);
TABLE told;
SELECT DISTINCT event, message, jsonb_pretty(payload - 'timestamp') FROM billing.notifications;
SELECT count(DISTINCT id), bool_and(id ~ '^msg_[0-9a-f]{32}$') FROM billing.notifications;
BEGIN;
CALL use('bolt', 'llm_tokens', 1200000);
SELECT count(*) FROM billing.notifications WHERE about = 'bolt';
ROLLBACK;
SELECT count(*) FROM billing.notifications WHERE about = 'bolt';
-- costs and projections
SELECT billing.create_alert(kind, threshold, metric, 'acme') FROM (VALUES ('cost', 11000, NULL), ('cost', 1500, 'api_calls'),
    ('projected_cost', 15000, NULL), ('projected_percent', 150.5, 'api_calls')) r (kind, threshold, metric) \g /dev/null
CALL travel('7 days');
CALL use('acme', 'api_calls', 119999);
SELECT title, CASE event WHEN 'cost.alert' THEN message ELSE regexp_replace(message, '\d[\d.]*', 'N', 'g') END AS message
  FROM billing.notifications n WHERE n.tenant_id = '' AND event <> 'usage.alert' ORDER BY title;
SELECT payload - 'timestamp' FROM billing.notifications n WHERE n.tenant_id = '' AND event = 'cost.alert' AND NOT payload -> 'data' ? 'metric';
CALL travel('-7 days');
DELETE FROM billing.notifications;

-- the life of a subscription, invoices and payments, whoever changes the tables
UPDATE billing.billing_customers SET stripe_customer_id = 'cus_' || tenant_id;
UPDATE billing.subscriptions SET status = 'past_due', past_due_since = billing.now() WHERE tenant_id = 'acme';
UPDATE billing.subscriptions SET status = 'past_due' WHERE tenant_id = 'acme';
UPDATE billing.subscriptions SET status = 'active' WHERE tenant_id = 'acme';
UPDATE billing.subscriptions SET status = 'past_due', past_due_since = billing.now() + interval '1 day' WHERE tenant_id = 'acme';
SELECT FROM billing.cancel_subscription('bolt', false) \g /dev/null
INSERT INTO billing.invoices (tenant_id, stripe_invoice_id, number, status, currency, subtotal, total, amount_due, amount_paid, amount_remaining, finalized_at, created_at)
VALUES ('acme', 'in_1', NULL, 'draft', 'usd', 105, 105, 105, 0, 105, NULL, billing.now()),
       ('acme', 'in_0', 'A-0', 'paid', 'usd', 105, 105, 105, 0, 105, billing.now() - interval '4 days', billing.now()),
       ('bolt', 'in_2', 'B-1', 'open', 'jpy', 1050, 1050, 1050, 0, 1050, billing.now(), billing.now());
UPDATE billing.invoices SET finalized_at = billing.now(), number = 'A-1', status = 'open', hosted_invoice_url = 'https://pay.example/1' WHERE stripe_invoice_id = 'in_1';
UPDATE billing.invoices SET status = 'paid' WHERE stripe_invoice_id = 'in_1';
SELECT billing.receive_webhook('{"id": "evt_1", "type": "invoice.payment_failed", "data": {"object": {"object": "invoice", "id": "in_1", "customer": "cus_acme"}}}');
SELECT billing.receive_webhook('{"id": "evt_2", "type": "invoice.payment_failed", "data": {"object": {"object": "invoice", "id": "in_9", "customer": "cus_nobody"}}}');
SELECT billing.receive_webhook('{"id": "evt_3", "type": "invoice.payment_failed", "data": {"object": {"object": "invoice", "id": "in_2", "customer": "cus_bolt"}}}');
UPDATE billing.webhook_events SET received_at = clock_timestamp() - interval '4 days' WHERE id = 'evt_3';
UPDATE billing.webhook_events SET processed_at = clock_timestamp(), outcome = 'applied';
SELECT event, about, title, message FROM billing.notifications n WHERE n.tenant_id = '' ORDER BY created_at;
SELECT channel, count(*), count(*) FILTER (WHERE event LIKE '%.alert') AS alerts FROM told GROUP BY 1 ORDER BY 1;
-- what Stripe refuses: the operator alone, once an hour; not what is put back at once
DELETE FROM billing.notifications;
SELECT billing._stripe_enqueue(t, 'customer_create', '', 'POST', '/v1/customers', '{}') FROM unnest('{acme,bolt}'::text[]) t \g /dev/null
BEGIN;
UPDATE billing.stripe_outbox SET state = 'failed', error = 'HTTP 402' WHERE tenant_id = 'acme';
UPDATE billing.stripe_outbox SET retried_at = clock_timestamp() WHERE tenant_id = 'acme';
COMMIT;
TABLE told;
UPDATE billing.stripe_outbox SET state = 'waiting', retried_at = NULL;
UPDATE billing.stripe_outbox SET state = 'failed', error = 'HTTP 400 no such thing' WHERE tenant_id = 'bolt';
UPDATE billing.stripe_outbox SET state = 'failed', error = 'HTTP 400 no such thing' WHERE tenant_id = 'acme';
SELECT channel, event, about, title FROM told;
SELECT message FROM billing.notifications;

-- sending: claimed by nobody else, settled once
DELETE FROM billing.notifications;
SELECT billing.test_notification(:operator) ~ '^msg_' AS id;
SELECT FROM billing.test_notification(:hook) \g /dev/null
SELECT c.tenant_id, c.attempt, c.kind, c.address, c.title, c.payload::jsonb ->> 'type' AS type, cardinality(c.secrets) AS secrets FROM billing._notify_claim(100, '1 minute') c ORDER BY 1;
SELECT count(*) FROM billing._notify_claim(100, '1 minute');
SELECT billing._notify_settle(tenant_id, id, 1, 'retry', 500, 'HTTP 500', '1 hour') FROM billing.notifications WHERE tenant_id = 'acme' \g /dev/null
SELECT billing._notify_settle(tenant_id, id, 1, 'delivered', 250, NULL, NULL) FROM billing.notifications WHERE tenant_id = '' \g /dev/null
-- an answer that comes late changes nothing
SELECT billing._notify_settle(tenant_id, id, 1, 'dead', 404, 'late', NULL) FROM billing.notifications \g /dev/null
SELECT tenant_id, state, attempts, http_status, error, not_before > clock_timestamp() + interval '50 minutes' AS later, settled_at IS NULL AS open FROM billing.notifications ORDER BY 1;
SELECT tenant_id, kind, enabled, failures, open_until, waiting, delivered, dead, last_error FROM billing.stat_notifications ORDER BY channel_id;
SELECT billing._notify_next_due() > clock_timestamp() + interval '50 minutes' AS due_later;
-- of a worker that died, claimed again
UPDATE billing.notifications SET not_before = clock_timestamp() WHERE tenant_id = 'acme';
SELECT count(*) FROM billing._notify_claim(100, '1 minute');
UPDATE billing.notifications SET sender = 0 WHERE tenant_id = 'acme';
SELECT kind, attempt FROM send('delivered');

-- a channel that keeps failing: five, and then one at a time, later and later; others go on
DELETE FROM billing.notifications;
SELECT billing.test_notification(:hook) FROM generate_series(1, 7) \g /dev/null
SELECT billing.test_notification(:operator) FROM generate_series(1, 2) \g /dev/null
SELECT kind, count(*) FROM send('retry', 'HTTP 500') GROUP BY 1 ORDER BY 1;
SELECT kind, count(*) FROM send('retry', 'HTTP 500') GROUP BY 1 ORDER BY 1;
SELECT tenant_id, failures, open_until BETWEEN clock_timestamp() + interval '4 seconds' AND clock_timestamp() + interval '81 seconds' AS open, waiting FROM billing.stat_notifications WHERE failures > 0 ORDER BY 1;
SELECT FROM billing.test_notification(:phone) \g /dev/null
SELECT * FROM send('delivered');
UPDATE billing.notifications SET not_before = clock_timestamp();
SELECT * FROM send('delivered');
UPDATE billing.notification_channels SET open_until = clock_timestamp() WHERE id = :hook;
SELECT kind, count(*) FROM send('delivered') GROUP BY 1;
SELECT failures, open_until FROM billing.notification_channels WHERE id = :hook;
SELECT kind, count(*) FROM send('delivered') GROUP BY 1;
-- given up after twenty attempts, or three days; and sent anew when asked for
SELECT kind, count(*) FROM send('delivered') GROUP BY 1;
DELETE FROM billing.notifications;
SELECT billing.test_notification(:operator) FROM generate_series(1, 3) \g /dev/null
UPDATE billing.notifications SET attempts = 19 WHERE id = (SELECT min(id) FROM billing.notifications);
SELECT kind, attempt FROM send('retry', 'HTTP 500');
SELECT state, count(*) FROM billing.notifications GROUP BY 1 ORDER BY 1;
UPDATE billing.notifications SET expires_at = clock_timestamp() WHERE channel_id = :operator AND state = 'waiting';
SELECT count(*) FROM send('retry');
SELECT state, attempts, error FROM billing.notifications WHERE channel_id = :operator ORDER BY attempts DESC;
SELECT billing.retry_notifications(:hook), billing.retry_notifications();
SELECT kind, count(*), max(attempt) AS attempt FROM send('delivered') GROUP BY 1;
SELECT kind, count(*), max(attempt) AS attempt FROM send('delivered') GROUP BY 1;
-- a receiver that is gone
SELECT FROM billing.test_notification(:hook) \g /dev/null
SELECT kind FROM send('gone', 'HTTP 410');
SELECT enabled, disabled_reason FROM billing.notification_channels WHERE id = :hook;
CALL attempt('SELECT billing.test_notification(' || :hook || ')');
SELECT FROM billing.update_channel(:hook, enabled => true, address => 'https://acme.example/other') \g /dev/null
SELECT kind, address, events, enabled, disabled_reason FROM billing.notification_channels WHERE id = :hook;
SELECT billing.retry_notifications(:hook);
SELECT kind, address FROM send('delivered');

-- secrets: the new one signs, and the old one until it ends
SELECT secret AS first_secret FROM billing.notification_secrets WHERE channel_id = :hook \gset
SELECT billing.rotate_channel_secret(:hook) AS second_secret \gset
SELECT FROM billing.test_notification(:hook) \g /dev/null
SELECT secrets = ARRAY[:'second_secret', :'first_secret'] FROM billing._notify_claim(1, '1 minute');
SELECT billing.rotate_channel_secret(:hook, '0') ~ '^whsec_' AS third;
SELECT count(*), bool_and(expires_at IS NULL) FROM billing.notification_secrets WHERE channel_id = :hook;
SELECT action, before - '{id,created_at,kind}'::text[] AS before, after - '{id,created_at,kind}'::text[] AS after FROM billing.audit_log WHERE action ~ 'channel' AND action <> 'create_channel' ORDER BY id;

-- a copy sends nothing
SELECT billing._notify_ready();
UPDATE billing.stripe_state SET system_identifier = 1;
SELECT billing._notify_ready();
SELECT billing.adopt();
SELECT billing._notify_ready();

-- what is refused
CALL attempt($$SELECT billing.create_channel('webhook', 'http://acme.example/')$$);
CALL attempt($$SELECT billing.create_channel('webhook', 'https://user:secret@acme.example/')$$);
CALL attempt($$SELECT billing.create_channel('webhook', 'https://acme.example/#part')$$);
CALL attempt($$SELECT billing.create_channel('webhook', E'https://acme.example/\nX: y')$$);
CALL attempt($$SELECT billing.create_channel('webhook', 'http://127.evil.example/')$$);
CALL attempt($$SELECT billing.create_channel('email', E'a@b.example\nBcc: all@b.example')$$);
CALL attempt($$SELECT billing.create_channel('email', 'a@b.example, c@d.example')$$);
CALL attempt($$SELECT billing.create_channel('sms', '0151 123')$$);
CALL attempt($$SELECT billing.create_channel('pigeon', 'loft')$$);
CALL attempt($$SELECT billing.create_channel('email', 'a@b.example', events => '{usage.alert,all}')$$);
CALL attempt($$SELECT billing.create_channel('email', 'a@b.example', events => '{}')$$);
CALL attempt($$SELECT billing.create_channel('email', 'a@b.example', 'nobody')$$);
CALL attempt($$SELECT billing.update_channel(0)$$);
CALL attempt($$SELECT billing.update_channel($$ || :operator || $$, 'example.com')$$);
CALL attempt('SELECT billing.rotate_channel_secret(' || :operator || ')');
CALL attempt($$SELECT billing.delete_channel(0)$$);
SELECT FROM billing.delete_channel(:hook) \g /dev/null
SELECT (SELECT count(*) FROM billing.notifications WHERE channel_id = :hook) AS notifications, (SELECT count(*) FROM billing.notification_secrets WHERE channel_id = :hook) AS secrets;
SELECT FROM unnest('{http://127.0.0.1:8080,http://localhost/x,http://[::1]:1}'::text[]) url, billing.create_channel('webhook', url) \g /dev/null
-- the tables outlive the extension, and then tell nobody
DROP EXTENSION pg_billing;
UPDATE billing.subscriptions SET status = 'active' WHERE tenant_id = 'acme';
UPDATE billing.subscriptions SET status = 'past_due' WHERE tenant_id = 'acme';
