-- Metrics that do not add up over hours: gauges, maxima, last values. Stripe knows no maximum and no average over time, so
-- what a billing period bills is computed here (_billable) and sent as it is, to a meter that bills the last event of a
-- period (formula last). Each period has one figure per subscription and metric:
--
--   - While the period runs it is sent when it has changed, once an hour; after its end once more, in the period's last
--     hour, before Stripe finalizes the invoice. Late usage corrects it in the same way: the rollup makes it due again.
--   - A period whose usage did not change has its figure, too: to Stripe no event would mean zero.
--   - A change of prices, and a pause, closes it: the old price bills what it has come to by then, the new one the rest. Of an average
--     over time that is the part of it that the time until then makes up. So what is billed is the whole period's figure,
--     once; an end is such a change, too.

CREATE FUNCTION billing._install_export_figures() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.usage_figures (
        tenant_id       text COLLATE "C" NOT NULL,
        subscription_id bigint NOT NULL,
        metric          text NOT NULL REFERENCES billing.metrics,
        period_start    timestamptz NOT NULL,           -- of the billing period, of a gauge, too
        period_end      timestamptz NOT NULL,
        submitted       numeric,                        -- what Stripe has confirmed; null: nothing yet
        due_at          timestamptz,                    -- when to look at it next; null: once late usage makes it due
        blocked         boolean NOT NULL DEFAULT false, -- Stripe refused it for good: see stripe_dead_letter
        PRIMARY KEY (tenant_id, subscription_id, metric, period_start),
        FOREIGN KEY (tenant_id, subscription_id) REFERENCES billing.subscriptions
    );
    CREATE INDEX IF NOT EXISTS usage_figures_due ON billing.usage_figures (due_at) WHERE NOT blocked;
    COMMENT ON TABLE billing.usage_figures IS
        'what Stripe has of gauges, maxima and last values, which are billed by one figure per billing period';
END $$;

-- The figure of a period as of a moment at which its price changes: of an average over time the part of it until then. A level
-- counts from the hour on in which the period begins (_billable).
CREATE FUNCTION billing._figure_closed(own text, what text, period tstzrange, at timestamptz) RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE m.aggregation WHEN 'time_weighted'
                THEN trim_scale(round(b.figure * extract(epoch FROM $4 - h.starts) / extract(epoch FROM upper($3) - h.starts), m.scale))
                ELSE b.figure END
      FROM billing.metrics m, billing._billable($1, $2, tstzrange(lower($3), $4)) b (figure),
           date_trunc('hour', lower($3), 'UTC') h (starts)
     WHERE m.name = $2
$$;

-- The figures that hold up changes of prices until Stripe has them as of the change.
CREATE FUNCTION billing._stripe_closing_figures()
RETURNS TABLE (tenant_id text, subscription_id bigint, metric text, period_start timestamptz, closed_at timestamptz, figure numeric)
LANGUAGE sql STABLE AS $$
    SELECT f.tenant_id, f.subscription_id, f.metric, f.period_start, c.changed_at, v.figure
      FROM billing._stripe_changes() c
      JOIN billing.usage_figures f ON f.tenant_id = c.tenant_id AND f.subscription_id = c.subscription_id
           AND f.period_start < c.changed_at AND f.period_end >= c.changed_at AND NOT f.blocked
      JOIN billing.subscription_items i
           ON i.tenant_id = f.tenant_id AND i.subscription_id = f.subscription_id AND i.metric = f.metric
     CROSS JOIN LATERAL billing._figure_closed(f.tenant_id, f.metric, tstzrange(f.period_start, f.period_end),
                                               c.changed_at) v (figure)
     WHERE c.changed_at IS NOT NULL AND f.submitted IS DISTINCT FROM v.figure
$$;

