-- Notifications: what tenants and the operator are told of, one row for each event and channel, and how the worker takes
-- rows and hands back answers.
--
-- A row is made in the transaction of what it tells (sql/events.sql). Payload and texts are frozen in it; its id follows from
-- channel, event and subject. So nothing is told of what was rolled back, nothing is lost, nothing made twice; and what is
-- sent a second time, its answer having been lost, has the same id.
--
--   waiting --claim--> sending --settle--> delivered
--      ^                  | |----settle--> dead      (refused, or failed for too long: retry_notifications())
--      '------settle------' '--(the worker died)--> claimed again, unchanged
--
-- Each channel has a circuit of its own: after five failures in a row nothing is sent to it for a while, and then one
-- notification to try. So an endpoint that is down holds up no others.

CREATE FUNCTION billing._install_notifications() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.notification_channels (
        tenant_id  text COLLATE "C" NOT NULL,       -- '': the operator's, told of all tenants
        id         bigint GENERATED ALWAYS AS IDENTITY,
        kind       text NOT NULL CHECK (kind IN ('webhook', 'email', 'sms')),
        address    text NOT NULL,                   -- URL, e-mail address, or telephone number
        events     text[],                          -- which ones; null: all, also those of later versions
        enabled    boolean NOT NULL DEFAULT true,
        disabled_reason text,                       -- why the worker has disabled it
        failures   int NOT NULL DEFAULT 0,          -- in a row
        open_until timestamptz,                     -- the circuit: nothing is sent before (machine time)
        created_at timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, id)
    );
    COMMENT ON TABLE billing.notification_channels IS 'where notifications go: a tenant''s own channels, and the operator''s';

    -- Read by the worker, and by nobody else but a superuser.
    CREATE TABLE IF NOT EXISTS billing.notification_secrets (
        tenant_id  text COLLATE "C" NOT NULL,
        channel_id bigint NOT NULL,
        id         bigint GENERATED ALWAYS AS IDENTITY,
        secret     text NOT NULL,
        expires_at timestamptz,             -- null: the one in force; else it signs as well until then (machine time)
        PRIMARY KEY (tenant_id, channel_id, id),
        FOREIGN KEY (tenant_id, channel_id) REFERENCES billing.notification_channels ON DELETE CASCADE
    );
    COMMENT ON TABLE billing.notification_secrets IS 'the secrets that sign webhooks';

    CREATE TABLE IF NOT EXISTS billing.notifications (
        tenant_id   text COLLATE "C" NOT NULL,      -- the channel's
        id          text NOT NULL,                  -- known to the receiver: webhook-id, Message-ID
        channel_id  bigint NOT NULL,
        event       text NOT NULL,
        about       text COLLATE "C",               -- the tenant; null: none
        payload     jsonb NOT NULL,
        title       text NOT NULL,
        message     text NOT NULL,
        state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'delivered', 'dead')),
        attempts    int NOT NULL DEFAULT 0,
        not_before  timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at  timestamptz NOT NULL DEFAULT clock_timestamp() + interval '3 days',     -- given up then
        lease_until timestamptz,                    -- while sending: when it may be claimed again at the latest
        sender      int,                            -- while sending: pid of the worker
        http_status int,                            -- or the mail server's
        error       text,
        created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        settled_at  timestamptz,
        PRIMARY KEY (tenant_id, id),
        FOREIGN KEY (tenant_id, channel_id) REFERENCES billing.notification_channels ON DELETE CASCADE
    );
    CREATE INDEX IF NOT EXISTS notifications_open ON billing.notifications (tenant_id, channel_id, not_before)
        WHERE state IN ('waiting', 'sending');
    CREATE INDEX IF NOT EXISTS notifications_channel ON billing.notifications (tenant_id, channel_id, state);
    COMMENT ON TABLE billing.notifications IS 'what is to be told, was told, or could not be: one row per event and channel';
END $$;

