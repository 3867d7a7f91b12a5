-- API keys: shown once and kept as a hash; scopes, expiry, revocation, and whose they are.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_customer('other', 'Other', 'o@o.example', stripe => false) \g /dev/null
SELECT billing.create_api_key('acme') AS acme,
       billing.create_api_key('acme', '{usage:read}', billing.now() + interval '1 hour') AS reader,
       billing.create_api_key() AS service \gset
SELECT :'acme' ~ '^pgb_[0-9a-f]{64}$' AS acme, :'service' ~ '^pgb_[0-9a-f]{64}$' AS service, :'acme' <> :'reader' AS different;
SELECT tenant_id, scopes, expires_at - created_at AS lasts, length(prefix) AS prefix, revoked_at,
       sha256 IN (sha256(:'acme'), sha256(:'reader'), sha256(:'service')) AS hashed
  FROM billing.api_keys ORDER BY id;
SELECT count(*) AS keys_found FROM billing.api_keys k WHERE k::text LIKE '%' || substr(:'acme', 20) || '%';
CALL attempt($$SELECT billing.create_api_key('nobody')$$);
CALL attempt($$SELECT billing.create_api_key('acme', '{usage:read,everything}')$$);
CALL attempt($$SELECT billing.create_api_key('acme', '{}')$$);
CALL attempt($$SELECT billing.create_api_key('acme', NULL)$$);

-- a request: the tenant is bound to the end of the transaction
CREATE FUNCTION request(key text, tenant text, scope text) RETURNS text LANGUAGE sql AS $$
    SELECT format('SELECT billing.begin_request(%L, %L, %L)', sha256(convert_to(key, 'UTF8')), tenant, scope)
$$;
BEGIN;
SELECT billing.begin_request(sha256(:'acme'), NULL, 'usage:write');
SHOW pg_billing.tenant_id;
SELECT status FROM billing.record_usage('acme', 'api_calls');
CALL attempt($$SELECT billing.record_usage('other', 'api_calls')$$);
COMMIT;
SHOW pg_billing.tenant_id;
SELECT billing.begin_request(sha256(:'acme'), '', 'usage:write'), billing.begin_request(sha256(:'acme'), 'acme', 'usage:read');
SELECT billing.begin_request(sha256(:'service'), 'other', 'subscription:write'), billing.begin_request(sha256(:'reader'), NULL, 'usage:read');
SELECT request(:'acme', 'other', 'usage:read') AS other_tenant, request(:'reader', NULL, 'usage:write') AS no_scope,
       request(:'acme', NULL, NULL) AS null_scope, request(:'service', NULL, 'usage:read') AS no_tenant,
       request(:'service', '', 'usage:read') AS empty_tenant, request('pgb_' || repeat('0', 64), NULL, 'usage:read') AS unknown \gset
CREATE PROCEDURE attempt_unnamed(statement text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
    RAISE INFO '%: %', SQLSTATE, regexp_replace(SQLERRM, 'pgb_[0-9a-f]{8}', 'pgb_PREFIX');
END $$;
CALL attempt_unnamed(:'other_tenant');
CALL attempt_unnamed(:'no_scope');
CALL attempt_unnamed(:'null_scope');
CALL attempt_unnamed(:'no_tenant');
CALL attempt_unnamed(:'empty_tenant');
CALL attempt_unnamed(:'unknown');
CALL attempt_unnamed('SELECT billing.begin_request(NULL, NULL, NULL)');
-- expired
SELECT request(:'reader', NULL, 'usage:read') AS reader_request \gset
CALL travel('59 minutes');
CALL attempt(:'reader_request');
CALL travel('2 minutes');
CALL attempt(:'reader_request');
-- revoked, by its first 12 characters, from the commit on
SELECT request(:'acme', NULL, 'usage:read') AS acme_request \gset
BEGIN;
SELECT billing.revoke_api_key(left(:'acme', 12));
CALL attempt(:'acme_request');
ROLLBACK;
CALL attempt(:'acme_request');
SELECT billing.revoke_api_key(left(:'acme', 12));
CALL attempt(:'acme_request');
SELECT billing.revoke_api_key(left(:'acme', 12)), billing.revoke_api_key('pgb_'), billing.revoke_api_key('%');
SELECT count(*) FILTER (WHERE revoked_at IS NOT NULL) AS revoked, count(*) FROM billing.api_keys;

-- many requests in one transaction: each event gets the tenant of its own request, and only of one that is accepted
SELECT billing.create_api_key('acme') AS mine \gset
SELECT * FROM billing.authenticate(ARRAY[sha256(:'mine'), sha256(:'service'), sha256(:'service'), sha256(:'mine'), sha256('none')],
                                   '{NULL,NULL,other,acme,acme}', 'usage:write');
SELECT request, ordinal, idempotency_key AS key, status, regexp_replace(reason, 'pgb_[0-9a-f]{8}', 'pgb_PREFIX') AS reason, used, quota
  FROM billing.record_usage_requests(
           ARRAY[sha256(:'mine'), sha256(:'service'), sha256('none'), sha256(:'mine')], '{NULL,NULL,other,other}',
           '{1,1,2,2,2,3,4,1}', '{other,NULL,other,NULL,nobody,other,other,NULL}',
           '{api_calls,nope,api_calls,api_calls,api_calls,api_calls,api_calls,api_calls}', '{2,1,3,1,1,1,1,2}',
           '{m1,m2,m3,m4,m5,m6,m7,m1}', NULL, NULL);
SELECT tenant_id, idempotency_key, quantity FROM billing.usage_events WHERE idempotency_key ~ '^m' ORDER BY 1, 2;
SHOW pg_billing.tenant_id;

-- many checks in one statement: what is wrong with one is told of it alone, and a tenant without a key has been verified
SELECT request, status, regexp_replace(reason, 'pgb_[0-9a-f]{8}', 'pgb_PREFIX') AS reason, used, quota, cap
  FROM billing.check_quota_requests(
           ARRAY[sha256(:'mine'), sha256(:'service'), sha256('none'), sha256(:'mine'), NULL, NULL, NULL], '{NULL,other,acme,other,other,nobody,NULL}',
           '{1,1,2,3,4,5,6,7,1,1}',
           '{api_calls,nope,api_calls,api_calls,api_calls,api_calls,api_calls,api_calls,api_calls,api_calls}', '{1,1,NULL,1,1,1,1,1,-1,9999999}');
SELECT request, status, reason FROM billing.check_quota_requests(ARRAY[sha256(:'mine'), sha256('none')], '{NULL,other}', '{1,2,1}', '{api_calls,api_calls,user_seats}', '{1,1,NULL}');
SELECT * FROM billing.check_quota_requests('{}', '{}', '{}', '{}', '{}');
SHOW pg_billing.tenant_id;

-- a token that the shim has verified
BEGIN;
SELECT billing.begin_session('acme');
SELECT status FROM billing.check_quota('acme', 'api_calls');
CALL attempt($$SELECT billing.check_quota('other', 'api_calls')$$);
COMMIT;
SHOW pg_billing.tenant_id;
CALL attempt($$SELECT billing.begin_session('nobody')$$);
CALL attempt($$SELECT billing.begin_session(NULL)$$);
