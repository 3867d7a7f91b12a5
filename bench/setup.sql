-- The database every row starts from: pg_billing, 1,000 tenants with a hard cap nobody reaches, and what a user would
-- write instead (schema peer). The load runs as bench_app, which has no more rights than an application.
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION pg_billing;
SELECT billing.install() \g /dev/null
SELECT billing.create_customer(n::text, 'Tenant ' || n, n || '@example.com', stripe => false)
  FROM generate_series(1001, 2000) n \g /dev/null
SELECT billing.set_quota(n::text, 'api_calls', 1000000000000, cap => 'hard')
  FROM generate_series(1001, 2000) n \g /dev/null

CREATE ROLE bench_app LOGIN IN ROLE billing_app, pg_read_server_files;    -- to COPY a file
CREATE SCHEMA peer;

-- The same row as an event of ours, and nothing else: no key, no index, no partitions.
CREATE TABLE peer.events (LIKE billing.usage_events);

-- The same row with a key that counts once.
CREATE TABLE peer.keyed_events (LIKE billing.usage_events, PRIMARY KEY (tenant_id, idempotency_key));

-- Room on the page lets every update of a counter stay there (HOT), which is the best a counter row can do.
CREATE TABLE peer.counters (
    tenant_id text, metric text, used numeric NOT NULL DEFAULT 0, quota numeric NOT NULL,
    PRIMARY KEY (tenant_id, metric)
) WITH (fillfactor = 50);
INSERT INTO peer.counters (tenant_id, metric, quota)
SELECT n::text, 'api_calls', 1000000000000 FROM generate_series(1001, 2000) n;

-- The counter-row function a user would write: exactly once by a unique key, capped by a guarded update.
CREATE FUNCTION peer.consume(tenant text, what text, n numeric, key text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO peer.keyed_events (tenant_id, metric, quantity, occurred_at, recorded_at, period_start, tick,
                                   idempotency_key)
    VALUES (tenant, what, n, now(), now(), now(), now(), key)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN true;        -- counted before
    END IF;
    UPDATE peer.counters c SET used = c.used + n
     WHERE c.tenant_id = tenant AND c.metric = what AND c.used + n <= c.quota;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'quota exceeded';       -- takes the event back, too
    END IF;
    RETURN true;
END $$;

GRANT USAGE ON SCHEMA peer TO bench_app;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA peer TO bench_app;
