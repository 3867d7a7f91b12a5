-- API keys of the HTTP shim. Only a key's SHA-256 is kept; a key is 256 random bits, so a plain hash is enough.

CREATE FUNCTION billing._install_api_keys() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.api_keys (
        id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        sha256     bytea NOT NULL UNIQUE,
        prefix     text NOT NULL,           -- enough of the key to recognise it
        tenant_id  text COLLATE "C" REFERENCES billing.billing_customers,   -- null: a service, which names the tenant per request
        scopes     text[] NOT NULL,
        created_at timestamptz NOT NULL,
        expires_at timestamptz,
        revoked_at timestamptz
    );
    COMMENT ON TABLE billing.api_keys IS 'hashed keys of the HTTP shim, of one tenant or of a service';
END $$;

CREATE FUNCTION billing.create_api_key(tenant_id text DEFAULT NULL,
                                       scopes text[] DEFAULT '{usage:read,usage:write,subscription:read,subscription:write}',
                                       expires_at timestamptz DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- gen_random_uuid() is PostgreSQL's strong random source; three of them have more than 256 random bits
    key text := 'pgb_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                                        || uuid_send(gen_random_uuid())), 'hex');
BEGIN
    IF tenant_id IS NOT NULL THEN
        PERFORM billing._check_tenant(tenant_id);
    END IF;
    IF scopes IS NULL OR scopes = '{}'
       OR NOT scopes <@ '{usage:read,usage:write,subscription:read,subscription:write,sessions:create,metrics:read}'::text[] THEN
        RAISE EXCEPTION 'scopes % are not valid', scopes
            USING ERRCODE = 'UB032',
                  HINT = 'Scopes are usage:read, usage:write, subscription:read, subscription:write, sessions:create and, of a service, metrics:read.';
    END IF;
    INSERT INTO billing.api_keys (sha256, prefix, tenant_id, scopes, created_at, expires_at)
    VALUES (sha256(convert_to(key, 'UTF8')), left(key, 12), create_api_key.tenant_id, create_api_key.scopes,
            billing.now(), create_api_key.expires_at);
    RETURN key;
END $$;
COMMENT ON FUNCTION billing.create_api_key(text, text[], timestamptz) IS
    'creates an API key of a tenant, or of a service (tenant null), and returns it this once. Raises UB010, UB032, UB040';

CREATE FUNCTION billing.revoke_api_key(prefix text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH revoked AS (UPDATE billing.api_keys k SET revoked_at = billing.now()
                      WHERE k.prefix = $1 AND k.revoked_at IS NULL RETURNING 1)
    SELECT count(*) FROM revoked
$$;
COMMENT ON FUNCTION billing.revoke_api_key(text) IS
    'revokes, from its commit on, the API keys that begin with a prefix of 12 characters; returns how many';

-- Whose a request is: the tenant, null if a service names none; or why it is refused. In one place for requests one by
-- one and many at once.
CREATE FUNCTION billing._authenticate(key_sha256 bytea, tenant_id text, scope text,
                                      OUT tenant text, OUT refused_with text, OUT refusal text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k billing.api_keys;
BEGIN
    SELECT * INTO k FROM billing.api_keys a
     WHERE a.sha256 = key_sha256 AND a.revoked_at IS NULL
       AND (a.expires_at IS NULL OR a.expires_at > billing.now());
    IF NOT FOUND THEN
        refused_with := 'UB041';
        refusal := 'API key is unknown, revoked or expired';
    ELSIF (scope = ANY (k.scopes)) IS NOT TRUE THEN
        refused_with := 'UB042';
        refusal := format('API key "%s" lacks scope "%s"', k.prefix, scope);
    ELSIF nullif(_authenticate.tenant_id, '') <> k.tenant_id THEN
        refused_with := 'UB040';
        refusal := format('API key "%s" belongs to another tenant than "%s"', k.prefix, left(_authenticate.tenant_id, 64));
    ELSE
        tenant := coalesce(k.tenant_id, nullif(_authenticate.tenant_id, ''));
    END IF;
END $$;

CREATE FUNCTION billing.begin_request(key_sha256 bytea, tenant_id text, scope text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    caller record;
BEGIN
    SELECT * INTO caller FROM billing._authenticate(key_sha256, begin_request.tenant_id, scope);
    IF caller.refused_with IS NOT NULL THEN
        RAISE EXCEPTION '%', caller.refusal USING ERRCODE = caller.refused_with;
    ELSIF caller.tenant IS NULL THEN
        RAISE EXCEPTION 'a service key must name the tenant' USING ERRCODE = 'UB043';
    END IF;
    PERFORM set_config('pg_billing.tenant_id', caller.tenant, true);
    RETURN caller.tenant;
END $$;
COMMENT ON FUNCTION billing.begin_request(bytea, text, text) IS
    'authenticates a request of the shim and binds the rest of the transaction to its tenant, which it returns. Raises UB040 to UB043';

CREATE FUNCTION billing.begin_session(tenant_id text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM set_config('pg_billing.tenant_id', tenant_id, true);
    RETURN tenant_id;
END $$;
COMMENT ON FUNCTION billing.begin_session(text) IS
    'binds the rest of the transaction to the tenant whose token the shim has verified. Raises UB010, UB040';

CREATE FUNCTION billing.authenticate(key_sha256s bytea[], tenant_ids text[], scope text)
RETURNS TABLE (request int, tenant text, refused_with text, refusal text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.n::int, a.tenant, a.refused_with, a.refusal
      FROM unnest(key_sha256s, tenant_ids) WITH ORDINALITY r (key, tenant, n),
           billing._authenticate(r.key, r.tenant, scope) a
$$;
COMMENT ON FUNCTION billing.authenticate(bytea[], text[], text) IS
    'tells of each of many requests whose it is (null: a service that names no tenant), or the SQLSTATE and message that refuse it; binds nothing';

-- Many requests of different callers in one transaction. Nothing binds that to a tenant, so here and nowhere else an
-- event gets its tenant: that of its request, else the one that it names itself; none if its request is refused.
CREATE FUNCTION billing.record_usage_requests(key_sha256s bytea[], tenant_ids text[], requests int[], own_tenants text[],
                                              metrics text[], quantities numeric[], idempotency_keys text[],
                                              occurred_ats timestamptz[], properties jsonb[])
RETURNS TABLE (request int, ordinal int, idempotency_key text, status text, reason text, used numeric, quota numeric,
               remaining numeric, cap text, resets_at timestamptz, warning text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenants text[];
    refusals text[];
    tenant_of text[];
BEGIN
    SELECT array_agg(a.tenant ORDER BY a.request), array_agg(a.refused_with || ': ' || a.refusal ORDER BY a.request)
      INTO tenants, refusals
      FROM billing.authenticate(key_sha256s, record_usage_requests.tenant_ids, 'usage:write') a;
    tenant_of := ARRAY(SELECT CASE WHEN refusals[e.request] IS NULL THEN coalesce(tenants[e.request], e.own) END
                         FROM unnest(requests, own_tenants) WITH ORDINALITY e (request, own, n) ORDER BY e.n);
    RETURN QUERY
    SELECT n, NULL::int, NULL, 'refused', refusals[n], NULL::numeric, NULL::numeric, NULL::numeric, NULL, NULL::timestamptz, NULL
      FROM generate_series(1, cardinality(refusals)) n WHERE refusals[n] IS NOT NULL;
    RETURN QUERY
    SELECT requests[r.ordinal], r.ordinal, r.idempotency_key, r.status,
           CASE WHEN tenant_of[r.ordinal] IS NULL THEN 'UB043: a service key must name the tenant' ELSE r.reason END,
           r.used, r.quota, r.remaining, r.cap, r.resets_at, r.warning
      FROM billing._record_usage_decided(tenant_of, record_usage_requests.metrics, record_usage_requests.quantities,
                                         record_usage_requests.idempotency_keys, record_usage_requests.occurred_ats,
                                         record_usage_requests.properties) r
     WHERE refusals[requests[r.ordinal]] IS NULL;
END $$;
COMMENT ON FUNCTION billing.record_usage_requests(bytea[], text[], int[], text[], text[], numeric[], text[], timestamptz[], jsonb[]) IS
    'records the events of many requests of the shim, an array element each: a row for each with its decision, rejected with SQLSTATE and message, or one without an ordinal for a request that is refused. Raises UB026, UB050';

-- Checks of many callers in one statement; of a key that is null the shim has verified a token. What is wrong with one is told of it
-- alone: when all together fail, they are checked one by one.
CREATE FUNCTION billing.check_quota_requests(key_sha256s bytea[], tenant_ids text[], callers int[], metrics text[], quantities numeric[])
RETURNS TABLE (request int, status text, reason text, used numeric, quota numeric, remaining numeric, cap text,
               resets_at timestamptz, warning text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenants text[];
    refusals text[];    -- of callers, then of checks
    decisions billing.decision[];
BEGIN
    SELECT array_agg(CASE WHEN key_sha256s[a.request] IS NULL THEN tenant_ids[a.request] ELSE a.tenant END ORDER BY a.request),
           array_agg(CASE WHEN key_sha256s[a.request] IS NOT NULL THEN a.refused_with || ': ' || a.refusal END ORDER BY a.request)
      INTO tenants, refusals
      FROM billing.authenticate(key_sha256s, tenant_ids, 'usage:read') a;
    refusals := ARRAY(SELECT coalesce(refusals[c.caller], CASE WHEN tenants[c.caller] IS NULL THEN 'UB043: a service key must name the tenant' END)
                        FROM unnest(callers) WITH ORDINALITY c (caller, n) ORDER BY c.n);
    BEGIN
        decisions := ARRAY(SELECT CASE WHEN c.refusal IS NULL
                                       THEN billing.check_quota(tenants[c.caller], c.metric, coalesce(c.quantity, 1)) END
                             FROM unnest(callers, metrics, quantities, refusals) c (caller, metric, quantity, refusal));
    EXCEPTION WHEN OTHERS THEN
        decisions := array_fill(NULL::billing.decision, ARRAY[coalesce(cardinality(callers), 0)]);
        FOR n IN 1 .. coalesce(cardinality(callers), 0) LOOP
            CONTINUE WHEN refusals[n] IS NOT NULL;
            BEGIN
                decisions[n] := billing.check_quota(tenants[callers[n]], metrics[n], coalesce(quantities[n], 1));
            EXCEPTION WHEN OTHERS THEN
                refusals[n] := SQLSTATE || ': ' || SQLERRM;
            END;
        END LOOP;
    END;
    RETURN QUERY
    SELECT d.n::int, CASE WHEN d.refusal IS NULL THEN d.status ELSE 'rejected' END, coalesce(d.refusal, d.reason),
           d.used, d.quota, d.remaining, d.cap, d.resets_at, d.warning
      FROM ROWS FROM (unnest(decisions), unnest(refusals)) WITH ORDINALITY
           d (status, allowed, reason, used, quota, remaining, cap, resets_at, warning, refusal, n);
END $$;
COMMENT ON FUNCTION billing.check_quota_requests(bytea[], text[], int[], text[], numeric[]) IS
    'checks quotas for many requests of the shim: of callers (a key''s SHA-256, or null for a token that is verified, and the tenant it names), by their number, a metric and a quantity each (null: 1); a row for each with its decision, or rejected with SQLSTATE and message';
