\set ECHO none
-- To be read after lib/regress.sql: what usage comes to, straight from the events and by other means than the rollup's,
-- and the view `differences`, empty when all that is rolled up, and all that is read, agrees with it.

SET jit = off;
-- The events that are rolled up, and those that are not.
CREATE VIEW rolled_up AS SELECT e.* FROM billing.usage_events e WHERE NOT billing._in_batch(e.tick, (SELECT billing._tail()));
CREATE VIEW unrolled AS SELECT e.* FROM billing.usage_events e WHERE billing._in_batch(e.tick, (SELECT billing._tail()));

-- The levels of a gauge: every stretch of time without a change, whole hours as borders included.
CREATE FUNCTION levels(tenant text, what text, starts timestamptz, ends timestamptz, only_rolled_up boolean)
RETURNS TABLE (at timestamptz, until timestamptz, level numeric)
LANGUAGE sql AS $$
    WITH e AS MATERIALIZED (SELECT occurred_at, quantity FROM rolled_up WHERE tenant_id = $1 AND metric = $2
               UNION ALL SELECT occurred_at, quantity FROM unrolled WHERE tenant_id = $1 AND metric = $2 AND NOT $5)
    SELECT m.at, coalesce(lead(m.at) OVER (ORDER BY m.at), $4),
           coalesce((SELECT sum(e.quantity) FROM e WHERE e.occurred_at <= m.at), 0)
      FROM (SELECT $3 AS at UNION SELECT occurred_at FROM e WHERE occurred_at >= $3 AND occurred_at < $4) m
$$;

CREATE VIEW true_hours AS
    SELECT e.tenant_id, e.metric, e.period_start, date_trunc('hour', e.occurred_at) AS hour, count(*) AS events,
           CASE WHEN m.kind = 'gauge' OR m.aggregation = 'sum' THEN sum(e.quantity)
                WHEN m.aggregation = 'count' THEN count(*) FILTER (WHERE void_reason IS NULL) - count(void_reason)
                WHEN m.aggregation = 'max' THEN max(e.quantity)
                WHEN m.aggregation = 'last' THEN
                    (array_agg(e.quantity ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.quantity DESC))[1]
           END AS quantity,
           CASE WHEN m.kind = 'gauge' THEN
               sum(e.quantity * extract(epoch FROM date_trunc('hour', e.occurred_at) + interval '1 hour' - e.occurred_at))
           END AS weighted
      FROM rolled_up e JOIN billing.metrics m ON m.name = e.metric
     GROUP BY e.tenant_id, e.metric, e.period_start, date_trunc('hour', e.occurred_at), m.name;

CREATE VIEW true_peaks AS
    SELECT h.tenant_id, h.metric, h.hour,
           (SELECT max(l.level) FROM levels(h.tenant_id, h.metric, h.hour, h.hour + interval '1 hour', true) l)
           - (SELECT coalesce(sum(e.quantity), 0) FROM rolled_up e
               WHERE e.tenant_id = h.tenant_id AND e.metric = h.metric AND e.occurred_at < h.hour) AS peak
      FROM true_hours h JOIN billing.metrics m ON m.name = h.metric AND m.kind = 'gauge';

-- What a period of a counter comes to, out of all of its events or of those that are rolled up.
CREATE FUNCTION true_figure(what text, only_rolled_up boolean)
RETURNS TABLE (tenant_id text, period_start timestamptz, figure numeric)
LANGUAGE sql AS $$
    SELECT e.tenant_id, e.period_start,
           CASE WHEN m.kind = 'gauge' THEN sum(e.quantity) ELSE CASE m.aggregation
                WHEN 'sum' THEN sum(e.quantity)
                WHEN 'count' THEN count(*) FILTER (WHERE void_reason IS NULL) - count(void_reason)
                WHEN 'max' THEN max(e.quantity)
                WHEN 'last' THEN (array_agg(e.quantity ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.quantity DESC))[1]
                WHEN 'unique_count' THEN count(DISTINCT e.properties ->> m.unique_property) END END
      FROM (SELECT * FROM rolled_up UNION ALL SELECT * FROM unrolled WHERE NOT $2) e
      JOIN billing.metrics m ON m.name = e.metric
     WHERE m.name = $1 GROUP BY e.tenant_id, e.period_start, m.name
$$;