-- When Stripe is told that a figure as of a time was: in the hour before it, but after a change of its price.
CREATE FUNCTION billing._figure_moment(tenant text, subscription bigint, what text, period_start timestamptz, at timestamptz)
RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._stripe_moment(date_trunc('hour', $5 - interval '1 microsecond', 'UTC'), $4, s.stripe_offset, i.since)
      FROM billing.subscriptions s
      JOIN billing.subscription_items i ON i.tenant_id = s.tenant_id AND i.subscription_id = s.id AND i.metric = $3
     WHERE s.tenant_id = $1 AND s.id = $2
$$;

-- Plans a figure as of a time.
CREATE FUNCTION billing._stripe_plan_figure(tenant text, subscription bigint, what text, period_start timestamptz,
                                            at timestamptz, figure numeric) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT billing._stripe_enqueue_usage($1, $3, m.stripe_event_name, c.stripe_customer_id,
               $6 - CASE WHEN i.since > $4 THEN i.counted ELSE 0 END,
               billing._figure_moment($1, $2, $3, $4, $5),
               jsonb_build_object('period_start', $4, 'subscription_id', $2, 'figure', $6))
      FROM billing.subscription_items i, billing.metrics m, billing.billing_customers c
     WHERE i.tenant_id = $1 AND i.subscription_id = $2 AND i.metric = $3
       AND m.name = $3 AND c.tenant_id = $1
$$;

-- Makes the row of each item's period once that has begun, of periods that were missed, too.
CREATE FUNCTION billing._begin_figures() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._advance_periods();
    LOOP
        WITH begun AS (
            SELECT i.tenant_id, i.subscription_id, i.metric,
                   CASE WHEN i.figures && tstzrange(s.current_period_start, s.current_period_end)
                             OR upper(i.figures) = s.current_period_start OR upper(i.figures) < s.anchor OR i.figures = 'empty'
                        THEN tstzrange(s.current_period_start, s.current_period_end)
                        ELSE billing._period_at(s.anchor, s.interval_months, s.timezone, upper(i.figures)) END AS period
              FROM billing.metrics m
              JOIN billing.subscription_items i ON i.metric = m.name
              JOIN billing.subscriptions s ON s.tenant_id = i.tenant_id AND s.id = i.subscription_id
                   AND i.figures <> tstzrange(s.current_period_start, s.current_period_end)
                   AND s.current_period_start >= s.anchor AND s.current_period_start <= billing.now()
                   AND s.current_period_start = date_trunc('second', s.current_period_start)   -- no pause
                   AND (s.ended_at IS NULL OR s.ended_at > s.current_period_start)
             WHERE NOT billing._adds_up(m.kind, m.aggregation)
        ), noted AS (
            UPDATE billing.subscription_items i SET figures = b.period FROM begun b
             WHERE i.tenant_id = b.tenant_id AND i.subscription_id = b.subscription_id AND i.metric = b.metric
        )
        -- Not in its first hour, which may be the last of a subscription before it.
        INSERT INTO billing.usage_figures (tenant_id, subscription_id, metric, period_start, period_end, due_at)
        SELECT b.tenant_id, b.subscription_id, b.metric, lower(b.period), upper(b.period), lower(b.period) + interval '1 hour'
          FROM begun b
        ON CONFLICT ON CONSTRAINT usage_figures_pkey DO UPDATE SET period_end = excluded.period_end;
        EXIT WHEN NOT FOUND;
    END LOOP;
END $$;

-- Looks at the figures that are due, the longest due first, and plans what has changed; returns how many it looked at. The
-- row is locked before its usage is read, so that late usage rolled up meanwhile makes it due once more.
CREATE FUNCTION billing._stripe_plan_figures(stock int) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    changing text[] := ARRAY(SELECT c.tenant_id FROM billing._stripe_changes() c WHERE c.changed_at IS NOT NULL);
    f record;
    figure numeric;
    looked_at bigint := 0;
