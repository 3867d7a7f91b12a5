-- What is not kept for ever: idempotency keys after pg_billing.dedup_window, whole days of events after
-- pg_billing.event_retention; see also billing.maintain(). Aggregates stay.

CREATE FUNCTION billing._duration(setting text) RETURNS interval
LANGUAGE sql STABLE AS $$
    -- in seconds: a day of a setting has 24 hours
    SELECT make_interval(secs => extract(epoch FROM current_setting($1)::interval)::float8)
$$;

-- Keys have no index by age, which would slow down every event; so they are found by sweeping over the table, which is
-- stored about in the order of its age. Each call goes on where the last one stopped.
CREATE FUNCTION billing.prune_keys(max_rows int DEFAULT 5000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept interval := billing._duration('pg_billing.dedup_window');
    closed timestamptz := billing._closed_by(billing.now() - kept);
    keys_per_block CONSTANT int := current_setting('block_size')::int / 56;     -- not more fit in
    part int;
    block bigint;
    ends bigint;
    blocks bigint;
    deleted bigint := 0;
    found bigint;
BEGIN
    IF kept < interval '0' OR NOT isfinite(closed) THEN
        RETURN 0;
    END IF;
    SELECT s.sweep_part, s.sweep_block INTO STRICT part, block FROM billing.rollup_state s FOR UPDATE;
    ends := pg_relation_size(format('billing.usage_event_keys_%s', part)::regclass) / current_setting('block_size')::int;
    WHILE block < ends AND deleted < max_rows LOOP
        blocks := greatest((max_rows - deleted) / keys_per_block, 1);
        EXECUTE format('DELETE FROM billing.usage_event_keys_%s WHERE ctid >= ''(%s,0)'' AND ctid < ''(%s,0)'' AND tick < $1',
                       part, block, block + blocks) USING closed;
        GET DIAGNOSTICS found = ROW_COUNT;
        deleted := deleted + found;
        block := block + blocks;
    END LOOP;
    UPDATE billing.rollup_state s
       SET sweep_part = CASE WHEN block < ends THEN part ELSE (part + 1) % 16 END,
           sweep_block = CASE WHEN block < ends THEN block ELSE 0 END;
    RETURN deleted;
END $$;
COMMENT ON FUNCTION billing.prune_keys(int) IS
    'forgets idempotency keys older than pg_billing.dedup_window, about max_rows at most, out of one of the table''s 16 partitions; returns how many. Fewer than max_rows: that partition is done, and the next call begins the next one';

-- Drops days of events: not while late events may be added to the hours of theirs, and not before they are rolled up.
CREATE FUNCTION billing._drop_old_events() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    kept interval := billing._duration('pg_billing.event_retention');
    shortest interval := billing._duration('pg_billing.late_limit') + interval '24 hours';
    state billing.rollup_state;
    closed timestamptz;
    day name;
BEGIN
    IF kept < interval '0' THEN
        RETURN;
    ELSIF kept < shortest THEN
        RAISE WARNING 'pg_billing.event_retention is too short: no events are dropped'
            USING HINT = format('It has to be %s s at least: a day more than pg_billing.late_limit.',
                                extract(epoch FROM shortest)::bigint);
        RETURN;
    END IF;
    SELECT * INTO STRICT state FROM billing.rollup_state;
    closed := billing._closed_by(least(billing.now(), state.tail) - kept);
    IF NOT isfinite(closed) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM billing._stripe_due_hours() h WHERE h.hour < closed) THEN
        IF NOT state.held_back THEN
            RAISE WARNING 'no events are dropped: usage from before % is not submitted to Stripe',
                to_char(closed AT TIME ZONE 'UTC', 'YYYY-MM-DD')
                USING HINT = 'Look at billing.stripe_unsubmitted, stripe_waiting, stripe_dead_letter and stripe_state.';
            UPDATE billing.rollup_state SET held_back = true;
        END IF;
        RETURN;
    END IF;
    IF state.held_back THEN
        UPDATE billing.rollup_state SET held_back = false;
    END IF;
    -- A few at a time: the lock on usage_events ends with the transaction.
    FOR day IN
        SELECT c.relname
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'billing.usage_events'::regclass AND c.relname ~ '^usage_events_\d{8}$'
           AND c.relname < 'usage_events_' || to_char(closed AT TIME ZONE 'UTC', 'YYYYMMDD')
         ORDER BY 1 LIMIT 8
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE billing.%I', day);
            RAISE LOG 'dropped billing.%: pg_billing.event_retention has passed', day;
        EXCEPTION
            WHEN lock_not_available THEN
                RETURN;     -- somebody is reading events for long, and nobody shall queue up behind us: the next time
            WHEN OTHERS THEN
                RAISE WARNING 'could not drop billing.%: %', day, SQLERRM;
        END;
    END LOOP;
END $$;
