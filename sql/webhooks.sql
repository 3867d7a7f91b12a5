-- Stripe's webhooks, stored raw by the shim or fetched because their delivery failed (sql/webhook_missed.sql).
-- webhook_events belongs to no tenant. What an event leads to is in sql/webhook_objects.sql.
--
-- An event is open until it is processed, which ends in one outcome:
--   applied                        what it is about was fetched, and stored
--   failed                         that was in vain: error says why, the request is in stripe_dead_letter
--   kept, unknown type             it leads to nothing here, or nobody here knows what it is about
--   unknown customer               it is about a customer that is no tenant's
--   wrong mode, other account      of test mode where the key is live, or the reverse; of a connected account

CREATE FUNCTION billing._install_webhooks() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.webhook_events (
        id           text PRIMARY KEY,      -- Stripe's event id: a second delivery is a duplicate
        type         text NOT NULL,
        livemode     boolean,
        account      text,                  -- null: the key's own
        thin         boolean NOT NULL,      -- it names what it is about, and holds no data
        api_version  text,
        object_type  text,                  -- what it is about
        object_id    text,
        customer_id  text,
        subject_type text,                  -- what is fetched on its account; null: nothing
        subject_id   text,
        origin       text NOT NULL CHECK (origin IN ('delivered', 'fetched')),
        payload      text,                  -- the body as it came; null: not kept any more
        received_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        opened_at    timestamptz NOT NULL DEFAULT clock_timestamp(),     -- when it was received, or replayed last
        request_id   bigint,                -- the fetch in stripe_outbox that takes care of it
        processed_at timestamptz,
        outcome      text CHECK (outcome IN ('applied', 'failed', 'kept', 'unknown type', 'unknown customer', 'wrong mode',
                                             'other account')),
        error        text,
        CHECK ((processed_at IS NULL) = (outcome IS NULL))
    );
    CREATE INDEX IF NOT EXISTS webhook_events_open ON billing.webhook_events (subject_type, subject_id)
        WHERE processed_at IS NULL;
    CREATE INDEX IF NOT EXISTS webhook_events_request ON billing.webhook_events (request_id);
    CREATE INDEX IF NOT EXISTS webhook_events_processed ON billing.webhook_events (processed_at);
    COMMENT ON TABLE billing.webhook_events IS 'every verified webhook of Stripe''s, raw, and what became of it';
END $$;

