-- Usage that Stripe accepted and could not count: what its reports name is unsubmitted again, and waits for retry_failed().
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
UPDATE billing.metrics SET export = 'delta' WHERE name = 'agent_executions';
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
CREATE VIEW hours AS SELECT metric, extract(hour FROM hour AT TIME ZONE 'UTC') AS hour, quantity, submitted, blocked FROM billing.usage_aggregates;
CREATE PROCEDURE use(quantity numeric, metric text DEFAULT 'api_calls') LANGUAGE plpgsql AS $$
BEGIN
    PERFORM billing.record_usage('acme', metric, quantity);
    PERFORM billing.run_rollup();
END $$;
CALL use(5);
CALL use(7, 'llm_tokens');
CALL stripe();
CALL travel('1 hour');
CALL use(6);
CALL stripe();
SELECT * FROM hours ORDER BY 1, 2;
-- the key of the latest request for the usage of that hour
CREATE FUNCTION key(at int, metric text DEFAULT 'api_calls') RETURNS text LANGUAGE sql AS $$
    SELECT idempotency_key FROM billing.stripe_outbox
     WHERE kind = 'meter_event' AND subject = metric AND extract(hour FROM (detail ->> 'hour')::timestamptz AT TIME ZONE 'UTC') = at
     ORDER BY id DESC LIMIT 1
$$;
-- a report arrives as a thin event, and is fetched
CREATE PROCEDURE report(id text, type text, data jsonb) LANGUAGE plpgsql AS $$
DECLARE
    about jsonb := CASE type WHEN 'error_report_triggered' THEN '{"id": "mtr_api_calls", "type": "billing.meter", "url": "/v1/billing/meters/mtr_api_calls"}' END;
    thin jsonb := jsonb_build_object('id', id, 'object', 'v2.core.event', 'type', 'v1.billing.meter.' || type, 'created', '2030-01-31T14:00:00.000Z',
                                     'livemode', false, 'context', null, 'related_object', about);
BEGIN
    PERFORM billing.receive_webhook(thin::text);
    PERFORM billing._stripe_plan();
    PERFORM billing._stripe_claim(100, '0');
    CALL settle('', 'event_fetch', id, 'delivered', thin || jsonb_build_object('data', data));
