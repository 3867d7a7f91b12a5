-- Changes of plan and ends at Stripe: requests of the difference, after the usage of before and never beside usage.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW requests AS
    SELECT kind, method, regexp_replace(path, 'sub_\d+', 'SUB') AS path, params - 'identifier' - 'event_name' AS params
      FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending') ORDER BY id;
CREATE VIEW subscription AS
    SELECT plan, status, cancel_at_period_end AS ends, ended_at IS NOT NULL AS ended, stripe_plan, stripe_status, stripe_cancels,
           (SELECT g.stripe_confirmed FROM billing.get_subscription('acme', true) g WHERE g.subscription_id = s.id) AS confirmed
      FROM billing.subscriptions s ORDER BY id;
CREATE VIEW metered AS
    SELECT metric, quantity, submitted FROM billing.usage_aggregates WHERE metric = 'llm_tokens' ORDER BY hour;
CREATE PROCEDURE travel_to(at timestamptz) LANGUAGE sql AS $$ CALL travel(at - billing.now()) $$;
CREATE PROCEDURE send() LANGUAGE sql AS $$ SELECT count(*) FROM billing._stripe_claim(100, '1 minute') $$;
-- Answers the request that is being sent; Stripe's period is ours.
CREATE PROCEDURE deliver() LANGUAGE sql AS $$
    SELECT billing._stripe_settle(o.tenant_id, o.id, o.attempts, 'delivered', 200,
                                  answer(o.tenant_id, o.kind, o.subject, o.params), NULL, NULL)
      FROM billing.stripe_outbox o WHERE o.state = 'sending'
$$;
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT * FROM subscription;

-- what was used before is rolled up and sent first; then one request turns each item over
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1000) \g /dev/null
SELECT billing.update_subscription('acme', 'enterprise');
SELECT FROM billing.record_usage('acme', 'llm_tokens', 50) \g /dev/null
SELECT billing._stripe_plan();
SELECT kind, params #>> '{payload,value}' AS value FROM requests;
SELECT billing._stripe_plan();
CALL send();
CALL deliver();
SELECT billing._stripe_plan();
SELECT kind, method, path, params - 'items' AS params FROM requests;
SELECT item FROM requests, jsonb_array_elements(params -> 'items') item;
-- while that is under way no usage is sent, and no hint of Stripe's is followed
SELECT FROM billing.record_usage('acme', 'llm_tokens', 7) \g /dev/null
SELECT billing.run_rollup();
SELECT stripe_subscription_id AS sub FROM billing.subscriptions \gset
SELECT billing.receive_webhook(jsonb_build_object('id', 'evt_1', 'type', 'customer.subscription.updated',
           'data', jsonb_build_object('object', jsonb_build_object('object', 'subscription', 'id', :'sub', 'customer', 'cus_acme')))::text);
SELECT billing._stripe_plan();
CALL send();
SELECT billing._stripe_plan();
CALL deliver();
SELECT * FROM subscription;
SELECT metric, stripe_price_id, since IS NOT NULL AS changed, counted FROM billing.subscription_items ORDER BY 1;
-- the hour goes on at the new price: what was not counted before, at a time after the change
SELECT count(*) FROM billing._stripe_due_hours() h, billing.subscription_items i
 WHERE i.metric = h.metric AND h.at > i.since AND h.at < h.hour + interval '1 hour' AND (h.quantity, h.value) = (1057, 7);
UPDATE billing.webhook_events SET processed_at = clock_timestamp(), outcome = 'kept';
CALL stripe();
SELECT * FROM metered;

