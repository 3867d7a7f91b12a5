-- What the rollup adds for metrics that are more than a sum: gauges, the last and the greatest of a period's events, how
-- many different values a property had, and usage by dimension. Each function reads the same batch of events as the
-- rollup's first pass, which has made the hours' rows, and leaves them as if the events had been folded in any other order.

CREATE FUNCTION billing._install_rollup_kinds() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.usage_uniques (
        tenant_id    text COLLATE "C" NOT NULL,
        metric       text NOT NULL,
        period_start timestamptz NOT NULL,
        value        uuid NOT NULL,                 -- billing._event_key() of it
        hour         timestamptz NOT NULL,          -- in which it counts
        PRIMARY KEY (tenant_id, metric, period_start, value)
    );
    COMMENT ON TABLE billing.usage_uniques IS
        'the values of metrics.unique_property seen in a billing period, hashed; each counts in the hour it was first seen in';

    CREATE TABLE IF NOT EXISTS billing.usage_gauge_changes (
        tenant_id    text COLLATE "C" NOT NULL,
        metric       text NOT NULL,
        occurred_at  timestamptz NOT NULL,
        quantity     numeric NOT NULL,
        PRIMARY KEY (tenant_id, metric, occurred_at)
    );
    COMMENT ON TABLE billing.usage_gauge_changes IS
        'the changes of gauges in the hours that late events may still change, as far as they are rolled up';

    CREATE TABLE IF NOT EXISTS billing.usage_breakdown (
        tenant_id    text COLLATE "C" NOT NULL,
        metric       text NOT NULL,
        period_start timestamptz NOT NULL,
        hour         timestamptz NOT NULL,
        dimensions   jsonb NOT NULL,                -- those of metrics.dimensions that the events had
        quantity     numeric NOT NULL,
        events       bigint NOT NULL,               -- without those that were voided
        PRIMARY KEY (tenant_id, metric, period_start, hour, dimensions)
    );
    COMMENT ON TABLE billing.usage_breakdown IS 'usage_aggregates broken down by the dimensions a metric declares';
END $$;

-- What an event adds to a metric that adds up. What takes back an event takes back one that was counted.
CREATE FUNCTION billing._contribution(aggregation text, quantity numeric, void_reason text) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN $1 <> 'count' THEN $2 WHEN $3 IS NULL THEN 1 ELSE -1 END
$$;

-- The value of a dimension: a property as text, cut so that it fits into an index.
CREATE FUNCTION billing._dimension(properties jsonb, name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT left($1 ->> $2, 100) $$;

-- The highest level of a gauge within an hour, above that before the hour: out of what is rolled up, and of the events
-- of a tail, if one is given. Changes at the same moment are one; a change at the full hour leaves nothing of the level
-- before.
CREATE FUNCTION billing._gauge_peak(own text, what text, starts timestamptz, tail billing._batch DEFAULT NULL)
RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    ends timestamptz := starts + interval '1 hour';
BEGIN
    RETURN (SELECT max(l.level)
              FROM (SELECT sum(c.quantity) OVER (ORDER BY c.occurred_at) AS level
                      FROM (SELECT starts AS occurred_at, 0 AS quantity
                            UNION ALL
                            SELECT g.occurred_at, g.quantity FROM billing.usage_gauge_changes g
                             WHERE g.tenant_id = own AND g.metric = what
                               AND g.occurred_at >= starts AND g.occurred_at < ends
                            UNION ALL
                            SELECT e.occurred_at, e.quantity FROM billing.usage_events e
                             WHERE e.tenant_id = own AND billing._in_batch(e.tick, tail) AND e.metric = what
                               AND e.occurred_at >= starts AND e.occurred_at < ends) c) l);
END $$;

-- Gauges: the average over time follows from the weighted changes, the maximum from the peaks. A peak is extended by
-- what came later, and computed anew if something came in between.
CREATE FUNCTION billing._roll_up_gauges(batch billing._batch, metrics text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO billing.usage_gauge_changes AS g (tenant_id, metric, occurred_at, quantity)
    SELECT e.tenant_id, e.metric, e.occurred_at, sum(e.quantity) FROM billing.usage_events e
     WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics)
     GROUP BY 1, 2, 3
    ON CONFLICT ON CONSTRAINT usage_gauge_changes_pkey DO UPDATE SET quantity = g.quantity + excluded.quantity;

    WITH changes AS (
        SELECT e.tenant_id, e.metric, date_bin('1 hour', e.occurred_at, 'epoch') AS hour, e.occurred_at, e.quantity,
               sum(e.quantity) OVER (PARTITION BY e.tenant_id, e.metric, date_bin('1 hour', e.occurred_at, 'epoch')
                                     ORDER BY e.occurred_at) AS level
          FROM billing.usage_events e
         WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics)
    ), hours AS (
        SELECT c.tenant_id, c.metric, c.hour, sum(c.quantity) AS quantity, max(c.level) AS peak,
               sum(c.quantity * extract(epoch FROM c.hour + interval '1 hour' - c.occurred_at)) AS weighted,
               min(c.occurred_at) AS first_at, max(c.occurred_at) AS last_at
          FROM changes c GROUP BY 1, 2, 3
    )
    UPDATE billing.usage_aggregates a
       SET weighted = coalesce(a.weighted, 0) + h.weighted,
           last_at = greatest(a.last_at, h.last_at),
           peak = CASE WHEN a.last_at IS NULL THEN greatest(h.peak, CASE WHEN h.first_at > h.hour THEN 0 END)
                       WHEN a.last_at < h.first_at THEN greatest(a.peak, a.quantity - h.quantity + h.peak)
                       ELSE billing._gauge_peak(a.tenant_id, a.metric, a.hour) END
      FROM hours h
     WHERE a.tenant_id = h.tenant_id AND a.metric = h.metric AND a.period_start = '-infinity' AND a.hour = h.hour;
