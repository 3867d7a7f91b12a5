-- The channels that notifications go to: made, changed, tried out. A tenant's are its own; the operator's (tenant null) are
-- told of all tenants. What only the operator is told of, no tenant's channel gets.

-- A channel by its id, locked; as JSON because the table's type cannot be a result before the table exists. That of another
-- tenant is unknown.
CREATE FUNCTION billing._lock_channel(channel bigint) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c billing.notification_channels;
BEGIN
    SELECT * INTO c FROM billing.notification_channels x
     WHERE x.id = channel AND (billing.current_tenant() IS NULL OR x.tenant_id = billing.current_tenant()) FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown channel %', channel
            USING ERRCODE = 'UB083', HINT = 'billing.notification_channels lists the channels.';
    END IF;
    RETURN to_jsonb(c);
END $$;

CREATE FUNCTION billing._check_channel(kind text, address text, events text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (CASE kind
        WHEN 'webhook' THEN address ~ '^(https://([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])|http://(localhost|127(\.\d+){3}|\[::1\]))(:\d+)?([/?][!-~]*)?$'
                            AND address !~ '#' AND length(address) <= 2048
        WHEN 'email' THEN address ~ '^[!-~]+@[!-~]+$' AND address !~ '[<>()\[\],;:\\"]|@.*@' AND length(address) <= 254
        WHEN 'sms' THEN address ~ '^\+[1-9][0-9]{6,14}$' END) IS NOT TRUE THEN
        RAISE EXCEPTION 'address "%" of a channel of kind "%" is not valid', left(address, 100), kind
            USING ERRCODE = 'UB032',
                  HINT = 'A webhook has an https URL without user and fragment, an email an address, an sms a number such as +15550100123.';
    END IF;
    IF NOT events <@ billing._notification_events() OR events = '{}' THEN
        RAISE EXCEPTION 'events % are not valid', events
            USING ERRCODE = 'UB032',
                  HINT = format('Events are %s; null is all.', array_to_string(billing._notification_events(), ', '));
    END IF;
END $$;

CREATE FUNCTION billing._new_channel_secret(tenant_id text, channel bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    -- 32 bytes out of PostgreSQL's strong random source, as create_api_key() takes them
    INSERT INTO billing.notification_secrets (tenant_id, channel_id, secret)
    SELECT $1, $2, 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                                             || uuid_send(gen_random_uuid())), 'base64')
    RETURNING secret
$$;