-- Stores an event once. A thin one (object v2.core.event) names the object it is about, and says no more; its type is
-- the snapshot's with a v1 before it (docs.stripe.com/event-destinations).
CREATE FUNCTION billing._store_event(event jsonb, payload text, origin text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    thin boolean := coalesce(event ->> 'object' = 'v2.core.event', false);
    about jsonb := CASE WHEN thin THEN jsonb_build_object('object', event #> '{related_object,type}', 'id', event #> '{related_object,id}')
                        ELSE event #> '{data,object}' END;
BEGIN
    INSERT INTO billing.webhook_events (id, type, livemode, account, thin, api_version, object_type, object_id, customer_id,
                                        subject_type, subject_id, payload, origin)
    SELECT event ->> 'id', event ->> 'type', (event ->> 'livemode')::boolean,
           CASE WHEN thin THEN event ->> 'context' ELSE event ->> 'account' END,
           thin, event ->> 'api_version', about ->> 'object', about ->> 'id',
           CASE about ->> 'object' WHEN 'customer' THEN about ->> 'id' ELSE about ->> 'customer' END,
           s.type, s.id, _store_event.payload, _store_event.origin
      FROM billing._webhook_subject(event ->> 'id', event ->> 'type', about) s
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END $$;

CREATE FUNCTION billing.receive_webhook(payload text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    event jsonb;
BEGIN
    BEGIN
        event := payload::jsonb;
    EXCEPTION WHEN data_exception THEN
        event := NULL;
    END;
    IF (octet_length(event ->> 'id') <= 255 AND octet_length(event ->> 'type') <= 255
        AND coalesce(jsonb_typeof(event -> 'livemode'), 'null') IN ('boolean', 'null')) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'webhook body is not a Stripe event'
            USING ERRCODE = 'UB032', HINT = 'An event is a JSON object with an id and a type.';
    END IF;
    IF NOT billing._store_event(event, payload, 'delivered') THEN
        RETURN 'duplicate';
    END IF;
    PERFORM billing._wake_worker('stripe');
    RETURN 'stored';
END $$;
COMMENT ON FUNCTION billing.receive_webhook(text) IS
    'stores the body of a webhook whose signature the caller has verified, snapshot or thin, once per event id: stored or duplicate. Raises UB032';

CREATE FUNCTION billing.replay_webhooks(since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, type text DEFAULT NULL,
                                        ids text[] DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    replayed bigint;
    unknown text;
BEGIN
    IF num_nonnulls(since, until, type, ids) = 0 THEN
        RAISE EXCEPTION 'no webhooks to replay are named'
            USING ERRCODE = 'UB062', HINT = 'Say since when, until when, of which type (invoice.* takes all of invoices), or which ids.';
    END IF;
    SELECT i INTO unknown FROM unnest(ids) i WHERE NOT EXISTS (SELECT FROM billing.webhook_events e WHERE e.id = i) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'unknown webhook event "%"', left(unknown, 64)
            USING ERRCODE = 'UB063', HINT = 'SELECT id FROM billing.webhook_events lists those that are kept.';
    END IF;
    WITH opened AS (
        UPDATE billing.webhook_events e
           SET processed_at = NULL, outcome = NULL, error = NULL, request_id = NULL, opened_at = clock_timestamp()
          FROM billing.webhook_events was
         WHERE was.id = e.id AND e.processed_at IS NOT NULL
           AND e.received_at >= coalesce(since, '-infinity') AND e.received_at < coalesce(until, 'infinity')
           AND e.type LIKE replace(replace(coalesce(replay_webhooks.type, '*'), '_', '\_'), '*', '%')
           AND e.id = ANY (coalesce(ids, ARRAY[e.id]))
        RETURNING was.request_id
    ), retried AS (     -- what a new fetch takes the place of
        UPDATE billing.stripe_outbox o SET retried_at = clock_timestamp()
          FROM opened WHERE o.id = opened.request_id AND o.state = 'failed' AND o.retried_at IS NULL
    )
    SELECT count(*) INTO replayed FROM opened;
    PERFORM billing._wake_worker('stripe');
    RETURN replayed;
END $$;
COMMENT ON FUNCTION billing.replay_webhooks(timestamptz, timestamptz, text, text[]) IS
    'has processed webhooks processed again, those received since one time and before another, of a type (* stands for anything) or with these ids: what they are about is fetched as it is now; returns how many. Raises UB062, UB063';

CREATE FUNCTION billing._stat_webhooks()
RETURNS TABLE (type text, outcome text, events bigint, mean_time double precision, p95_time double precision,
               max_time double precision, oldest timestamptz, latest timestamptz, last_error text)
LANGUAGE sql STABLE AS $$
    SELECT e.type, coalesce(e.outcome, 'open'), count(*),
           avg(t.spent), percentile_cont(0.95) WITHIN GROUP (ORDER BY t.spent), max(t.spent),
           min(e.opened_at), max(e.opened_at), (array_agg(e.error ORDER BY e.processed_at DESC) FILTER (WHERE e.error IS NOT NULL))[1]
      FROM billing.webhook_events e
      CROSS JOIN LATERAL (SELECT 1000 * extract(epoch FROM e.processed_at - e.opened_at)::float8 AS spent) t
     GROUP BY 1, 2
$$;

CREATE VIEW billing.stat_webhooks AS SELECT * FROM billing._stat_webhooks();
COMMENT ON VIEW billing.stat_webhooks IS
    'webhooks by type and outcome (open: not processed yet): how many, the time (ms) from receipt to outcome, when the oldest and the latest came in, and the last error';

-- Payloads hold personal data: processed ones are kept for pg_billing.webhook_retention. Ids are kept for as long as Stripe
-- may send an event again or list it, which is 30 days.
CREATE FUNCTION billing._prune_webhooks() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept interval := billing._duration('pg_billing.webhook_retention');
BEGIN
    IF kept < interval '0' THEN
        RETURN;
    END IF;
    DELETE FROM billing.webhook_events e WHERE e.processed_at < clock_timestamp() - greatest(kept, '31 days');
    UPDATE billing.webhook_events e SET payload = NULL
     WHERE e.processed_at < clock_timestamp() - kept AND e.payload IS NOT NULL;
END $$;
