-- The quota cache: what gateways at the edge need to know of a quota, written to Redis by the worker (worker/cache.cpp), and
-- what they let through, taken from there as usage. Redis is never the truth: an entry that is missing, old or of a period
-- that is over is a question to the database.
--
-- A run begins with _cache_begin(), reads entries under snapshots taken after it, writes them, and ends with _cache_done(). A
-- run that does not get that far leaves the state as it is, so the next one does the same again. Of two that are written, the
-- higher version stands, whoever comes last.

CREATE FUNCTION billing._install_quota_cache() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.quota_cache_state (
        only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        version      bigint NOT NULL DEFAULT 0,     -- of the latest run: microseconds, so that it grows beyond a restored backup's
        redis_run    text,                          -- which start of Redis holds our entries; null: none
        server_start timestamptz,                   -- and what they were read from: generations live in shared memory
        generations  bigint[],
        seen_before  timestamptz,                   -- events of ticks before this one are in Redis, but for
        unseen       timestamptz[],                 -- these, which were being written in
        next_generations bigint[],                  -- the same three for when the run under way is done
        next_seen_before timestamptz,
        next_unseen      timestamptz[],
        entries_written bigint NOT NULL DEFAULT 0,
        events_drained  bigint NOT NULL DEFAULT 0,
        hits         bigint NOT NULL DEFAULT 0,     -- decisions at the edge, as gateways have counted them in Redis
        misses       bigint NOT NULL DEFAULT 0,
        denials      bigint NOT NULL DEFAULT 0,
        warmed_at    timestamptz,                   -- machine time, as the following
        last_run_at  timestamptz,
        error        text                           -- why the latest run did not get to its end
    );
    INSERT INTO billing.quota_cache_state DEFAULT VALUES ON CONFLICT DO NOTHING;
    COMMENT ON TABLE billing.quota_cache_state IS 'how far the quota cache in Redis is, and what it has done';
END $$;

-- How often the quota terms of all tenants, and those of each of many groups of tenants, have changed since the server
-- started; and the group of a tenant.
CREATE FUNCTION billing._quota_generations() RETURNS bigint[]
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_quota_generations';
CREATE FUNCTION billing._quota_group(tenant_id text) RETURNS int
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_billing_quota_group';

