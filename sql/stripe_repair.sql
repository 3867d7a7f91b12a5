-- What Stripe refused (the dead letter), what waits, and how what was refused is carried out once its cause is mended.
--
-- A refused request is never sent again: Stripe may still answer its key with the refusal it remembers, and what it said
-- may be out of date. It stays as history with retried_at set, no longer blocks, and the planner makes a new request of
-- today's tables. Most requests are harmless to repeat under a new key: a product has our id, prices and meters are
-- looked for first, an hour's total overwrites, an object is fetched. Of a customer, a subscription, a credit grant or an
-- invoice item Stripe would make a second one, and an attempt whose answer was lost or made no sense may have made the
-- first: so that is looked for by our
-- metadata, and adopted if it is there.

-- What an administrator can do about a refusal.
CREATE FUNCTION billing._stripe_hint(http_status int, code text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN $1 IS NULL THEN 'It was never sent: mend the parameters that cannot be encoded.'
        WHEN $1 < 300 AND $2 IS NULL THEN 'Stripe carried it out, but its answer could not be stored: mend what the error says.'
        WHEN $1 >= 500 THEN 'Stripe failed and asked not to be asked again: look at its status page.'
        WHEN $2 = 'resource_missing' THEN
            'Restore at Stripe what is missing, or put the id of what took its place into the table that holds it.'
        WHEN $2 IN ('archived_meter', 'no_meter') THEN 'Reactivate the meter at Stripe.'
        WHEN $2 = 'resource_already_exists' THEN
            'Stripe has another one under that name, with other rules or archived: rename or reactivate it there.'
        WHEN $2 = 'meter_event_customer_not_found' THEN
            'Stripe has no such customer: put the id of the one it has into billing.billing_customers.'
        WHEN $2 = 'timestamp_too_far_in_past' THEN
            'Stripe takes usage for 35 days only, so retrying is in vain: bill it by an invoice item at Stripe.'
        ELSE 'Mend what Stripe complains of.' END
$$;

CREATE FUNCTION billing._stripe_dead_letter()
RETURNS TABLE (tenant_id text, id bigint, kind text, subject text, request text, http_status int, error text,
               failed_at timestamptz, hint text)
LANGUAGE sql STABLE AS $$
    SELECT o.tenant_id, o.id, o.kind, o.subject, o.method || ' ' || o.path, o.http_status, o.error, o.settled_at,
           billing._stripe_hint(o.http_status, o.response #>> '{error,code}')
      FROM billing.stripe_outbox o WHERE o.state = 'failed' AND o.retried_at IS NULL
$$;

CREATE VIEW billing.stripe_dead_letter AS SELECT * FROM billing._stripe_dead_letter();
COMMENT ON VIEW billing.stripe_dead_letter IS
    'requests that Stripe refused for good: what, why, since when, and a hint what to do before billing.retry_failed()';

CREATE FUNCTION billing._stripe_waiting()
RETURNS TABLE (tenant_id text, id bigint, kind text, subject text, request text, state text, attempts int,
               waiting_since timestamptz, next_attempt_at timestamptz, last_error text)
LANGUAGE sql STABLE AS $$
    SELECT o.tenant_id, o.id, o.kind, o.subject, o.method || ' ' || o.path, o.state, o.attempts, o.created_at,
           CASE o.state WHEN 'waiting' THEN o.not_before END, o.error
      FROM billing.stripe_outbox o WHERE o.state IN ('waiting', 'sending')
$$;

CREATE VIEW billing.stripe_waiting AS SELECT * FROM billing._stripe_waiting();
COMMENT ON VIEW billing.stripe_waiting IS
    'requests that Stripe has not answered for good: since when, after how many attempts, when the next is due, and why the last one was in vain';

CREATE FUNCTION billing._stripe_unsubmitted()
RETURNS TABLE (tenant_id text, metric text, hours bigint, oldest_hour timestamptz, held_up_by text)
LANGUAGE sql STABLE AS $$
    SELECT d.tenant_id, d.metric, count(*), min(d.hour),
           CASE WHEN NOT m.stripe_meter_active THEN format('meter %s was deactivated at Stripe: reactivate it there', m.stripe_meter_id) END
      FROM (SELECT h.tenant_id, h.metric, h.hour FROM billing._stripe_due_hours() h
            UNION ALL
            -- of a figure, which is looked at once an hour, the first hour in which it was
            SELECT f.tenant_id, f.metric, date_trunc('hour', greatest(f.due_at, f.period_start), 'UTC')
              FROM billing.usage_figures f WHERE f.due_at <= billing.now() AND NOT f.blocked) d
      JOIN billing.metrics m ON m.name = d.metric GROUP BY 1, 2, m.name
$$;

CREATE VIEW billing.stripe_unsubmitted AS SELECT * FROM billing._stripe_unsubmitted();
COMMENT ON VIEW billing.stripe_unsubmitted IS
    'hours of usage that Stripe has not confirmed, per tenant and metric: they are sent one at a time, the oldest first, unless held_up_by says why not; those that Stripe refused are in stripe_dead_letter';

-- Asks Stripe for what a refused request was to make; the planner makes it only after the answer.
CREATE FUNCTION billing._stripe_look_for(kind text, tenant_id text, subject text, made_since timestamptz) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    -- an hour for clocks that differ; a test clock's customers are made at that clock's time
    SELECT billing._stripe_enqueue($2, 'customer_find', '', 'GET', '/v1/customers',
               '{"limit": 100}' || CASE WHEN c.stripe_test_clock IS NULL
                   THEN jsonb_build_object('created', jsonb_build_object('gte',
                            extract(epoch FROM $4 - interval '1 hour')::bigint))
                   ELSE jsonb_build_object('test_clock', c.stripe_test_clock) END)
      FROM billing.billing_customers c
     WHERE $1 LIKE 'customer\_%' AND c.tenant_id = $2
       AND (c.stripe_customer_id IS NULL OR c.stripe_deleted_at IS NOT NULL);
    SELECT billing._stripe_enqueue($2, 'subscription_find', $3, 'GET', '/v1/subscriptions',
               jsonb_build_object('customer', c.stripe_customer_id, 'limit', 100))
      FROM billing.subscriptions s JOIN billing.billing_customers c ON c.tenant_id = s.tenant_id
     WHERE $1 LIKE 'subscription\_%' AND s.tenant_id = $2 AND s.id::text = $3 AND s.status = 'pending'
       AND c.stripe_customer_id IS NOT NULL
$$;

-- Takes a page of what was looked for: ours is adopted, and if it is on no page it is planned anew.
CREATE FUNCTION billing._apply_found(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    ours jsonb;
BEGIN
    SELECT d INTO ours FROM jsonb_array_elements(response -> 'data') d
     WHERE d #>> '{metadata,tenant_id}' = r.tenant_id
       AND (r.kind = 'customer_find' OR d #>> '{metadata,subscription_id}' = r.subject)
     ORDER BY (d ->> 'created')::bigint LIMIT 1;
    IF ours IS NULL AND (response ->> 'has_more')::boolean THEN
        PERFORM billing._stripe_enqueue(r.tenant_id, r.kind, r.subject, 'GET', r.path,
                    r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'));
    ELSIF r.kind = 'customer_find' THEN
        UPDATE billing.billing_customers c SET stripe_customer_id = ours ->> 'id', stripe_deleted_at = NULL
         WHERE c.tenant_id = r.tenant_id AND (c.stripe_customer_id IS NULL OR c.stripe_deleted_at IS NOT NULL) AND ours IS NOT NULL;
    ELSIF ours IS NOT NULL THEN
        PERFORM billing._apply_subscription(r.tenant_id, ours, false);
    END IF;
END $$;

-- Puts a new request in the place of a failed one: makes the planner free to.
CREATE FUNCTION billing._stripe_put_back(request jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
BEGIN
    UPDATE billing.stripe_outbox o SET retried_at = clock_timestamp() WHERE o.tenant_id = f.tenant_id AND o.id = f.id;
    CASE
    WHEN f.kind = 'meter_event' THEN
        PERFORM billing._stripe_usage_put_back(request);
    WHEN f.kind = 'delta_find' THEN
        PERFORM billing._stripe_find_delta(to_jsonb(o), '0') FROM billing.stripe_outbox o
          WHERE o.tenant_id = f.tenant_id AND o.id = (f.detail ->> 'request')::bigint;
    WHEN f.kind IN ('customer_create', 'customer_find', 'subscription_create', 'subscription_find') THEN
        PERFORM billing._stripe_look_for(f.kind, f.tenant_id, f.subject, f.created_at);
    WHEN f.kind LIKE 'credit\_%' THEN
        PERFORM billing._put_back_credit(request);
    WHEN f.kind = 'events_list' THEN
        PERFORM billing._stripe_ask_missed(f.subject, true);
    WHEN f.kind = 'invoice_lines' OR f.kind IN (SELECT o.kind FROM billing._webhook_objects() o) THEN
        -- The events that led to it are open again: what they are about is fetched as it is today.
        UPDATE billing.webhook_events e
           SET processed_at = NULL, request_id = NULL, outcome = NULL, error = NULL, opened_at = clock_timestamp()
         WHERE e.request_id = f.id
            OR f.kind = 'invoice_lines' AND e.subject_type = 'invoice' AND e.subject_id = f.subject AND e.processed_at IS NOT NULL;
    WHEN f.kind IN ('late_item_create', 'late_item_find') THEN
        PERFORM billing._stripe_enqueue(f.tenant_id, 'late_item_find', f.subject, 'GET', '/v1/invoiceitems',
                    jsonb_build_object('customer', c.stripe_customer_id, 'limit', 100))
           FROM billing.billing_customers c WHERE c.tenant_id = f.tenant_id;
    WHEN f.kind IN ('meter_summary', 'invoice_list') THEN
        PERFORM billing._reconcile_refused(request, NULL);
    ELSE
        NULL;       -- the catalogue and changes of subscriptions, which are planned anew by themselves
    END CASE;
END $$;

-- Stripe remembers a key for a day. So what would make a second object, and may have been carried out without an answer, is
-- not sent again after that: it is put back, and looked for.
CREATE FUNCTION billing._stripe_give_up() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stale jsonb;
BEGIN
    FOR stale IN
        UPDATE billing.stripe_outbox o
           SET state = 'failed', settled_at = clock_timestamp(), lease_until = NULL, sender = NULL,
               error = concat_ws(': ', 'given up before Stripe forgets its key', o.error)
         WHERE o.state IN ('waiting', 'sending') AND o.attempts > 0 AND o.created_at < clock_timestamp() - interval '23 hours'
           AND o.kind IN ('customer_create', 'subscription_create', 'credit_grant_create', 'late_item_create')
           AND (o.state = 'waiting' OR o.sender <> pg_backend_pid() OR o.lease_until < clock_timestamp())
        RETURNING to_jsonb(o)
    LOOP
        PERFORM billing._stripe_put_back(stale);
    END LOOP;
END $$;

CREATE FUNCTION billing.retry_failed(kind text DEFAULT NULL, tenant_id text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    failed jsonb;
    put_back bigint := 0;
BEGIN
    IF tenant_id <> '' THEN
        PERFORM billing._check_tenant(tenant_id);
    END IF;
    FOR failed IN
        SELECT to_jsonb(o) FROM billing.stripe_outbox o
         WHERE o.state = 'failed' AND o.retried_at IS NULL
           AND o.kind = coalesce(retry_failed.kind, o.kind)
           AND o.tenant_id = coalesce(retry_failed.tenant_id, billing.current_tenant(), o.tenant_id)
         ORDER BY o.id FOR UPDATE
    LOOP
        PERFORM billing._stripe_put_back(failed);
        put_back := put_back + 1;
    END LOOP;
    PERFORM billing._wake_worker('stripe');
    RETURN put_back;
END $$;
COMMENT ON FUNCTION billing.retry_failed(text, text) IS
    'has the requests in stripe_dead_letter, or those of a kind or a tenant ('''': the catalogue), carried out anew once their cause is mended, each once, from what the tables say now; returns how many. Raises UB010, UB040';
