-- Partition upkeep: usage_events has one partition per UTC day in which events are recorded.

CREATE FUNCTION billing._protect_table(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('ALTER TABLE billing.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
END $$;

-- Makes the partition of a day unless it exists; moves rows that had to wait in the default partition into it.
-- The bounds are written out as text: not every way of showing a time is read back as the same time.
CREATE FUNCTION billing._ensure_day(day date) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
    name text := 'usage_events_' || to_char(day, 'YYYYMMDD');
    starts timestamptz := day::timestamp AT TIME ZONE 'UTC';
    ends timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    IF to_regclass(format('billing.%I', name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Rows move, or may be written, where a plan does not look that was made of the partitions there were before. So nobody
    -- may be between his plan and his snapshot; but where all is still to come, attaching locks less.
    IF day <= (billing.now() AT TIME ZONE 'UTC')::date THEN
        LOCK TABLE billing.usage_events IN ACCESS EXCLUSIVE MODE;
    END IF;
    EXECUTE format('CREATE TABLE billing.%I (LIKE billing.usage_events INCLUDING ALL)', name);
    PERFORM billing._protect_table(name);
    LOCK TABLE billing.usage_events_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('WITH moved AS (DELETE FROM billing.usage_events_default
                                    WHERE tick >= $1 AND tick < $2 RETURNING *)
                    INSERT INTO billing.%I SELECT * FROM moved', name) USING starts, ends;
    EXECUTE format('ALTER TABLE billing.usage_events ATTACH PARTITION billing.%I FOR VALUES FROM (%L) TO (%L)',
                   name, starts, ends);
    RETURN true;
END $$;

CREATE FUNCTION billing.maintain() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := (billing.now() AT TIME ZONE 'UTC')::date;
BEGIN
    -- Three days ahead outlive a worker that is down. A clock that was set forward has left its tick there.
    PERFORM billing._ensure_day(day)
       FROM (SELECT today + n FROM generate_series(0, 3) n
             UNION SELECT (e.tick AT TIME ZONE 'UTC')::date FROM billing.usage_events_default e) days (day);
    PERFORM billing._drop_old_events();
    PERFORM billing._forget_notifications();
    -- No event may be later than 35 days (pg_billing.late_limit).
    DELETE FROM billing.usage_gauge_changes g USING billing.rollup_state s
     WHERE g.occurred_at < s.tail - interval '36 days';
    PERFORM billing._prune_webhooks();
    PERFORM billing._prune_outbox();
END $$;
COMMENT ON FUNCTION billing.maintain() IS
    'makes the partitions of usage_events that the coming days need, and drops those that pg_billing.event_retention no longer keeps, and webhooks and requests to Stripe as pg_billing.webhook_retention and outbox_retention say';
