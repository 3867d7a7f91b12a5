-- Trials and pauses at Stripe: what it is asked, when, and what of its answers is taken over.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW requests AS
    SELECT kind, method, regexp_replace(path, 'sub_\d+', 'SUB') AS path, params - 'identifier' - 'event_name' - 'items' AS params
      FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending') ORDER BY id;
CREATE VIEW subscription AS
    SELECT status, stripe_status, anchor, current_period_start AS starts, current_period_end AS ends, paused_at IS NOT NULL AS paused
      FROM billing.subscriptions WHERE status <> 'canceled';
CREATE PROCEDURE send() LANGUAGE sql AS $$ SELECT count(*) FROM billing._stripe_claim(100, '1 minute') $$;
CREATE PROCEDURE deliver() LANGUAGE sql AS $$
    SELECT billing._stripe_settle(o.tenant_id, o.id, o.attempts, 'delivered', 200,
                                  answer(o.tenant_id, o.kind, o.subject, o.params), NULL, NULL)
      FROM billing.stripe_outbox o WHERE o.state = 'sending'
$$;
-- What a fetch of the tenant's subscription shows, with these changes made there.
CREATE PROCEDURE refetch(changes jsonb DEFAULT '{}') LANGUAGE sql AS $$
    SELECT billing._apply_subscription(s.tenant_id, answer(s.tenant_id, 'subscription_update', s.id::text, '{}') || changes, true)
      FROM billing.subscriptions s WHERE s.status <> 'canceled'
$$;
DELETE FROM billing.price_tiers WHERE metric IN ('storage_gb', 'user_seats');     -- of gauges tells stripe_figures.sql
DELETE FROM billing.plan_metrics WHERE metric IN ('storage_gb', 'user_seats');
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null

-- a trial is made with its end; nothing of it is submitted
SELECT FROM billing.create_subscription('acme', 'standard', 'charge_automatically', trial_days => 14,
                                        missing_payment_method => 'pause', payment_behavior => 'allow_incomplete') \g /dev/null
SELECT * FROM subscription;
DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM requests WHERE kind = 'subscription_create') LOOP
    PERFORM billing._stripe_plan(); CALL send();
    EXIT WHEN EXISTS (SELECT FROM requests WHERE kind = 'subscription_create');
    CALL deliver(); END LOOP; END $$;
SELECT method, path, params - 'metadata' - 'customer' AS params FROM requests;
CALL deliver();
SELECT * FROM subscription;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5000) \g /dev/null
SELECT billing.run_rollup();
SELECT billing._stripe_plan();
SELECT count(*) FROM billing._stripe_due_hours();
-- another end; one that was moved at Stripe is taken over
SELECT billing.end_trial('acme', '2030-02-20 00:00+00');
SELECT billing._stripe_plan();
SELECT method, path, params FROM requests;
CALL stripe();
SELECT billing._stripe_plan();
CALL refetch('{"trial_end": 1896865210}');
SELECT trial_end, anchor, current_period_end FROM billing.subscriptions;
SELECT resets_at FROM billing.check_quota('acme', 'llm_tokens');
SELECT billing._stripe_plan();
-- its end at once is in force before Stripe knows, whatever it says until then
CALL travel('75 minutes');
SELECT billing.end_trial('acme');
CALL refetch();
SELECT * FROM subscription;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 70) \g /dev/null
SELECT billing._stripe_plan();
SELECT method, path, params FROM requests WHERE kind <> 'meter_event';
CALL send();
CALL deliver();
SELECT * FROM subscription;
-- Stripe's period begins amid the hour: the hour's usage is sent with a later time
SELECT billing.run_rollup();
SELECT period_start, hour, quantity, at = hour + s.stripe_offset + interval '1 second' AS after_it_began,
       s.stripe_offset BETWEEN '44 minutes' AND '50 minutes' AS amid_the_hour
  FROM billing._stripe_due_hours(), billing.subscriptions s;
CALL stripe();
SELECT period_start, hour, quantity, submitted FROM billing.usage_aggregates ORDER BY period_start;