END $$;
CREATE FUNCTION sample(code text, errors int, named_by text, VARIADIC keys text[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('validation_start', '2030-01-31T13:59:50Z', 'validation_end', '2030-01-31T14:00:00Z',
        'developer_message_summary', 'There were errors.', 'reason', jsonb_build_object('error_count', errors, 'error_types', jsonb_build_array(
            jsonb_build_object('code', code, 'error_count', errors, 'sample_errors',
                (SELECT jsonb_agg(jsonb_build_object('error_message', 'It is ' || code, 'request', jsonb_build_object(named_by, k))) FROM unnest(keys) k)))))
$$;
SELECT billing.receive_webhook('{"id": "evt_0", "object": "v2.core.event", "type": "v1.billing.meter.error_report_triggered", "livemode": false,
    "related_object": {"id": "mtr_api_calls", "type": "billing.meter"}}');
SELECT billing._stripe_plan();
SELECT tenant_id, kind, subject, method, path, params FROM billing.stripe_outbox WHERE state = 'waiting';
DELETE FROM billing.stripe_outbox WHERE state = 'waiting';
DELETE FROM billing.webhook_events;

CALL report('evt_1', 'error_report_triggered', sample('archived_meter', 2, 'identifier', key(12), 'somebody else''s'));
SELECT * FROM hours ORDER BY 1, 2;
SELECT event_id, code, meter_id, errors, samples, refused, message, since, until FROM billing.stripe_meter_errors;
SELECT tenant_id, kind, subject, http_status, error, hint FROM billing.stripe_dead_letter;
SELECT outcome FROM billing.webhook_events;
-- what waits there is not planned, until it is put back; then with a key of its own
SELECT billing._stripe_plan();
SELECT key(12) AS was \gset
SELECT billing.retry_failed();
SELECT billing._stripe_plan();
SELECT subject, params #>> '{payload,value}' AS value, idempotency_key <> :'was' AS another FROM billing.stripe_outbox WHERE state = 'waiting';
-- the same report again, now that a request for the hour is under way, and once it has been delivered: of no account
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL report('evt_2', 'error_report_triggered', sample('archived_meter', 1, 'identifier', :'was'));
CALL settle('acme', 'meter_event', 'api_calls', 'delivered', '{}');
CALL report('evt_3', 'error_report_triggered', sample('archived_meter', 1, 'identifier', :'was'));
SELECT * FROM hours ORDER BY 1, 2;
SELECT event_id, refused FROM billing.stripe_meter_errors ORDER BY 1;
-- nor is what was overwritten since by a later total of the hour
SELECT key(13) AS was \gset
CALL use(10);
CALL stripe();
CALL report('evt_4', 'error_report_triggered', sample('archived_meter', 1, 'identifier', :'was'));
SELECT * FROM hours WHERE hour = 13;
-- by idempotency key, without a meter, of several metrics; told twice, counted once
CALL report('evt_5', 'no_meter_found', sample('no_meter', 2, 'idempotency_key', key(13), key(12, 'llm_tokens')));
CALL report('evt_6', 'no_meter_found', sample('no_meter', 2, 'idempotency_key', key(13), key(12, 'llm_tokens')));
SELECT * FROM hours ORDER BY 1, 2;
SELECT event_id, code, meter_id, errors, samples, refused FROM billing.stripe_meter_errors WHERE code = 'no_meter' ORDER BY 1;
SELECT billing.replay_webhooks(ids => '{evt_5}');
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '0') \g /dev/null
CALL settle('', 'event_fetch', 'evt_5', 'delivered', '{"id": "evt_5"}' || jsonb_build_object('data', sample('no_meter', 2, 'idempotency_key', key(13))));
SELECT event_id, errors, samples, refused FROM billing.stripe_meter_errors WHERE code = 'no_meter' ORDER BY 1;
SELECT billing.retry_failed('meter_event');
CALL stripe();
SELECT * FROM hours ORDER BY 1, 2;
-- more than are named
CALL report('evt_7', 'error_report_triggered', sample('meter_event_customer_not_found', 40, 'identifier', key(13)));
SELECT code, errors, samples, refused FROM billing.stripe_meter_errors WHERE event_id = 'evt_7';
CALL report('evt_8', 'error_report_triggered', '{"reason": {"error_types": [{"code": "timestamp_in_future", "error_count": 3}]}}');
SELECT code, errors, samples, refused FROM billing.stripe_meter_errors WHERE event_id = 'evt_8';
CALL report('evt_9', 'error_report_triggered', '{}');
SELECT outcome, count(*) FROM billing.webhook_events GROUP BY 1;
-- of a meter that adds up, only the part that is named is due again, whatever came later
CALL use(5, 'agent_executions');
CALL stripe();
SELECT key(13, 'agent_executions') AS first \gset
CALL use(3, 'agent_executions');
CALL stripe();
CALL use(5, 'agent_executions');
CALL stripe();
CALL report('evt_a', 'error_report_triggered', sample('meter_event_invalid_value', 1, 'identifier', :'first'));
SELECT * FROM hours WHERE metric = 'agent_executions';
SELECT billing.retry_failed('meter_event');
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT params #>> '{payload,value}' AS value FROM billing.stripe_outbox WHERE state = 'waiting' AND subject = 'agent_executions';
CALL stripe();
SELECT * FROM hours WHERE metric = 'agent_executions';
-- also while another part is under way, which then does not stand for it
SELECT key(13, 'agent_executions') AS last \gset
CALL use(4, 'agent_executions');
SELECT FROM billing._stripe_plan() \g /dev/null
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL report('evt_b', 'error_report_triggered', sample('meter_event_invalid_value', 1, 'identifier', :'last'));
CALL settle('acme', 'meter_event', 'agent_executions', 'delivered', '{}');
SELECT * FROM hours WHERE metric = 'agent_executions';
CALL stripe();
SELECT metric, quantity, submitted, (SELECT sum((detail ->> 'delta')::numeric) FROM billing.stripe_outbox o
    WHERE o.state = 'delivered' AND o.detail ? 'delta') AS counted FROM hours WHERE metric = 'agent_executions';