END $$;

-- Maxima and last values: an hour is what its decisive event says.
CREATE FUNCTION billing._roll_up_decisive(batch billing._batch, metrics text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE billing.usage_aggregates a
       SET quantity = d.quantity, last_at = d.occurred_at, recorded_at = d.recorded_at
      FROM (SELECT DISTINCT ON (e.tenant_id, e.metric, e.period_start, hour)
                   e.tenant_id, e.metric, e.period_start, date_bin('1 hour', e.occurred_at, 'epoch') AS hour,
                   e.quantity, e.occurred_at, e.recorded_at, m.aggregation
              FROM billing.usage_events e JOIN billing.metrics m ON m.name = e.metric
             WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics)
             ORDER BY e.tenant_id, e.metric, e.period_start, hour,
                      CASE m.aggregation WHEN 'max' THEN e.quantity END DESC,
                      e.occurred_at DESC, e.recorded_at DESC, e.quantity DESC) d
     WHERE a.tenant_id = d.tenant_id AND a.metric = d.metric AND a.period_start = d.period_start AND a.hour = d.hour
       AND (a.last_at IS NULL
            OR CASE d.aggregation WHEN 'max' THEN d.quantity > a.quantity
               ELSE (d.occurred_at, d.recorded_at, d.quantity) > (a.last_at, a.recorded_at, a.quantity) END);
END $$;

CREATE FUNCTION billing._roll_up_uniques(batch billing._batch, metrics text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH fresh AS (
        INSERT INTO billing.usage_uniques (tenant_id, metric, period_start, value, hour)
        SELECT e.tenant_id, e.metric, e.period_start, billing._event_key(e.properties ->> m.unique_property),
               min(date_bin('1 hour', e.occurred_at, 'epoch'))
          FROM billing.usage_events e JOIN billing.metrics m ON m.name = e.metric
         WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics)
           AND e.properties ->> m.unique_property IS NOT NULL
         GROUP BY 1, 2, 3, 4
        ON CONFLICT DO NOTHING
        RETURNING *
    )
    UPDATE billing.usage_aggregates a
       SET quantity = a.quantity + f.values
      FROM (SELECT tenant_id, metric, period_start, hour, count(*) AS values FROM fresh GROUP BY 1, 2, 3, 4) f
     WHERE a.tenant_id = f.tenant_id AND a.metric = f.metric AND a.period_start = f.period_start AND a.hour = f.hour;
END $$;