-- Begins a run; `redis_run` names the start of Redis and is empty if our heartbeat is not in it. Everything has to be written
-- where it may have been lost, or plans or metrics have changed. Another tick is opened, so that what is committed by now is
-- in a closed one, or in one that is being written in.
CREATE FUNCTION billing._cache_begin(redis_run text, OUT version bigint, OUT everything boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    state billing.quota_cache_state;
    ticks timestamptz[];
    now_at bigint[] := billing._quota_generations();
BEGIN
    SELECT * INTO STRICT state FROM billing.quota_cache_state FOR UPDATE;
    everything := redis_run IS DISTINCT FROM state.redis_run OR state.seen_before IS NULL
                  OR state.server_start IS DISTINCT FROM pg_postmaster_start_time() OR now_at[1] <> state.generations[1];
    ticks := billing._open_tick(greatest((SELECT s.folded_before FROM billing.rollup_state s), state.seen_before));
    version := greatest(state.version + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    UPDATE billing.quota_cache_state s
       SET version = _cache_begin.version, next_generations = now_at, next_seen_before = ticks[1], next_unseen = ticks[2:];
END $$;

CREATE FUNCTION billing._cache_done(redis_run text, everything boolean, written bigint, drained bigint, hits bigint,
                                    misses bigint, denials bigint) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.quota_cache_state s
       SET redis_run = $1, server_start = pg_postmaster_start_time(), generations = next_generations,
           seen_before = next_seen_before, unseen = next_unseen, entries_written = entries_written + $3,
           events_drained = events_drained + $4, hits = s.hits + $5, misses = s.misses + $6, denials = s.denials + $7,
           warmed_at = CASE WHEN $2 THEN clock_timestamp() ELSE warmed_at END, last_run_at = clock_timestamp(), error = NULL
$$;

CREATE FUNCTION billing._cache_failed(error text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.quota_cache_state s SET error = $1 WHERE s.error IS DISTINCT FROM $1
$$;

-- What an entry says. Quantities are in units of the metric's smallest decimal, and no greater than Lua can count;
-- `bound` is what usage may not pass, -1: nothing; `ends` is until when the terms hold, `resets` when the period is over, in
-- seconds of the machine's time, -1: never. Of what cannot be decided from one number (limits per hour or day, usage that
-- does not add up) there is no entry: `cached` is false. An entry of nothing used is written only if there is one already.
CREATE TYPE billing._cache_entry AS (
    tenant_id text, metric text, cached boolean, in_use boolean, used text, quota text, bound text, cap text, refusal text,
    period text, ends text, resets text, scale text
);

CREATE FUNCTION billing._cache_entry_of(tenant_id text, metric text) RETURNS billing._cache_entry
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shift interval := billing._duration('pg_billing.time_shift');
    most numeric := 9007199254740991;      -- 2^53 - 1
    entry billing._cache_entry := ROW(tenant_id, metric, false);
    q record;
    used numeric;
BEGIN
    SELECT * INTO q FROM billing._quota_in_force(tenant_id, metric, billing.now());
    IF q.tenant IS NULL OR q.metric_name IS NULL OR q.kind <> 'gauge' AND q.aggregation NOT IN ('sum', 'count')
       OR EXISTS (SELECT FROM billing._window_limits(tenant_id, metric, q.plan, q.timezone, billing.now()) w
                   WHERE w.quota IS NOT NULL) THEN
        RETURN entry;
    END IF;
    used := billing._used(tenant_id, metric, lower(q.period)) + billing._held(tenant_id, metric, lower(q.period));
    entry.cached := true;
    entry.in_use := used <> 0;
    entry.used := least(ceil(used * 10 ^ q.scale::numeric), most)::bigint;
    entry.quota := coalesce(least(floor(q.quota * 10 ^ q.scale::numeric), most)::bigint, -1);
    entry.bound := coalesce(least(floor(q.bound * 10 ^ q.scale::numeric), most)::bigint, -1);
    entry.cap := coalesce(q.cap, '');
    entry.refusal := coalesce(q.refusal, '');
    entry.period := extract(epoch FROM lower(q.period));
    entry.ends := CASE WHEN isfinite(upper(q.valid)) THEN floor(extract(epoch FROM upper(q.valid) - shift))::bigint ELSE -1 END;
    entry.resets := CASE WHEN isfinite(upper(q.period)) THEN floor(extract(epoch FROM upper(q.period) - shift))::bigint ELSE -1 END;
    entry.scale := q.scale;
    RETURN entry;
END $$;

-- All entries there may be, n at a time in the order of tenant and metric.
CREATE FUNCTION billing._cache_all(after_tenant text, after_metric text, n int) RETURNS SETOF billing._cache_entry
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.* FROM (
        SELECT DISTINCT u.tenant_id, u.metric FROM billing.usage_quotas u
         WHERE (u.tenant_id, u.metric) > ($1, $2) AND u.period_end > billing.now() AND u.period_start <= billing.now()
         ORDER BY u.tenant_id, u.metric LIMIT $3) p, billing._cache_entry_of(p.tenant_id, p.metric) e
     ORDER BY p.tenant_id, p.metric
$$;

-- The entries of what has been used, drained (`also`, an array of tenant and metric) or granted since the latest run that was
-- done; after _cache_all() of what it does not find in usage_quotas.
CREATE FUNCTION billing._cache_changed(everything boolean, also jsonb) RETURNS SETOF billing._cache_entry
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    state billing.quota_cache_state;
    batch billing._batch;
    groups int[];
BEGIN
    SELECT * INTO STRICT state FROM billing.quota_cache_state;
    IF everything THEN
        batch := billing._tail();
    ELSE
        batch := ROW(least(state.seen_before, (SELECT min(t) FROM unnest(state.unseen) t)), state.seen_before, state.unseen,
                     state.next_seen_before, '{}'::timestamptz[]);
        groups := ARRAY(SELECT g.n FROM unnest(state.generations, state.next_generations) WITH ORDINALITY g (was, is_now, n)
                         WHERE g.was <> g.is_now);
    END IF;
    RETURN QUERY
        SELECT e.* FROM (
            SELECT DISTINCT v.tenant_id, v.metric FROM billing.usage_events v WHERE billing._in_batch(v.tick, batch)
            UNION
            SELECT u.tenant_id, u.metric
              FROM billing.billing_customers c JOIN billing.usage_quotas u ON u.tenant_id = c.tenant_id
             WHERE billing._quota_group(c.tenant_id) = ANY (groups)
               AND u.period_end > billing.now() AND u.period_start <= billing.now()
            UNION
            SELECT a.tenant_id, a.metric FROM jsonb_to_recordset(also) a (tenant_id text, metric text)) p,
            billing._cache_entry_of(p.tenant_id, p.metric) e;
END $$;

-- Records what gateways have let through: an array of {tenant_id, metric, units, scale, id, resets}, each id once however often it
-- comes. It counts into the period in which it was let through, though that may be over by now.
CREATE FUNCTION billing._cache_drain(taken jsonb) RETURNS TABLE (ordinal int, status text, reason text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT b.ordinal, b.status, b.reason
      FROM (SELECT array_agg(t.tenant_id ORDER BY t.n) AS tenants, array_agg(t.metric ORDER BY t.n) AS metrics,
                   array_agg(round(t.units / 10 ^ t.scale::numeric, t.scale) ORDER BY t.n) AS quantities, array_agg('edge:' || t.id ORDER BY t.n) AS keys,
                   array_agg(CASE WHEN t.resets > 0
                                  THEN least(billing.now(), to_timestamp(t.resets) + billing._duration('pg_billing.time_shift')
                                                            - interval '1 second')
                                  ELSE billing.now() END ORDER BY t.n) AS times
              FROM ROWS FROM (jsonb_to_recordset(taken) AS (tenant_id text, metric text, units numeric, scale int, id text, resets numeric))
                   WITH ORDINALITY t (tenant_id, metric, units, scale, id, resets, n)) a,
           billing.record_usage_batch(a.tenants, a.metrics, a.quantities, a.keys, a.times) b
$$;

CREATE FUNCTION billing._stat_quota_cache()
RETURNS TABLE (entries_written bigint, events_drained bigint, hits bigint, misses bigint, denials bigint, hit_rate numeric,
               warmed_at timestamptz, last_run_at timestamptz, staleness interval, error text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.entries_written, s.events_drained, s.hits, s.misses, s.denials,
           round(s.hits::numeric / nullif(s.hits + s.misses, 0), 4), s.warmed_at, s.last_run_at,
           clock_timestamp() - s.last_run_at, s.error
      FROM billing.quota_cache_state s
$$;

CREATE VIEW billing.stat_quota_cache AS SELECT * FROM billing._stat_quota_cache();
COMMENT ON VIEW billing.stat_quota_cache IS
    'the quota cache in Redis: entries written, drained usage, decisions at the edge (hits, misses, denials among the hits), when it was written whole (warmed_at) and last, how old it may be (staleness), and why the latest run failed';