-- of wishes that Stripe has not heard of, the last counts
SELECT billing.update_subscription('acme', 'standard');
SELECT billing._stripe_plan();
SELECT kind FROM requests;
SELECT billing.update_subscription('acme', 'enterprise');
SELECT billing._stripe_plan();
SELECT kind FROM requests;
-- one that is under way already is carried out, and then the next
SELECT billing.update_subscription('acme', 'standard', 'none');
SELECT billing._stripe_plan();
CALL send();
SELECT billing.update_subscription('acme', 'enterprise');
SELECT billing._stripe_plan();
CALL deliver();
SELECT plan, stripe_plan, confirmed FROM subscription;
SELECT billing._stripe_plan();
SELECT params #>> '{items,0,price}' AS price, params ->> 'proration_behavior' AS proration FROM requests;
CALL stripe();
SELECT plan, stripe_plan, confirmed FROM subscription;
-- a plan with fewer and with other metrics
DELETE FROM billing.price_tiers WHERE (plan, metric) = ('free', 'user_seats');
DELETE FROM billing.plan_metrics WHERE (plan, metric) = ('free', 'user_seats');
SELECT billing.update_subscription('acme', 'free');
SELECT billing._stripe_plan();
SELECT item FROM requests, jsonb_array_elements(params -> 'items') item WHERE item ? 'deleted';
CALL stripe();
SELECT metric FROM billing.subscription_items ORDER BY 1;
SELECT billing.update_subscription('acme', 'standard');
SELECT billing._stripe_plan();
SELECT item FROM requests, jsonb_array_elements(params -> 'items') item WHERE NOT item ? 'id';
CALL stripe();

-- an end with the period, taken back while Stripe is being told of it: both are carried out, the last stays
SELECT billing.cancel_subscription('acme');
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests;
CALL send();
SELECT billing.resume_subscription('acme');
CALL deliver();
SELECT ends, stripe_cancels, confirmed FROM subscription;
SELECT billing._stripe_plan();
SELECT params FROM requests;
CALL stripe();
SELECT ends, stripe_cancels, confirmed FROM subscription;
SELECT billing._stripe_plan();

-- what Stripe refuses is not asked again; another wish is
SELECT billing.update_subscription('acme', 'enterprise');
SELECT billing._stripe_plan();
CALL send();
SELECT billing._stripe_settle(tenant_id, id, attempts, 'failed', 400, '{"error": {"message": "No such price."}}', 'No such price.', NULL)
  FROM billing.stripe_outbox WHERE state = 'sending';
SELECT billing._stripe_plan();
-- until somebody has mended the cause and has it retried
BEGIN;
SELECT billing.retry_failed('subscription_update');
SELECT billing._stripe_plan();
SELECT count(*), count(DISTINCT params), count(DISTINCT idempotency_key) FROM billing.stripe_outbox
 WHERE kind = 'subscription_update' AND (state = 'failed' OR state = 'waiting');
ROLLBACK;
SELECT billing.update_subscription('acme', 'free');
SELECT billing._stripe_plan();
CALL stripe();
SELECT plan, stripe_plan, confirmed FROM subscription;

-- what was changed at Stripe is taken over, and audited
SELECT billing._apply_subscription('acme', answer('acme', 'subscription_update', id::text, '{"cancel_at_period_end": true}'), true)
  FROM billing.subscriptions;
SELECT ends, stripe_cancels, confirmed FROM subscription;
SELECT action, before ->> 'cancel_at_period_end' AS before, after ->> 'cancel_at_period_end' AS after
  FROM billing.audit_log ORDER BY id DESC LIMIT 1;
SELECT billing.resume_subscription('acme');
CALL stripe();

-- the end at once: quotas end here, the usage of before goes out, then the request that bills it
SELECT FROM billing.record_usage('acme', 'llm_tokens', 3) \g /dev/null
SELECT billing.cancel_subscription('acme', false);
SELECT status, stripe_confirmed FROM billing.get_subscription('acme', or_ended => true);
SELECT reason FROM billing.check_quota('acme', 'llm_tokens');
SELECT FROM billing.record_usage('acme', 'llm_tokens', 10000) \g /dev/null
SELECT billing._stripe_plan();
SELECT kind, params #>> '{payload,value}' AS value FROM requests;
CALL send();
CALL deliver();
-- which was said to be of a moment after the change of plan, and so would miss an invoice of before that moment
SELECT params #>> '{payload,value}' AS value, billing._stripe_usage_moment(params) > billing.now() AS to_come
  FROM billing.stripe_outbox WHERE kind = 'meter_event' ORDER BY id DESC LIMIT 1;
SELECT billing._stripe_plan();
CALL travel('62 seconds');
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests;
CALL send();
-- sent once more because the answer got lost, it finds the subscription gone: that is as good
SELECT id FROM billing.subscriptions \gset
CALL settle('acme', 'subscription_cancel', :'id', 'failed',
            '{"error": {"code": "resource_missing", "message": "No such subscription"}}', 404);