-- a pause waits for the usage of before
SELECT FROM billing.record_usage('acme', 'llm_tokens', 30) \g /dev/null
SELECT billing.pause_subscription('acme');
SELECT FROM billing.record_usage('acme', 'llm_tokens', 400) \g /dev/null
SELECT billing._stripe_plan();
SELECT kind, params #>> '{payload,value}' AS value FROM requests;
CALL refetch();
SELECT status, stripe_status FROM subscription;
CALL send();
CALL deliver();
-- … and until the second of which that was said to be is over
SELECT billing._stripe_plan();
CALL travel('3 seconds');
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests;
CALL send();
CALL deliver();
SELECT * FROM subscription;
-- while it lasts nothing is submitted, and another plan waits
SELECT FROM billing.record_usage('acme', 'llm_tokens', 20) \g /dev/null
SELECT billing.run_rollup();
SELECT billing.update_subscription('acme', 'enterprise');
SELECT billing._stripe_plan();
-- the resumption begins a cycle; then the plan is changed
CALL travel('26 hours');
SELECT billing.resume_subscription('acme');
CALL refetch();
SELECT status, stripe_status FROM subscription;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 8) \g /dev/null
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests;
CALL send();
CALL deliver();
SELECT status, stripe_status, anchor = date_trunc('hour', billing.now()) AS anchored, starts = anchor AS begins, paused FROM subscription;
CALL stripe();
SELECT plan, stripe_plan FROM billing.subscriptions;
SELECT quantity, submitted FROM billing.usage_aggregates ORDER BY hour, period_start;

-- one that Stripe never heard of leaves everything as it was
SELECT anchor FROM subscription \gset
SELECT billing.pause_subscription('acme', credit_unused => false);
SELECT billing._stripe_plan();
SELECT params FROM requests;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 6000) \g /dev/null
SELECT billing.resume_subscription('acme');
SELECT billing._stripe_plan();
SELECT anchor = :'anchor' AS same_anchor FROM subscription;
SELECT used FROM billing.check_quota('acme', 'llm_tokens');
SELECT billing.run_rollup();
SELECT count(*) FROM billing._stripe_due_hours();
-- one that is under way is carried out, and then the resumption
SELECT billing.pause_subscription('acme');
SELECT billing._stripe_plan();
CALL send();
SELECT billing.resume_subscription('acme');
CALL deliver();
SELECT status, stripe_status FROM subscription;
CALL stripe();
SELECT status, stripe_status FROM subscription;

-- a pause that Stripe makes, and one that somebody ends there
CALL refetch('{"status": "paused"}');
SELECT status, paused FROM subscription;
SELECT reason FROM billing.check_quota('acme', 'llm_tokens');
SELECT billing._stripe_plan();
CALL refetch('{"status": "active"}');
SELECT status, paused FROM subscription;
SELECT action, count(*) FROM billing.audit_log GROUP BY 1 ORDER BY 1;
-- the end of a paused one
CALL refetch('{"status": "paused"}');
SELECT billing.cancel_subscription('acme', false, prorate => true, invoice_now => false);
SELECT billing._stripe_plan();
SELECT method, path, params FROM requests;
CALL stripe();
SELECT status, stripe_status FROM billing.subscriptions;

-- our clock had begun the next hour already when Stripe resumed it: the period keeps its start, and so its usage
CALL travel('3 hours');
SELECT FROM billing.create_subscription('acme', 'standard', 'send_invoice', 30) \g /dev/null
CALL stripe();
SELECT billing.pause_subscription('acme');
CALL stripe();
SELECT billing.resume_subscription('acme');
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5) \g /dev/null
SELECT billing._stripe_plan();
CALL send();
SELECT id AS now_id, extract(epoch FROM anchor - interval '2 seconds')::bigint AS begins FROM billing.subscriptions WHERE ended_at IS NULL \gset
CALL settle('acme', 'subscription_update', :'now_id', 'delivered',
            answer('acme', 'subscription_update', :'now_id', '{"billing_cycle_anchor": {}}')
            || jsonb_build_object('current_period_start', :begins, 'current_period_end', :begins + 31 * 86400));
SELECT current_period_start = anchor AS begins_as_before, stripe_offset FROM billing.subscriptions WHERE ended_at IS NULL;
SELECT billing.run_rollup();
SELECT quantity, at - hour AS into_it FROM billing._stripe_due_hours();
SELECT used FROM billing.check_quota('acme', 'llm_tokens');
