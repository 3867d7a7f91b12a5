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
       OR NOT scopes <@ '{usage:read,usage:write,subscription:read,subscription:write}'::text[] THEN
        RAISE EXCEPTION 'scopes % are not valid', scopes
            USING ERRCODE = 'UB032',
                  HINT = 'Scopes are usage:read, usage:write, subscription:read and subscription:write.';
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

CREATE FUNCTION billing.begin_request(key_sha256 bytea, tenant_id text, scope text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k billing.api_keys;
    tenant text;
BEGIN
    SELECT * INTO k FROM billing.api_keys a
     WHERE a.sha256 = key_sha256 AND a.revoked_at IS NULL
       AND (a.expires_at IS NULL OR a.expires_at > billing.now());
    IF NOT FOUND THEN
        RAISE EXCEPTION 'API key is unknown, revoked or expired' USING ERRCODE = 'UB041';
    END IF;
    IF (scope = ANY (k.scopes)) IS NOT TRUE THEN
        RAISE EXCEPTION 'API key "%" lacks scope "%"', k.prefix, scope USING ERRCODE = 'UB042';
    END IF;
    tenant := coalesce(k.tenant_id, nullif(begin_request.tenant_id, ''));
    IF tenant IS NULL THEN
        RAISE EXCEPTION 'a service key must name the tenant' USING ERRCODE = 'UB043';
    END IF;
    IF nullif(begin_request.tenant_id, '') <> tenant THEN
        RAISE EXCEPTION 'API key "%" belongs to another tenant than "%"', k.prefix, left(begin_request.tenant_id, 64)
            USING ERRCODE = 'UB040';
    END IF;
    PERFORM set_config('pg_billing.tenant_id', tenant, true);
    RETURN tenant;
END $$;
COMMENT ON FUNCTION billing.begin_request(bytea, text, text) IS
    'authenticates a request of the shim and binds the rest of the transaction to its tenant, which it returns. Raises UB040 to UB043';