CREATE VIEW differences AS
    SELECT 'hour' AS what, t.tenant_id, t.metric, t.hour::text AS which,
           ROW(t.events, t.quantity, t.weighted, p.peak)::text AS truth,
           ROW(a.events, CASE WHEN m.aggregation <> 'unique_count' THEN a.quantity END, a.weighted, a.peak)::text AS found
      FROM true_hours t FULL JOIN billing.usage_aggregates a USING (tenant_id, metric, period_start, hour)
      LEFT JOIN true_peaks p USING (tenant_id, metric, hour) LEFT JOIN billing.metrics m ON m.name = metric
     WHERE (t.events, t.quantity, t.weighted, p.peak)
           IS DISTINCT FROM (a.events, CASE WHEN m.aggregation <> 'unique_count' THEN a.quantity END, a.weighted, a.peak)
    UNION ALL
    SELECT 'quota', q.tenant_id, m.name, q.period_start::text, t.figure::text, q.used::text
      FROM billing.metrics m JOIN billing.usage_quotas q ON q.metric = m.name
      LEFT JOIN true_figure(m.name, true) t USING (tenant_id, period_start) WHERE q.used <> coalesce(t.figure, 0)
    UNION ALL
    SELECT 'uniques', a.tenant_id, a.metric, a.period_start::text, sum(a.quantity)::text, u.values::text
      FROM billing.usage_aggregates a JOIN billing.metrics m ON m.name = a.metric AND m.aggregation = 'unique_count',
           LATERAL (SELECT count(*) AS values FROM billing.usage_uniques u
                     WHERE u.tenant_id = a.tenant_id AND u.metric = a.metric AND u.period_start = a.period_start) u
     GROUP BY a.tenant_id, a.metric, a.period_start, u.values HAVING sum(a.quantity) <> u.values
    UNION ALL
    SELECT 'current', t.tenant_id, m.name, t.period_start::text, t.figure::text, f.used::text
      FROM billing.metrics m, true_figure(m.name, false) t,
           LATERAL (SELECT billing.get_current_usage(t.tenant_id, m.name, greatest(t.period_start, '2000-01-01')::text)) f (used)
     WHERE t.figure <> f.used
    UNION ALL
    SELECT 'billable', c.tenant_id, m.name, p.period, t.figure::text, f.used::text
      FROM billing.billing_customers c, billing.metrics m, (VALUES ('current'), ('previous')) p (period),
           LATERAL billing._billing_period(c.tenant_id, m.name, p.period) b (span),
           LATERAL (SELECT greatest(least(upper(b.span), billing.now()),
                        (SELECT max(e.occurred_at) FROM billing.usage_events e WHERE e.tenant_id = c.tenant_id
                            AND e.metric = m.name AND e.occurred_at < upper(b.span))) AS ends) s,
           LATERAL (SELECT CASE WHEN m.kind = 'counter' THEN
                        coalesce((SELECT x.figure FROM true_figure(m.name, false) x
                                   WHERE x.tenant_id = c.tenant_id AND x.period_start = lower(b.span)), 0)
                    WHEN m.aggregation = 'max' THEN max(l.level)
                    ELSE round(sum(l.level * extract(epoch FROM l.until - l.at)) / extract(epoch FROM s.ends - lower(b.span)),
                               m.scale) END AS figure
                      FROM levels(c.tenant_id, m.name, lower(b.span), s.ends, false) l) t,
           LATERAL billing.get_billable_usage(c.tenant_id, m.name, p.period) f (used)
     WHERE t.figure <> f.used
    UNION ALL
    SELECT 'breakdown', c.tenant_id, m.name, d, t.truth, f.found
      FROM billing.billing_customers c, billing.metrics m, unnest(m.dimensions) d,
           LATERAL (SELECT string_agg(format('%s: %s of %s', x.value, x.quantity, x.events), ', ' ORDER BY x.value) AS truth
                      FROM (SELECT e.properties ->> d AS value,
                                   count(*) FILTER (WHERE void_reason IS NULL) - count(void_reason) AS events,
                                   trim_scale(CASE WHEN m.aggregation = 'count' THEN
                                       count(*) FILTER (WHERE void_reason IS NULL) - count(void_reason)
                                       ELSE sum(e.quantity) END) AS quantity
                              FROM billing.usage_events e
                             WHERE e.tenant_id = c.tenant_id AND e.metric = m.name
                               AND e.period_start = lower(billing._period(c.tenant_id, m.name, 'current'))
                             GROUP BY 1) x) t,
           LATERAL (SELECT string_agg(format('%s: %s of %s', b.value, trim_scale(b.quantity), b.events), ', ' ORDER BY b.value) AS found
                      FROM billing.get_usage_breakdown(c.tenant_id, m.name, d) b) f
     WHERE t.truth IS DISTINCT FROM f.found;
\set ECHO all