CREATE FUNCTION billing.create_channel(kind text, address text, tenant_id text DEFAULT NULL, events text[] DEFAULT NULL,
                                       OUT channel bigint, OUT secret text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    whose text := coalesce(tenant_id, '');
    made billing.notification_channels;
BEGIN
    PERFORM billing._check_alert_tenant(whose);
    PERFORM billing._check_channel(kind, address, events);
    INSERT INTO billing.notification_channels AS c (tenant_id, kind, address, events, created_at)
    VALUES (whose, create_channel.kind, create_channel.address, create_channel.events, billing.now())
    RETURNING * INTO made;
    channel := made.id;
    IF kind = 'webhook' THEN
        secret := billing._new_channel_secret(whose, made.id);
    END IF;
    PERFORM billing._audit(whose, 'create_channel', NULL, to_jsonb(made) - 'address');
END $$;
COMMENT ON FUNCTION billing.create_channel(text, text, text, text[]) IS
    'has notifications sent to a webhook (https), an email address or a telephone number (sms): a tenant''s of what is about it, the operator''s (tenant null) of all; events null are all. Returns the channel''s id and, this once, the secret that signs a webhook. Raises UB010, UB032, UB040';

CREATE FUNCTION billing.update_channel(channel bigint, address text DEFAULT NULL, events text[] DEFAULT NULL,
                                       enabled boolean DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was jsonb := billing._lock_channel(channel);
    is_now jsonb;
BEGIN
    PERFORM billing._check_channel(was ->> 'kind', coalesce(address, was ->> 'address'), events);
    UPDATE billing.notification_channels c
       SET address = coalesce(update_channel.address, c.address), events = coalesce(update_channel.events, c.events),
           enabled = coalesce(update_channel.enabled, c.enabled), disabled_reason = NULL, failures = 0, open_until = NULL
     WHERE c.tenant_id = was ->> 'tenant_id' AND c.id = channel
    RETURNING to_jsonb(c) INTO is_now;
    PERFORM billing._audit(was ->> 'tenant_id', 'update_channel', was - 'address', is_now - 'address');
    PERFORM billing._wake_worker('notify');
END $$;
COMMENT ON FUNCTION billing.update_channel(bigint, text, text[], boolean) IS
    'changes a channel''s address or events, or enables or disables it; null leaves as it is. What waits for it goes to the new address, at once if enabled. Raises UB032, UB083';

CREATE FUNCTION billing.delete_channel(channel bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was jsonb := billing._lock_channel(channel);
BEGIN
    DELETE FROM billing.notification_channels c WHERE c.tenant_id = was ->> 'tenant_id' AND c.id = channel;
    PERFORM billing._audit(was ->> 'tenant_id', 'delete_channel', was - 'address', NULL);
END $$;
COMMENT ON FUNCTION billing.delete_channel(bigint) IS
    'removes a channel, its secrets and its notifications, sent or not. Raises UB083';

CREATE FUNCTION billing.rotate_channel_secret(channel bigint, overlap interval DEFAULT '1 day') RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c jsonb := billing._lock_channel(channel);
BEGIN
    IF c ->> 'kind' <> 'webhook' OR (overlap BETWEEN interval '0' AND interval '30 days') IS NOT TRUE THEN
        RAISE EXCEPTION 'a secret of a channel of kind "%" cannot overlap by %', c ->> 'kind', overlap
            USING ERRCODE = 'UB032', HINT = 'Webhooks have secrets; the old one holds for 30 days at most.';
    END IF;
    UPDATE billing.notification_secrets s
       SET expires_at = least(s.expires_at, clock_timestamp() + overlap)
     WHERE s.tenant_id = c ->> 'tenant_id' AND s.channel_id = channel;
    DELETE FROM billing.notification_secrets s
     WHERE s.tenant_id = c ->> 'tenant_id' AND s.channel_id = channel AND s.expires_at <= clock_timestamp();
    PERFORM billing._audit(c ->> 'tenant_id', 'rotate_channel_secret', NULL, jsonb_build_object('id', channel));
    RETURN billing._new_channel_secret(c ->> 'tenant_id', channel);
END $$;
COMMENT ON FUNCTION billing.rotate_channel_secret(bigint, interval) IS
    'gives a webhook another secret and returns it, this once; for the overlap the previous one signs as well. Raises UB032, UB083';

CREATE FUNCTION billing.test_notification(channel bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c jsonb := billing._lock_channel(channel);
BEGIN
    IF NOT (c ->> 'enabled')::boolean THEN
        RAISE EXCEPTION 'channel % is disabled', channel
            USING ERRCODE = 'UB084', DETAIL = c ->> 'disabled_reason', HINT = 'Enable it with billing.update_channel().';
    END IF;
    RETURN billing._notify('test', nullif(c ->> 'tenant_id', ''), gen_random_uuid()::text, 'Test notification',
                           'This is a test: notifications arrive here.', '{}', channel);
END $$;
COMMENT ON FUNCTION billing.test_notification(bigint) IS
    'sends a test to a channel, whatever events it wants, and returns the notification''s id; how it fared is in billing.stat_notifications. Raises UB083, UB084';

CREATE FUNCTION billing.retry_notifications(channel bigint DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own text := billing.current_tenant();
    put_back bigint;
BEGIN
    IF channel IS NOT NULL THEN
        PERFORM billing._lock_channel(channel);
    END IF;
    UPDATE billing.notification_channels c SET failures = 0, open_until = NULL
     WHERE (channel IS NULL OR c.id = channel) AND (own IS NULL OR c.tenant_id = own) AND c.failures > 0;
    UPDATE billing.notifications x
       SET state = 'waiting', attempts = 0, not_before = clock_timestamp(), settled_at = NULL,
           expires_at = clock_timestamp() + interval '3 days'
     WHERE x.state = 'dead' AND (channel IS NULL OR x.channel_id = channel) AND (own IS NULL OR x.tenant_id = own);
    GET DIAGNOSTICS put_back = ROW_COUNT;
    PERFORM billing._wake_worker('notify');
    RETURN put_back;
END $$;
COMMENT ON FUNCTION billing.retry_notifications(bigint) IS
    'has what is dead sent again, of one channel or of all, under the same ids, and failing channels tried at once; returns how many. Raises UB083';