BEGIN
    PERFORM billing._begin_figures();
    IF changing <> '{}' THEN
        FOR f IN SELECT * FROM billing._stripe_closing_figures() c ORDER BY c.tenant_id, c.metric LOOP
            IF billing._stripe_usage_free(f.tenant_id, f.metric)
               AND NOT billing._stripe_held(f.tenant_id, f.subscription_id, billing._figure_moment(f.tenant_id, f.subscription_id,
                                                                                f.metric, f.period_start, f.closed_at)) THEN
                PERFORM billing._stripe_plan_figure(f.tenant_id, f.subscription_id, f.metric, f.period_start,
                                                    f.closed_at, f.figure);
                looked_at := looked_at + 1;
            END IF;
        END LOOP;
    END IF;
    FOR f IN
        SELECT x.*, least(x.period_end, s.ended_at) AS ends,
               i.metric IS NOT NULL AND billing._stripe_counts(s.stripe_status, s.ended_at)
                   -- not one that a pause has cut short
                   AND (x.period_start = s.current_period_start OR x.period_end <= s.current_period_start) AS counts
          FROM billing.usage_figures x
          JOIN billing.subscriptions s ON s.tenant_id = x.tenant_id AND s.id = x.subscription_id
          LEFT JOIN billing.subscription_items i
                 ON i.tenant_id = x.tenant_id AND i.subscription_id = x.subscription_id AND i.metric = x.metric
                AND coalesce(i.since < x.period_end, true)
         WHERE x.due_at <= billing.now() AND NOT x.blocked AND billing._stripe_usage_free(x.tenant_id, x.metric)
           AND (x.tenant_id <> ALL (changing) OR x.period_end <= billing.now())
         ORDER BY x.due_at, x.tenant_id, x.metric LIMIT stock FOR UPDATE OF x SKIP LOCKED
    LOOP
        CONTINUE WHEN NOT billing._stripe_usage_free(f.tenant_id, f.metric)     -- an earlier period of it was due, too
                      OR billing._stripe_held(f.tenant_id, f.subscription_id, billing._figure_moment(f.tenant_id,
                             f.subscription_id, f.metric, f.period_start, least(f.ends, billing.now())));
        IF f.counts THEN
            figure := CASE WHEN f.ends < f.period_end
                           THEN billing._figure_closed(f.tenant_id, f.metric, tstzrange(f.period_start, f.period_end), f.ends)
                           ELSE billing._billable(f.tenant_id, f.metric, tstzrange(f.period_start, f.period_end)) END;
            IF figure IS DISTINCT FROM f.submitted THEN
                PERFORM billing._stripe_plan_figure(f.tenant_id, f.subscription_id, f.metric, f.period_start,
                                                    least(f.ends, billing.now()), figure);
            END IF;
        END IF;
        UPDATE billing.usage_figures x
           SET due_at = CASE WHEN f.ends > billing.now()
                             THEN least(f.ends, date_trunc('hour', billing.now(), 'UTC') + interval '1 hour 1 second') END
         WHERE x.tenant_id = f.tenant_id AND x.subscription_id = f.subscription_id AND x.metric = f.metric
           AND x.period_start = f.period_start;
        looked_at := looked_at + f.counts::int;
    END LOOP;
    RETURN looked_at;
END $$;

-- Late usage makes periods that are over due again, those that items bill, too: of a gauge, whose level goes on, all from then on.
CREATE FUNCTION billing._roll_up_late(batch billing._batch, metrics text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    late record;
BEGIN
    FOR late IN
        SELECT e.tenant_id, e.metric, min(e.occurred_at) AS since FROM billing.usage_events e
         WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics) GROUP BY 1, 2
    LOOP
        UPDATE billing.usage_figures f SET due_at = '-infinity'
         WHERE f.tenant_id = late.tenant_id AND f.metric = late.metric AND f.period_end > late.since AND f.period_end <= billing.now();
        UPDATE billing.item_periods p SET due_at = p.period_end + interval '30 minutes'
         WHERE p.tenant_id = late.tenant_id AND p.metric = late.metric AND p.period_end > late.since AND p.period_end <= billing.now();
    END LOOP;
END $$;