SELECT * FROM subscription;
SELECT billing._stripe_plan();
SELECT count(*) FROM billing.stripe_outbox WHERE state <> 'delivered' AND kind <> 'subscription_update';
-- an end that Stripe saw first
SELECT FROM billing.create_subscription('acme', 'free', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT billing._apply_subscription('acme', answer('acme', 'subscription_update', id::text, '{}') || '{"status": "canceled", "ended_at": 1896093000}', true)
  FROM billing.subscriptions WHERE status = 'active';
SELECT * FROM subscription;
SELECT max(ended_at) FROM billing.subscriptions WHERE stripe_status = 'canceled' AND canceled_at IS NULL;
-- one whose creation Stripe never heard of leaves no trace there
SELECT FROM billing.create_subscription('acme', 'free', 'send_invoice', 30) \g /dev/null
SELECT billing._stripe_plan();
SELECT billing.cancel_subscription('acme', false);
SELECT billing._stripe_plan();
SELECT kind FROM requests;

-- usage of an hour that is over goes out before the price goes at which it is billed, though it came after the wish
CALL travel('1 hour');
SELECT FROM billing.create_subscription('acme', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT billing.update_subscription('acme', 'enterprise');
SELECT billing.run_rollup();
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5) \g /dev/null
CALL travel('1 hour');
SELECT billing._stripe_plan();
SELECT kind, params #>> '{payload,value}' AS value FROM requests;
CALL stripe();
SELECT stripe_plan FROM subscription WHERE stripe_status = 'active';

-- what is used after an end at once is not what it bills, also where its periods are the months that are counted without it
CALL travel_to('2030-02-01 00:10+00');
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true) \g /dev/null
SELECT FROM billing.create_subscription('bolt', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT id AS bolt FROM billing.subscriptions WHERE tenant_id = 'bolt' \gset
CALL travel_to('2030-02-10 10:30:30+00');
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 3) \g /dev/null
SELECT billing.cancel_subscription('bolt', false);
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 1000000) \g /dev/null
-- what occurred before the end is the ended one's, whose invoice is not final
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 40, NULL, '2030-02-10 10:10+00') \g /dev/null
SELECT date_trunc('minute', period_start) AS starts, period_end AS ends FROM billing.get_current_period('bolt');
SELECT billing.get_current_usage('bolt', 'llm_tokens') AS now, billing.get_current_usage('bolt', 'llm_tokens', 'previous') AS before;
CALL stripe();
SELECT kind, params #>> '{payload,value}' AS value FROM billing.stripe_outbox
 WHERE tenant_id = 'bolt' AND (kind, subject) IN (('meter_event', 'llm_tokens'), ('subscription_cancel', :'bolt')) ORDER BY id;
-- after an end with the period that is so at once, not only when the end has been noted
CALL travel_to('2030-02-11 00:10+00');
SELECT FROM billing.create_subscription('bolt', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT billing.cancel_subscription('bolt');
CALL travel_to('2030-03-11 00:20+00');
SELECT period_start AS before FROM billing.get_current_period('bolt') \gset
SELECT billing._advance_periods('bolt') AS ended;
SELECT period_start = :'before' AS alike, period_start FROM billing.get_current_period('bolt');
-- nor is what was used before a subscription, in a month's first hour, what it bills
CALL travel_to('2030-04-01 00:10+00');
SELECT FROM billing.create_customer('core', 'Core', 'c@c.example', stripe => true) \g /dev/null
SELECT FROM billing.record_usage('core', 'llm_tokens', 889) \g /dev/null
SELECT FROM billing.create_subscription('core', 'standard', 'send_invoice', 30) \g /dev/null
SELECT FROM billing.record_usage('core', 'llm_tokens', 7) \g /dev/null
CALL stripe();
CALL travel_to('2030-04-01 01:10+00');
CALL stripe();
SELECT period_start, billing.get_current_usage('core', 'llm_tokens') AS used FROM billing.get_current_period('core');
SELECT params #>> '{payload,value}' AS value FROM billing.stripe_outbox WHERE (tenant_id, kind, subject) = ('core', 'meter_event', 'llm_tokens');
