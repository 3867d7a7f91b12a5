-- Credit of tenants billed through Stripe: their grants are made there, too, and there they are spent, when an invoice is
-- finalized, on its metered lines (docs.stripe.com/billing/subscriptions/usage-based/billing-credits).
--
-- What Stripe has spent, given back, expired or voided it lists as credit balance transactions: each becomes entries of
-- credit_ledger, once, so that the ledger is Stripe's. They are listed again whenever there may be some that are not here
-- (credit_grants.stripe_stale_since): an invoice shows credit that the ledger does not, a grant has ended, an event says so.

CREATE FUNCTION billing._credit_stale(tenant text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.credit_grants g SET stripe_stale_since = clock_timestamp()
     WHERE g.tenant_id = $1 AND g.stripe_grant_id IS NOT NULL
$$;

-- The prices that a grant pays for; null: any metered one; none while Stripe has not got all that the metrics have. Stripe
-- keeps to what it is told at first.
CREATE FUNCTION billing._credit_prices(tenant_id text, metrics text[], currency text) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN bool_and(p.stripe_price_id IS NOT NULL OR p.past)
                THEN jsonb_agg(DISTINCT jsonb_build_object('id', p.stripe_price_id)) FILTER (WHERE p.stripe_price_id IS NOT NULL)
                WHEN $2 IS NOT NULL THEN '[]' END
      FROM (SELECT x.metric, x.terms, x.stripe_price_id, x.until IS NOT NULL AS past FROM billing.plan_prices x
            UNION ALL
            SELECT x.metric, x.terms, x.stripe_price_id, true FROM billing.tenant_prices x WHERE x.tenant_id = $1) p
     WHERE p.metric = ANY ($2) AND p.terms ->> 'currency' = $3
$$;

CREATE FUNCTION billing._stripe_plan_credits() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    requests bigint;
BEGIN
    -- Stripe ends grants by itself; its word for it is waited for, and asked again in an hour.
    UPDATE billing.credit_grants g SET stripe_stale_since = clock_timestamp()
     WHERE g.balance > 0 AND g.expires_at <= billing.now() AND g.stripe_grant_id IS NOT NULL AND g.stripe_stale_since IS NULL
       AND (g.stripe_checked_at >= g.expires_at AND g.stripe_checked_at > billing.now() - interval '1 hour') IS NOT TRUE;
    -- An end that came too late for Stripe, which had spent some of it (then the rest expires), or all.
    UPDATE billing.stripe_outbox o SET retried_at = clock_timestamp()
      FROM billing.credit_grants g
     WHERE o.state = 'failed' AND o.retried_at IS NULL AND o.kind IN ('credit_grant_void', 'credit_grant_expire')
       AND g.tenant_id = o.tenant_id AND g.id::text = o.subject
       AND (g.balance = 0 OR o.kind = 'credit_grant_void' AND billing._credit_was_applied(g.tenant_id, g.id));

    WITH locked AS (    -- so that none is voided here meanwhile without knowing of the request
        SELECT g.*, c.stripe_customer_id, billing._credit_prices(g.tenant_id, g.metrics, g.currency) AS prices
          FROM billing.credit_grants g JOIN billing.billing_customers c ON c.tenant_id = g.tenant_id
         WHERE g.balance > 0 AND c.stripe AND c.stripe_customer_id IS NOT NULL
           AND (g.expires_at > billing.now()) IS NOT FALSE AND (g.stripe_grant_id IS NULL) = (g.voided_at IS NULL)
           AND g.stripe_voided_at IS NULL
         ORDER BY g.id FOR NO KEY UPDATE OF g SKIP LOCKED
    ), due AS (
        SELECT l.*, CASE WHEN l.voided_at IS NULL THEN 'credit_grant_create'
                         WHEN billing._credit_was_applied(l.tenant_id, l.id) THEN 'credit_grant_expire'
                         ELSE 'credit_grant_void' END AS kind
          FROM locked l
         WHERE l.voided_at IS NOT NULL OR l.prices IS NULL OR l.prices <> '[]'
    ), changes AS (
        SELECT billing._stripe_enqueue(d.tenant_id, d.kind, d.id::text, 'POST',
                   '/v1/billing/credit_grants' || CASE d.kind WHEN 'credit_grant_create' THEN ''
                       ELSE '/' || d.stripe_grant_id || '/' || split_part(d.kind, '_', 3) END,
                   CASE d.kind WHEN 'credit_grant_create' THEN jsonb_strip_nulls(jsonb_build_object(
                       'customer', d.stripe_customer_id, 'name', d.name, 'category', d.category, 'priority', d.priority,
                       'amount', jsonb_build_object('type', 'monetary', 'monetary',
                                                    jsonb_build_object('currency', d.currency, 'value', d.balance::bigint)),
                       'applicability_config', jsonb_build_object('scope', CASE WHEN d.prices IS NULL
                           THEN '{"price_type": "metered"}' ELSE jsonb_build_object('prices', d.prices) END),
                       'expires_at', extract(epoch FROM d.expires_at)::bigint,
                       'metadata', jsonb_build_object('tenant_id', d.tenant_id, 'credit_grant_id', d.id::text)))
                   ELSE '{}' END)
          FROM due d
         WHERE billing._stripe_free(d.tenant_id, d.kind, d.id::text)
           AND billing._stripe_free(d.tenant_id, 'credit_grant_find', d.id::text)
    ), lists AS (
        SELECT billing._stripe_enqueue(c.tenant_id, 'credit_transactions', '', 'GET', '/v1/billing/credit_balance_transactions',
                   jsonb_build_object('customer', c.stripe_customer_id, 'limit', 100))
          FROM billing.billing_customers c
         WHERE c.stripe_customer_id IS NOT NULL AND billing._stripe_free(c.tenant_id, 'credit_transactions', '')
           AND c.tenant_id IN (SELECT g.tenant_id FROM billing.credit_grants g WHERE g.stripe_stale_since IS NOT NULL)
    )
    SELECT (SELECT count(*) FROM changes) + (SELECT count(*) FROM lists) INTO requests;
    RETURN requests;
END $$;

CREATE FUNCTION billing._credit_was_applied(tenant text, credit_grant bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM billing.credit_ledger e WHERE e.tenant_id = $1 AND e.grant_id = $2 AND e.kind = 'applied')
$$;

-- Stores a grant as Stripe has it. One that was made there is taken over, with all of its amount: what became of it its
-- transactions tell; so is an end that was made there.
CREATE FUNCTION billing._apply_credit_grant(tenant text, object jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    g billing.credit_grants;
    ends timestamptz := to_timestamp((object ->> 'expires_at')::bigint);
    voided timestamptz := to_timestamp((object ->> 'voided_at')::bigint);
    stale boolean;
BEGIN
    SELECT * INTO g FROM billing.credit_grants x
     WHERE x.tenant_id = tenant
       AND (x.stripe_grant_id = object ->> 'id'
            OR x.stripe_grant_id IS NULL AND object #>> '{metadata,tenant_id}' = tenant
               AND x.id::text = object #>> '{metadata,credit_grant_id}')
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO billing.credit_grants AS x (tenant_id, name, amount, currency, category, priority, metrics, created_at,
                stripe_grant_id)
        VALUES (tenant, nullif(object ->> 'name', ''), (object #>> '{amount,monetary,value}')::numeric,
                object #>> '{amount,monetary,currency}', object ->> 'category', coalesce((object ->> 'priority')::int, 50),
                CASE WHEN object #> '{applicability_config,scope,prices}' <> '[]' THEN
                    ARRAY(SELECT DISTINCT m.metric FROM billing._known_prices(tenant) m
                            JOIN jsonb_array_elements(object #> '{applicability_config,scope,prices}') p
                              ON p ->> 'id' = m.stripe_price_id ORDER BY 1) END,
                to_timestamp((object ->> 'created')::bigint), object ->> 'id')
        RETURNING * INTO g;
        PERFORM billing._credit_entry(tenant, g.id, 'granted', g.amount, g.created_at);
        PERFORM billing._audit(tenant, 'granted_at_stripe', NULL, to_jsonb(g));
        stale := true;
    END IF;
    UPDATE billing.credit_grants x
       SET stripe_grant_id = object ->> 'id', expires_at = ends, stripe_voided_at = voided,
           voided_at = coalesce(x.voided_at, voided),
           void_reason = CASE WHEN x.voided_at IS NULL AND voided IS NOT NULL THEN 'voided at Stripe' ELSE x.void_reason END,
           stripe_stale_since = CASE WHEN stale OR x.balance > 0 AND (voided IS NOT NULL OR ends <= billing.now())
                                     THEN clock_timestamp() ELSE x.stripe_stale_since END
     WHERE x.tenant_id = tenant AND x.id = g.id;
END $$;

-- Takes a page of a tenant's credit balance transactions, which come newest first, into the ledger. A page that tells
-- nothing new is the last that is asked for. A grant that is not known is fetched, and the list afterwards again.
CREATE FUNCTION billing._apply_credit_transactions(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    g billing.credit_grants;
    t record;
    began timestamptz := coalesce((r.detail ->> 'began')::timestamptz, r.created_at);  -- when the first page was asked for
    known bigint := (SELECT count(*) FROM billing.credit_ledger e WHERE e.tenant_id = r.tenant_id);
BEGIN
    PERFORM FROM billing.credit_grants x WHERE x.tenant_id = r.tenant_id AND x.stripe_grant_id IS NOT NULL ORDER BY x.id FOR NO KEY UPDATE;
    FOR t IN
        SELECT d ->> 'credit_grant' AS grant_id, to_timestamp((d ->> 'effective_at')::bigint) AS at, m.move ->> 'type' AS kind,
               (m.move #>> '{amount,monetary,value}')::numeric AS amount,
               jsonb_build_object('id', d ->> 'id', 'invoice', i.lines ->> 'invoice', 'invoice_line_item', i.lines ->> 'invoice_line_item') AS source
          FROM jsonb_array_elements(response -> 'data') WITH ORDINALITY x (d, n)
         CROSS JOIN LATERAL (SELECT d -> (d ->> 'type') AS move) m
         CROSS JOIN LATERAL (SELECT m.move -> (m.move ->> 'type') AS lines) i
         ORDER BY n DESC
    LOOP
        SELECT * INTO g FROM billing.credit_grants x WHERE x.tenant_id = r.tenant_id AND x.stripe_grant_id = t.grant_id;
        IF NOT FOUND THEN
            IF billing._stripe_free(r.tenant_id, 'credit_grant_fetch', t.grant_id) THEN
                PERFORM billing._stripe_enqueue(r.tenant_id, 'credit_grant_fetch', t.grant_id, 'GET',
                                                '/v1/billing/credit_grants/' || t.grant_id, '{}');
            END IF;
            CONTINUE;
        END IF;
        CASE t.kind
        WHEN 'credits_granted' THEN
            NULL;       -- with the grant itself
        WHEN 'credits_applied' THEN
            PERFORM billing._credit_entry(r.tenant_id, g.id, 'applied', -t.amount, t.at, stripe_transaction => t.source);
        WHEN 'credits_application_invoice_voided' THEN
            PERFORM billing._credit_entry(r.tenant_id, g.id, 'reversed', t.amount, t.at, stripe_transaction => t.source,
                                          reason => 'the invoice was voided');
        WHEN 'credits_voided' THEN
            PERFORM billing._credit_entry(r.tenant_id, g.id, 'voided', -t.amount, t.at, stripe_transaction => t.source,
                                          reason => g.void_reason);
        WHEN 'credits_expired' THEN
            PERFORM billing._expire_grant(r.tenant_id, g.id, t.amount, t.at, t.source)
              WHERE NOT EXISTS (SELECT FROM billing.credit_ledger e
                                 WHERE e.tenant_id = r.tenant_id AND e.stripe_transaction_id = t.source ->> 'id');
        END CASE;
    END LOOP;
    IF (response ->> 'has_more')::boolean AND known < (SELECT count(*) FROM billing.credit_ledger e WHERE e.tenant_id = r.tenant_id) THEN
        PERFORM billing._stripe_enqueue(r.tenant_id, r.kind, '', 'GET', r.path,
                    r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'), jsonb_build_object('began', began));
        RETURN;
    END IF;
    UPDATE billing.credit_grants x
       SET stripe_checked_at = billing.now(), stripe_stale_since = CASE WHEN x.stripe_stale_since > began THEN x.stripe_stale_since END
     WHERE x.tenant_id = r.tenant_id AND x.stripe_grant_id IS NOT NULL;
END $$;

-- Takes the answer to a request about credit.
CREATE FUNCTION billing._apply_credit(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    ours jsonb;
BEGIN
    IF r.kind = 'credit_transactions' THEN
        PERFORM billing._apply_credit_transactions(request, response);
    ELSIF r.kind <> 'credit_grant_find' THEN
        PERFORM billing._apply_credit_grant(r.tenant_id, response);
    ELSE
        SELECT d INTO ours FROM jsonb_array_elements(response -> 'data') d
         WHERE d #>> '{metadata,tenant_id}' = r.tenant_id AND d #>> '{metadata,credit_grant_id}' = r.subject
         ORDER BY (d ->> 'created')::bigint LIMIT 1;
        IF ours IS NOT NULL THEN        -- it may have been spent meanwhile
            PERFORM billing._apply_credit_grant(r.tenant_id, ours);
            PERFORM billing._credit_stale(r.tenant_id);
        ELSIF (response ->> 'has_more')::boolean THEN
            PERFORM billing._stripe_enqueue(r.tenant_id, r.kind, r.subject, 'GET', r.path,
                        r.params || jsonb_build_object('starting_after', response #>> '{data,-1,id}'));
        ELSE
            PERFORM billing._credit_entry(g.tenant_id, g.id, 'voided', -g.balance, g.voided_at, reason => g.void_reason)
               FROM billing.credit_grants g
              WHERE g.tenant_id = r.tenant_id AND g.id::text = r.subject AND g.voided_at IS NOT NULL AND g.stripe_grant_id IS NULL;
        END IF;
    END IF;
END $$;

-- Credit on a stored invoice that is not in the ledger, or the other way round: its transactions are looked at.
CREATE FUNCTION billing._compare_credit(tenant text, invoice jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._credit_stale($1)
     WHERE CASE WHEN $2 ->> 'status' IN ('draft', 'void') THEN 0
                ELSE (SELECT coalesce(sum((c ->> 'amount')::numeric), 0)
                        FROM jsonb_array_elements($2 -> 'total_pretax_credit_amounts') c
                       WHERE c ->> 'type' = 'credit_balance_transaction') END
        <> (SELECT coalesce(-sum(e.amount), 0) FROM billing.credit_ledger e
             WHERE e.tenant_id = $1 AND e.stripe_invoice_id = $2 ->> 'id')
$$;

-- Has what a failed request was to find out or make looked for; ends of grants are planned anew by themselves.
CREATE FUNCTION billing._put_back_credit(request jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
BEGIN
    CASE
    WHEN f.kind IN ('credit_transactions', 'credit_grant_fetch') THEN
        PERFORM billing._stripe_enqueue(f.tenant_id, f.kind, f.subject, f.method, f.path, f.params, f.detail);
    WHEN f.kind IN ('credit_grant_create', 'credit_grant_find') THEN
        PERFORM billing._stripe_enqueue(f.tenant_id, 'credit_grant_find', f.subject, 'GET', '/v1/billing/credit_grants',
                    jsonb_build_object('customer', c.stripe_customer_id, 'limit', 100))
           FROM billing.billing_customers c JOIN billing.credit_grants g ON g.tenant_id = c.tenant_id
          WHERE c.tenant_id = f.tenant_id AND g.id::text = f.subject AND g.stripe_grant_id IS NULL;
    ELSE
        NULL;
    END CASE;
END $$;