-- What the hours of a period come to, for maxima, last values and unique counts.
CREATE FUNCTION billing._figure(tenant_id text, metric text, period_start timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT CASE m.aggregation
           WHEN 'max' THEN (SELECT max(a.quantity) FROM billing.usage_aggregates a
                             WHERE a.tenant_id = $1 AND a.metric = $2 AND a.period_start = $3)
           WHEN 'last' THEN (SELECT a.quantity FROM billing.usage_aggregates a
                              WHERE a.tenant_id = $1 AND a.metric = $2 AND a.period_start = $3
                              ORDER BY a.hour DESC LIMIT 1)
           ELSE (SELECT sum(a.quantity) FROM billing.usage_aggregates a
                  WHERE a.tenant_id = $1 AND a.metric = $2 AND a.period_start = $3) END
      FROM billing.metrics m WHERE m.name = $2
$$;

-- Copies those into usage_quotas, and raises their alerts.
CREATE FUNCTION billing._roll_up_figures(batch billing._batch, metrics text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH touched AS (
        UPDATE billing.usage_quotas u
           SET used = billing._figure(u.tenant_id, u.metric, u.period_start)
          FROM (SELECT DISTINCT e.tenant_id, e.metric, e.period_start FROM billing.usage_events e
                 WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics)) t
         WHERE u.tenant_id = t.tenant_id AND u.metric = t.metric AND u.period_start = t.period_start
        RETURNING u.*
    )
    INSERT INTO billing.usage_alerts (tenant_id, metric, period_start, kind, threshold, used, quota, raised_at)
    SELECT t.tenant_id, t.metric, t.period_start, r.kind, r.threshold, t.used, CASE r.kind WHEN 'percent' THEN t.quota END,
           billing.now()
      FROM touched t, billing._rules_reached(t.tenant_id, t.metric, t.used, t.quota) r
    ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION billing._roll_up_breakdown(batch billing._batch, metrics text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO billing.usage_breakdown AS b (tenant_id, metric, period_start, hour, dimensions, quantity, events)
    SELECT e.tenant_id, e.metric, e.period_start, date_bin('1 hour', e.occurred_at, 'epoch'), d.dimensions,
           sum(billing._contribution(m.aggregation, e.quantity, e.void_reason)),
           sum(billing._contribution('count', e.quantity, e.void_reason))
      FROM billing.usage_events e
      JOIN billing.metrics m ON m.name = e.metric
      CROSS JOIN LATERAL (
           SELECT coalesce(jsonb_object_agg(n, billing._dimension(e.properties, n))
                           FILTER (WHERE e.properties ->> n IS NOT NULL), '{}') AS dimensions
             FROM unnest(m.dimensions) n) d
     WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics)
     GROUP BY 1, 2, 3, 4, 5
    ON CONFLICT ON CONSTRAINT usage_breakdown_pkey
    DO UPDATE SET quantity = b.quantity + excluded.quantity, events = b.events + excluded.events;
END $$;

-- Rolls up, out of a batch, what the metrics in it need beyond sums.
CREATE FUNCTION billing._roll_up_kinds(batch billing._batch, touched text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gauges text[];
    decisive text[];
    uniques text[];
    broken_down text[];
    exported text[];
    by_period text[];
BEGIN
    SELECT array_agg(m.name) FILTER (WHERE m.kind = 'gauge'),
           array_agg(m.name) FILTER (WHERE m.kind = 'counter' AND m.aggregation IN ('max', 'last')),
           array_agg(m.name) FILTER (WHERE m.aggregation = 'unique_count'),
           array_agg(m.name) FILTER (WHERE m.dimensions <> '{}'),
           array_agg(m.name) FILTER (WHERE m.export = 'file'),
           array_agg(m.name) FILTER (WHERE m.export = 'invoice_items' OR m.kind = 'gauge' OR m.aggregation IN ('max', 'last'))
      INTO gauges, decisive, uniques, broken_down, exported, by_period
      FROM billing.metrics m WHERE m.name = ANY (touched);
    IF gauges IS NOT NULL THEN
        PERFORM billing._roll_up_gauges(batch, gauges);
    END IF;
    IF decisive IS NOT NULL THEN
        PERFORM billing._roll_up_decisive(batch, decisive);
    END IF;
    IF by_period IS NOT NULL THEN
        PERFORM billing._roll_up_late(batch, by_period);
    END IF;
    IF uniques IS NOT NULL THEN
        PERFORM billing._roll_up_uniques(batch, uniques);
    END IF;
    IF decisive IS NOT NULL OR uniques IS NOT NULL THEN
        PERFORM billing._roll_up_figures(batch, decisive || uniques);
    END IF;
    IF broken_down IS NOT NULL THEN
        PERFORM billing._roll_up_breakdown(batch, broken_down);
    END IF;
    IF exported IS NOT NULL THEN
        PERFORM billing._roll_up_exported(batch, exported);
    END IF;
END $$;
