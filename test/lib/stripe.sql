\set ECHO none
-- Stripe's part in tests without a Stripe, to be read after lib/regress.sql: settle() gives one answer, stripe() answers
-- every request that is due, and what those lead to, as Stripe would when all is well.

-- Settles the request of that kind and subject which is being sent; fails if there is none.
CREATE PROCEDURE settle(tenant text, kind text, subject text, outcome text, response jsonb DEFAULT NULL,
                        http_status int DEFAULT 200, retry_in interval DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    o billing.stripe_outbox;
BEGIN
    SELECT * INTO STRICT o FROM billing.stripe_outbox x
     WHERE x.tenant_id = tenant AND x.kind = settle.kind AND x.subject = settle.subject AND x.state = 'sending';
    PERFORM billing._stripe_settle(o.tenant_id, o.id, o.attempts, outcome, http_status, response,
                                   response #>> '{error,message}', retry_in);
END $$;

CREATE FUNCTION answer(tenant text, kind text, subject text, params jsonb) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT CASE kind
        WHEN 'product_create' THEN jsonb_build_object('id', params -> 'id', 'name', params -> 'name')
        WHEN 'product_find' THEN jsonb_build_object('id', subject, 'name', 'Something', 'active', true)
        WHEN 'product_update' THEN jsonb_build_object('id', subject)
        WHEN 'feature_find' THEN '{"data": []}'
        WHEN 'feature_create' THEN jsonb_build_object('id', 'feat_' || subject)
        WHEN 'feature_update' THEN jsonb_build_object('id', 'feat_' || subject)
        WHEN 'features_find' THEN '{"data": [], "has_more": false}'
        WHEN 'feature_attach' THEN jsonb_build_object('id', 'prodft_' || subject)
        WHEN 'meter_find' THEN '{"data": [], "has_more": false}'
        WHEN 'meter_create' THEN jsonb_build_object('id', 'mtr_' || subject)
        WHEN 'meter_update' THEN jsonb_build_object('id', 'mtr_' || subject)
        WHEN 'price_find' THEN '{"data": []}'
        WHEN 'price_create' THEN jsonb_build_object('id', 'price_' || subject)
        WHEN 'customer_create' THEN jsonb_build_object('id', 'cus_' || tenant)
        WHEN 'subscription_create' THEN
            jsonb_build_object('id', 'sub_' || subject, 'status', CASE WHEN params ? 'trial_end' THEN 'trialing' ELSE 'active' END,
                'trial_end', params -> 'trial_end', 'metadata', params -> 'metadata', 'items',
                jsonb_build_object('data', (SELECT jsonb_agg(jsonb_build_object('id', 'si_' || (i ->> 'price'), 'price',
                        jsonb_build_object('id', i ->> 'price'), 'current_period_start', params -> 'backdate_start_date',
                        'current_period_end', params -> 'billing_cycle_anchor'))
                    FROM jsonb_array_elements(params -> 'items') i)))
        WHEN 'subscription_update' THEN
            (SELECT jsonb_build_object('id', s.stripe_subscription_id,
                        'status', CASE WHEN params ? 'bill_for' THEN 'paused'
                                       WHEN params ? 'billing_cycle_anchor' OR params ->> 'trial_end' = 'now' THEN 'active'
                                       ELSE s.stripe_status END,
                        'trial_end', CASE params ->> 'trial_end' WHEN 'now' THEN to_jsonb(extract(epoch FROM billing.now())::bigint)
                                          ELSE coalesce(params -> 'trial_end', to_jsonb(extract(epoch FROM s.stripe_trial_end)::bigint)) END,
                        'cancel_at_period_end', coalesce((params ->> 'cancel_at_period_end')::boolean, s.stripe_cancels),
                        'items', jsonb_build_object('data',
                            (SELECT jsonb_agg(jsonb_build_object('id', coalesce(i.id, 'si_' || coalesce(c ->> 'price', i.price)),
                                                                 'price', jsonb_build_object('id', coalesce(c ->> 'price', i.price))))
                               FROM (SELECT s.stripe_item_id AS id, s.stripe_price_id AS price
                                     UNION ALL
                                     SELECT x.stripe_item_id, x.stripe_price_id FROM billing.subscription_items x
                                      WHERE (x.tenant_id, x.subscription_id) = (s.tenant_id, s.id)) i
                               FULL JOIN jsonb_array_elements(params -> 'items') c ON c ->> 'id' = i.id
                              WHERE NOT coalesce(c ? 'deleted', false))))
                    -- Stripe begins these two by its own clock
                    || CASE WHEN params ? 'billing_cycle_anchor' OR params ->> 'trial_end' = 'now'
                            THEN jsonb_build_object('current_period_start', extract(epoch FROM billing.now())::bigint,
                                     'current_period_end', extract(epoch FROM billing.now() + interval '1 month')::bigint)
                            ELSE '{}' END
               FROM billing.subscriptions s WHERE s.tenant_id = tenant AND s.id::text = subject)
        WHEN 'invoice_fetch' THEN
            jsonb_build_object('id', subject, 'status', 'paid', 'currency', 'usd', 'subtotal', 0, 'total', 0, 'amount_due', 0,
                'amount_paid', 0, 'amount_remaining', 0, 'created', 1896091200, 'lines', '{"has_more": false, "data": []}'::jsonb)
        ELSE '{}' END
$$;

CREATE PROCEDURE stripe() LANGUAGE plpgsql AS $$
DECLARE
    c record;
BEGIN
    -- what the test has claimed itself is claimed again, without waiting for its lease to end
    UPDATE billing.stripe_outbox SET lease_until = '-infinity' WHERE state = 'sending';
    WHILE billing._stripe_plan() > 0 OR EXISTS (SELECT FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending')) LOOP
        FOR c IN SELECT * FROM billing._stripe_claim(1000, '1 minute') LOOP
            PERFORM billing._stripe_settle(c.tenant_id, c.id, c.attempt, 'delivered', 200,
                        (SELECT answer(o.tenant_id, o.kind, o.subject, o.params) FROM billing.stripe_outbox o
                          WHERE o.tenant_id = c.tenant_id AND o.id = c.id), NULL, NULL);
        END LOOP;
        -- time goes by, for which changes may have to wait
        UPDATE billing.stripe_outbox SET settled_at = settled_at - interval '2 minutes' WHERE kind = 'meter_event';
    END LOOP;
END $$;
\set ECHO all