-- Makes the rows of an event, for every channel that wants it: the operator's, and those of the tenant it is about; or for
-- one channel. `subject` is what an event is once of. Returns the id of a row that is new.
CREATE FUNCTION billing._notify(event text, about text, subject text, title text, message text, data jsonb,
                                channel bigint DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made text;
BEGIN
    WITH fresh AS (
        INSERT INTO billing.notifications (tenant_id, id, channel_id, event, about, payload, title, message)
        SELECT c.tenant_id, 'msg_' || left(encode(sha256(convert_to(
                   jsonb_build_array(c.id, event, about, subject)::text, getdatabaseencoding())), 'hex'), 32),
               c.id, event, about,
               jsonb_build_object('type', event,
                   'timestamp', billing._iso_time(billing.now()),
                   'data', jsonb_strip_nulls(data || jsonb_build_object('tenant_id', about, 'message', message))),
               title, message
          FROM billing.notification_channels c
         WHERE c.tenant_id IN ('', about)
           AND CASE WHEN channel IS NOT NULL THEN c.id = channel
                    ELSE c.enabled AND (c.events IS NULL OR event = ANY (c.events)) END
        ON CONFLICT DO NOTHING
        RETURNING id
    )
    SELECT min(f.id) INTO made FROM fresh f;
    IF made IS NOT NULL THEN
        PERFORM billing._wake_worker('notify');
    END IF;
    RETURN made;
END $$;

-- Returns null if this database may send, else why not: a copy would tell everything once more.
CREATE FUNCTION billing._notify_ready() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'this database is a copy: run billing.adopt() if it takes over' WHERE billing._is_copy()
$$;

-- Takes up to n notifications that are due: of each channel four at once, of one that keeps failing one. The caller holds
-- the lock of the notify job, so what another sender left behind has no sender any more.
CREATE FUNCTION billing._notify_claim(n int, lease interval)
RETURNS TABLE (tenant_id text, id text, attempt int, kind text, address text, title text, message text, payload text,
               secrets text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE billing.notifications x SET state = 'dead', settled_at = clock_timestamp(),
           error = coalesce(x.error, 'its channel has been failing or disabled') || ', for too long'
     WHERE x.state = 'waiting' AND x.expires_at < clock_timestamp();
    RETURN QUERY
    WITH due AS (
        SELECT d.tenant_id, d.id
          FROM billing.notification_channels c
         CROSS JOIN LATERAL (
               SELECT count(*) AS busy FROM billing.notifications x
                WHERE x.tenant_id = c.tenant_id AND x.channel_id = c.id AND x.state = 'sending'
                  AND x.sender = pg_backend_pid() AND x.lease_until >= clock_timestamp()) b
         CROSS JOIN LATERAL (
               SELECT x.tenant_id, x.id, x.not_before FROM billing.notifications x
                WHERE x.tenant_id = c.tenant_id AND x.channel_id = c.id AND x.state IN ('waiting', 'sending')
                  AND x.not_before <= clock_timestamp()
                  AND (x.state = 'waiting' OR x.sender <> pg_backend_pid() OR x.lease_until < clock_timestamp())
                ORDER BY x.not_before
                LIMIT greatest(CASE WHEN c.failures >= 5 THEN 1 ELSE 4 END - b.busy, 0)) d
         WHERE c.enabled AND (c.open_until IS NULL OR c.open_until <= clock_timestamp())
         ORDER BY d.not_before LIMIT n
    )
    UPDATE billing.notifications x
       SET state = 'sending', attempts = x.attempts + 1, lease_until = clock_timestamp() + lease,
           sender = pg_backend_pid()
      FROM due d, billing.notification_channels c
     WHERE x.tenant_id = d.tenant_id AND x.id = d.id AND c.tenant_id = x.tenant_id AND c.id = x.channel_id
    RETURNING x.tenant_id, x.id, x.attempts, c.kind, c.address, x.title, x.message, x.payload::text,
              ARRAY(SELECT s.secret FROM billing.notification_secrets s
                     WHERE s.tenant_id = c.tenant_id AND s.channel_id = c.id
                       AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())
                     ORDER BY s.id DESC);
END $$;

-- When the next open notification is due (machine time); null if none is open.
CREATE FUNCTION billing._notify_next_due() RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT min(greatest(x.not_before, c.open_until))
      FROM billing.notifications x
      JOIN billing.notification_channels c ON c.tenant_id = x.tenant_id AND c.id = x.channel_id
     WHERE x.state IN ('waiting', 'sending') AND c.enabled
$$;

-- Settles one attempt; an answer to an attempt that has been given up changes nothing.
CREATE FUNCTION billing._notify_settle(tenant_id text, id text, attempt int, outcome text, status int, error text,
                                       retry_in interval)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sent billing.notifications;
BEGIN
    UPDATE billing.notifications x
       SET state = CASE WHEN outcome = 'delivered' THEN 'delivered'
                        WHEN outcome = 'retry' AND x.attempts < 20 THEN 'waiting' ELSE 'dead' END,
           not_before = CASE outcome WHEN 'retry' THEN clock_timestamp() + retry_in ELSE x.not_before END,
           settled_at = CASE WHEN outcome = 'retry' AND x.attempts < 20 THEN NULL ELSE clock_timestamp() END,
           lease_until = NULL, sender = NULL, http_status = status, error = _notify_settle.error
     WHERE x.tenant_id = _notify_settle.tenant_id AND x.id = _notify_settle.id
       AND x.attempts = attempt AND x.state = 'sending'
    RETURNING * INTO sent;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF outcome = 'delivered' THEN
        UPDATE billing.notification_channels c SET failures = 0, open_until = NULL
         WHERE c.tenant_id = sent.tenant_id AND c.id = sent.channel_id AND c.failures > 0;
    ELSE
        UPDATE billing.notification_channels c
           SET failures = c.failures + 1,
               open_until = CASE WHEN c.failures >= 4
                                 THEN clock_timestamp() + interval '5 seconds' * 2 ^ least(c.failures - 4, 7) END,
               enabled = c.enabled AND outcome <> 'gone',
               disabled_reason = CASE outcome WHEN 'gone' THEN sent.error ELSE c.disabled_reason END
         WHERE c.tenant_id = sent.tenant_id AND c.id = sent.channel_id;
    END IF;
END $$;

-- What was settled long ago is forgotten.
CREATE FUNCTION billing._forget_notifications() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM billing.notifications x
     WHERE x.state IN ('delivered', 'dead') AND x.settled_at < clock_timestamp() - interval '90 days'
$$;

CREATE FUNCTION billing._stat_notifications()
RETURNS TABLE (tenant_id text, channel_id bigint, kind text, address text, enabled boolean, disabled_reason text,
               failures int, open_until timestamptz, waiting bigint, delivered bigint, dead bigint,
               oldest_waiting_at timestamptz, last_delivered_at timestamptz, last_error text)
LANGUAGE sql STABLE AS $$
    SELECT c.tenant_id, c.id, c.kind, c.address, c.enabled, c.disabled_reason, c.failures, c.open_until,
           x.waiting, x.delivered, x.dead, x.oldest_waiting_at, x.last_delivered_at,
           (SELECT y.error FROM billing.notifications y
             WHERE y.tenant_id = c.tenant_id AND y.channel_id = c.id AND y.error IS NOT NULL
             ORDER BY coalesce(y.settled_at, y.not_before) DESC LIMIT 1)
      FROM billing.notification_channels c
     CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE n.state IN ('waiting', 'sending')) AS waiting,
                  count(*) FILTER (WHERE n.state = 'delivered') AS delivered,
                  count(*) FILTER (WHERE n.state = 'dead') AS dead,
                  min(n.created_at) FILTER (WHERE n.state IN ('waiting', 'sending')) AS oldest_waiting_at,
                  max(n.settled_at) FILTER (WHERE n.state = 'delivered') AS last_delivered_at
             FROM billing.notifications n WHERE n.tenant_id = c.tenant_id AND n.channel_id = c.id) x
$$;

CREATE VIEW billing.stat_notifications AS SELECT * FROM billing._stat_notifications();
COMMENT ON VIEW billing.stat_notifications IS
    'the channels of notifications: how many are waiting, delivered and dead (of the last 90 days), failures in a row, until when the circuit is open, and the latest error';
