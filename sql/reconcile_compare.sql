-- What the steps of a reconciliation compare, and how a difference becomes a row of billing.drift.

-- Stripe's numbers are doubles: equal is what a double cannot tell apart.
CREATE FUNCTION billing._same(sent numeric, stripe numeric) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$ SELECT abs($1 - $2) <= abs($1) * 1e-12 $$;

-- The hours of a period whose events are all kept, recounted, beside what the rollup made of them; and beside usage_quotas
-- the whole period. `ledger` null: there are no events; `aggregated` null: no aggregate. One snapshot, in which an event
-- is either in the tail or in the aggregates; what is dropped already cannot be recounted and is not in question.
CREATE FUNCTION billing._recount(own text, starts timestamptz, ends timestamptz)
RETURNS TABLE (metric text, kind text, period_start timestamptz, hour timestamptz, ledger numeric, aggregated numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off AS $$
DECLARE
    tail billing._batch := billing._tail();
    first timestamptz := date_trunc('hour', starts, 'UTC');
    early interval := billing._duration('pg_billing.future_limit');
    -- no earlier tick holds events of the period
    since timestamptz := billing._closed_by(first - early);
    kept_from timestamptz := '-infinity';
BEGIN
    IF billing._duration('pg_billing.event_retention') >= interval '0' THEN
        -- the first hour of which no event can be in a day that was dropped
        SELECT coalesce(min(d) + early, 'infinity') INTO kept_from
          FROM billing.rollup_state s, unnest(s.days) d
         WHERE d >= (SELECT min(to_timestamp(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC')
                       FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                      WHERE i.inhparent = 'billing.usage_events'::regclass AND c.relname ~ '^usage_events_\d{8}$');
    END IF;
    RETURN QUERY
    WITH events AS (
        SELECT e.metric, e.period_start, date_bin('1 hour', e.occurred_at, 'epoch') AS hour, m.kind, m.aggregation,
               e.quantity, e.void_reason, e.occurred_at, e.recorded_at, e.properties ->> m.unique_property AS value
          FROM billing.usage_events e JOIN billing.metrics m ON m.name = e.metric
         WHERE e.tenant_id = own AND e.tick >= since AND NOT billing._in_batch(e.tick, tail)
           AND e.occurred_at >= first AND e.occurred_at < ends
    ), counted AS (
        SELECT e.metric, e.period_start, e.hour,
               CASE WHEN e.kind = 'gauge' THEN sum(e.quantity)
                    WHEN e.aggregation = 'max' THEN max(e.quantity)
                    WHEN e.aggregation = 'last' THEN
                        (array_agg(e.quantity ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.quantity DESC))[1]
                    ELSE sum(billing._contribution(e.aggregation, e.quantity, e.void_reason)) END AS quantity
          FROM events e WHERE e.aggregation <> 'unique_count'
         GROUP BY e.metric, e.period_start, e.hour, e.kind, e.aggregation
    ), hours AS (
        SELECT coalesce(c.metric, a.metric) AS metric, coalesce(c.period_start, a.period_start) AS period_start,
               coalesce(c.hour, a.hour) AS hour, c.quantity AS ledger, a.quantity AS aggregated
          FROM counted c
          FULL JOIN (SELECT a.* FROM billing.usage_aggregates a JOIN billing.metrics m ON m.name = a.metric
                      WHERE a.tenant_id = own AND a.hour >= first AND a.hour < ends AND m.aggregation <> 'unique_count') a
            ON a.metric = c.metric AND a.period_start = c.period_start AND a.hour = c.hour
    ), uniques AS (
        -- a value counts in the hour that the rollup met it in: only the period as a whole can be recounted
        SELECT a.metric, a.period_start, u.ledger, sum(a.quantity) AS aggregated
          FROM billing.usage_aggregates a JOIN billing.metrics m ON m.name = a.metric AND m.aggregation = 'unique_count'
          LEFT JOIN (SELECT e.metric, e.period_start, count(DISTINCT e.value)::numeric AS ledger FROM events e GROUP BY 1, 2) u
                 ON u.metric = a.metric AND u.period_start = a.period_start
         WHERE a.tenant_id = own AND a.period_start = starts
         GROUP BY 1, 2, 3
    ), wrong AS (
        SELECT h.metric, h.period_start, h.hour, h.ledger, h.aggregated FROM hours h
         WHERE h.hour >= kept_from AND coalesce(h.ledger, 0) <> coalesce(h.aggregated, 0)
        UNION ALL
        SELECT u.metric, u.period_start, u.period_start, u.ledger, u.aggregated FROM uniques u
         WHERE u.period_start >= kept_from AND coalesce(u.ledger, 0) <> u.aggregated
    )
    SELECT w.metric, 'aggregate', w.period_start, w.hour, w.ledger, w.aggregated FROM wrong w
    UNION ALL
    -- what a period comes to, with its hours as they should be; of a maximum or last value only if they are
    SELECT q.metric, 'quota', q.period_start, starts, f.figure, q.used
      FROM billing.usage_quotas q JOIN billing.metrics m ON m.name = q.metric
      CROSS JOIN LATERAL (
           SELECT CASE WHEN m.kind = 'gauge' OR billing._adds_up(m.kind, m.aggregation) THEN
                       coalesce((SELECT sum(a.quantity) FROM billing.usage_aggregates a
                                  WHERE a.tenant_id = own AND a.metric = q.metric AND a.period_start = q.period_start), 0)
                       + coalesce((SELECT sum(coalesce(w.ledger, 0) - coalesce(w.aggregated, 0)) FROM wrong w
                                    WHERE w.metric = q.metric AND w.period_start = q.period_start), 0)
                  WHEN NOT EXISTS (SELECT FROM wrong w WHERE w.metric = q.metric) THEN
                       coalesce(billing._figure(own, q.metric, q.period_start), 0)
                  ELSE q.used END AS figure) f
     WHERE q.tenant_id = own AND (q.period_start = starts OR q.period_start = '-infinity') AND q.used <> f.figure;
END $$;

-- The hours of a metric as they are here: what was used, what of it Stripe has confirmed, and what it was told of the hour
-- last, which after a change of price is the rest of it; of hours whose requests are not all kept any more, what it has
-- confirmed. `settled`: that was not just now, and nothing is under way.
CREATE FUNCTION billing._meter_hours(own text, what text, starts timestamptz, ends timestamptz)
RETURNS TABLE (hour timestamptz, period_start timestamptz, ledger numeric, submitted numeric, due boolean, sent numeric,
               settled boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    first timestamptz := date_trunc('hour', starts, 'UTC');
    kept interval := billing._duration('pg_billing.outbox_retention');
BEGIN
    RETURN QUERY
    WITH told AS (
        SELECT DISTINCT ON (1) (o.detail ->> 'hour')::timestamptz AS hour,
               -- a meter that adds has all that it was told
               CASE WHEN billing._meter_adds(m.export) THEN sum((o.params #>> '{payload,value}')::numeric) OVER (PARTITION BY o.detail ->> 'hour')
                    ELSE (o.params #>> '{payload,value}')::numeric END AS value, o.settled_at
          FROM billing.stripe_outbox o
          JOIN billing.metrics m ON m.name = what
         WHERE o.tenant_id = own AND o.kind = 'meter_event' AND o.subject = what AND o.state = 'delivered'
           AND (kept < '0' OR (o.detail ->> 'hour')::timestamptz >= billing.now() - kept)
         ORDER BY 1, o.id DESC
    ), used AS (
        SELECT a.hour, max(a.period_start) AS period_start, sum(a.quantity) AS quantity, sum(a.submitted) AS submitted,
               bool_or(a.blocked OR h.hour IS NOT NULL) AS due
          FROM billing.usage_aggregates a
          LEFT JOIN (SELECT d.period_start, d.hour FROM billing._stripe_due_hours() d
                      WHERE d.tenant_id = own COLLATE "C" AND d.metric = what COLLATE "default") h
                 ON h.hour = a.hour AND h.period_start = a.period_start
         WHERE a.tenant_id = own AND a.metric = what AND a.hour >= first AND a.hour < ends
         GROUP BY a.hour
    )
    SELECT coalesce(u.hour, t.hour), coalesce(u.period_start, starts), u.quantity, u.submitted, coalesce(u.due, false),
           coalesce(t.value, u.submitted),
           coalesce(t.settled_at < clock_timestamp() - billing._settle_delay() / 12, true)
           AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                            WHERE o.tenant_id = own AND o.kind = 'meter_event' AND o.subject = what
                              AND o.state IN ('waiting', 'sending'))
      FROM used u FULL JOIN (SELECT * FROM told x WHERE x.hour >= first AND x.hour < ends) t ON t.hour = u.hour;
END $$;

-- Whether a metric is compared by the hour, or by one figure of the period (export_figures.sql); true of no metric.
CREATE FUNCTION billing._by_hour(metric text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT billing._adds_up(m.kind, m.aggregation) FROM billing.metrics m WHERE m.name = $1), true)
$$;

-- How the figure of a step's period differs: from what it should be, once that period is over, unless an end has cut it short; or
-- at Stripe, which counts what it was told of the latest moment of the closed hours, as long as that request is kept.
-- `settled`: that was not just now, and nothing is under way.
CREATE FUNCTION billing._figure_differences(step jsonb, counted numeric)
RETURNS TABLE (kind text, hour timestamptz, period_start timestamptz, ledger numeric, sent numeric, stripe numeric,
               settled boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH step AS (
        SELECT s.*, f.submitted, f.due_at AS look_at, f.period_end,
               NOT EXISTS (SELECT FROM billing.stripe_outbox o
                            WHERE o.tenant_id = s.tenant_id AND o.kind = 'meter_event' AND o.subject = s.metric
                              AND (o.state IN ('waiting', 'sending') OR o.settled_at > clock_timestamp() - billing._settle_delay() / 12)) AS settled
          FROM jsonb_populate_record(NULL::billing.reconcile_steps, $1) s
          JOIN billing.usage_figures f ON f.tenant_id = s.tenant_id AND f.subscription_id = s.subscription_id AND f.metric = s.metric
               AND f.period_start = s.starts
    ), told AS (
        SELECT (o.params #>> '{payload,value}')::numeric AS value
          FROM step s
          JOIN billing.stripe_outbox o ON o.tenant_id = s.tenant_id AND o.kind = 'meter_event' AND o.subject = s.metric
               AND o.state = 'delivered' AND o.detail ? 'figure' AND (o.detail ->> 'period_start')::timestamptz = s.starts
               AND billing._stripe_usage_moment(o.params) < s.until
         ORDER BY billing._stripe_usage_moment(o.params) DESC, o.id DESC LIMIT 1
    )
    SELECT 'unsent', s.starts, s.starts, b.figure, s.submitted, NULL::numeric, s.settled
      FROM step s CROSS JOIN LATERAL billing._billable(s.tenant_id, s.metric, tstzrange(s.starts, s.ends)) b (figure)
     WHERE s.period_end = s.ends AND s.ends <= billing.now() AND b.figure IS DISTINCT FROM s.submitted
       AND NOT EXISTS (SELECT FROM billing.subscriptions x
                        WHERE x.tenant_id = s.tenant_id AND x.id = s.subscription_id AND x.ended_at < s.ends)
       AND (s.look_at <= billing.now()) IS NOT TRUE
    UNION ALL
    SELECT 'stripe', s.starts, s.starts, s.submitted, t.value, coalesce($2, 0), s.settled
      FROM step s CROSS JOIN told t WHERE NOT billing._same(t.value, coalesce($2, 0))
$$;

-- Writes down a difference that this reconciliation has found, as it is now.
CREATE FUNCTION billing._note_drift(step jsonb, metric text, kind text, period_start timestamptz, hour timestamptz,
                                    ledger numeric, aggregated numeric, sent numeric, stripe numeric, invoiced numeric)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.drift AS d (tenant_id, reconciliation_id, metric, kind, period_start, hour, ledger, aggregated, sent,
                                    stripe, invoiced, found_at)
    VALUES ($1 ->> 'tenant_id', ($1 ->> 'reconciliation_id')::bigint, $2, $3, $4, $5, trim_scale($6), trim_scale($7),
            trim_scale($8), trim_scale($9), trim_scale($10), billing.now())
    ON CONFLICT (tenant_id, metric, kind, period_start, hour) WHERE repaired_at IS NULL
    DO UPDATE SET reconciliation_id = excluded.reconciliation_id, ledger = excluded.ledger, aggregated = excluded.aggregated,
                  sent = excluded.sent, stripe = excluded.stripe, invoiced = excluded.invoiced
$$;

-- Ends a step: what an earlier reconciliation found of these kinds in its hours, and this one did not, is gone.
CREATE FUNCTION billing._reconcile_done(step jsonb, kinds text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s billing.reconcile_steps := jsonb_populate_record(NULL::billing.reconcile_steps, step);
BEGIN
    UPDATE billing.drift d SET repaired_at = billing.now(), repair = 'gone'
     WHERE d.tenant_id = s.tenant_id AND d.kind = ANY (kinds) AND d.repaired_at IS NULL
       AND s.metric IN ('', d.metric) AND d.hour >= s.starts AND d.hour < s.until
       AND d.reconciliation_id <> s.reconciliation_id;
    UPDATE billing.reconcile_steps x SET state = 'done', read = '{}', cursor = NULL
     WHERE (x.tenant_id, x.reconciliation_id, x.kind, x.metric, x.starts)
         = (s.tenant_id, s.reconciliation_id, s.kind, s.metric, s.starts);
END $$;

-- Puts a step off: to the next page of what it reads, or to another look from the beginning.
CREATE FUNCTION billing._reconcile_again(step jsonb, looks int, delay interval, read jsonb DEFAULT '{}', cursor text DEFAULT NULL)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.reconcile_steps x
       SET state = 'due', looks = $2, due_at = clock_timestamp() + $3, read = $4, cursor = $5
      FROM jsonb_populate_record(NULL::billing.reconcile_steps, $1) s
     WHERE (x.tenant_id, x.reconciliation_id, x.kind, x.metric, x.starts)
         = (s.tenant_id, s.reconciliation_id, s.kind, s.metric, s.starts)
$$;

CREATE FUNCTION billing._reconcile_ledger(step jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._note_drift(step, r.metric, r.kind, r.period_start, r.hour, r.ledger, r.aggregated, NULL, NULL, NULL)
       FROM billing._recount(step ->> 'tenant_id', (step ->> 'starts')::timestamptz, (step ->> 'ends')::timestamptz) r;
    -- what is not rolled up yet is compared, too, as of one snapshot
    PERFORM billing._reconcile_done(step || jsonb_build_object('until', step -> 'ends'), '{aggregate,quota}');
END $$;

-- The closed hours of a step in which something was not sent, or Stripe counts something else than it was told.
CREATE FUNCTION billing._meter_differences(step jsonb, stripe_hours jsonb)
RETURNS TABLE (kind text, hour timestamptz, period_start timestamptz, ledger numeric, sent numeric, stripe numeric,
               settled boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH hours AS (
        SELECT coalesce(h.hour, k.hour) AS hour, coalesce(h.period_start, s.starts) AS period_start, h.ledger, h.submitted,
               coalesce(h.due, false) AS due, coalesce(h.sent, 0) AS sent, coalesce(k.counted, 0) AS stripe,
               coalesce(h.settled, true) AS settled
          FROM jsonb_populate_record(NULL::billing.reconcile_steps, $1) s
         CROSS JOIN LATERAL (
               SELECT to_timestamp(e.key::bigint) AS hour, e.value::numeric AS counted FROM jsonb_each_text($2) e) k
          FULL JOIN (SELECT m.* FROM jsonb_populate_record(NULL::billing.reconcile_steps, $1) x,
                            billing._meter_hours(x.tenant_id, x.metric, x.starts, x.until) m) h ON h.hour = k.hour
    )
    SELECT 'unsent', h.hour, h.period_start, h.ledger, h.submitted, NULL::numeric, h.settled FROM hours h WHERE h.due
    UNION ALL
    SELECT 'stripe', h.hour, h.period_start, h.ledger, h.sent, h.stripe, h.settled FROM hours h
     WHERE NOT billing._same(h.sent, h.stripe)
$$;

-- Either of the two.
CREATE FUNCTION billing._step_differences(step jsonb, counted jsonb)
RETURNS TABLE (kind text, hour timestamptz, period_start timestamptz, ledger numeric, sent numeric, stripe numeric,
               settled boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM billing._meter_differences($1, $2) WHERE billing._by_hour($1 ->> 'metric')
    UNION ALL
    SELECT * FROM billing._figure_differences($1, (SELECT sum(e.value::numeric) FROM jsonb_each_text($2) e))
     WHERE NOT billing._by_hour($1 ->> 'metric')
$$;

-- Takes what Stripe counts of a metric: the total of all closed hours, or a page of them.
CREATE FUNCTION billing._apply_summary(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    by_hour boolean := (r.detail ->> 'by_hour')::boolean;
    s billing.reconcile_steps;
    counted jsonb;
    differs boolean;
    unsettled boolean := false;
BEGIN
    SELECT * INTO s FROM billing.reconcile_steps x
     WHERE x.tenant_id = r.tenant_id AND x.reconciliation_id = (r.detail ->> 'reconciliation')::bigint AND x.kind = 'meter'
       AND x.metric = r.detail ->> 'metric' AND x.starts = (r.detail ->> 'starts')::timestamptz AND x.state = 'asked'
       FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT s.read || coalesce(jsonb_object_agg(d ->> 'start_time', d -> 'aggregated_value'), '{}') INTO counted
      FROM jsonb_array_elements(response -> 'data') d;
    IF by_hour AND (response ->> 'has_more')::boolean THEN
        PERFORM billing._reconcile_again(to_jsonb(s), s.looks, '0', counted, response #>> '{data,-1,id}');
        RETURN;
    END IF;
    IF by_hour OR NOT billing._by_hour(s.metric) THEN
        SELECT count(*) > 0, coalesce(bool_or(NOT d.settled), false) INTO differs, unsettled
          FROM billing._step_differences(to_jsonb(s), counted) d;
    ELSE
        SELECT coalesce(bool_or(h.due), false)
               OR NOT billing._same(coalesce(sum(h.sent), 0), coalesce((SELECT sum(v::numeric) FROM jsonb_each_text(counted) e (k, v)), 0))
          INTO differs FROM billing._meter_hours(s.tenant_id, s.metric, s.starts, s.until) h;
    END IF;
    IF differs AND (s.looks = 0 OR unsettled AND s.looks < 6) THEN
        PERFORM billing._reconcile_again(to_jsonb(s), s.looks + 1, billing._settle_delay() / 12);
        RETURN;
    END IF;
    IF differs THEN
        PERFORM billing._note_drift(to_jsonb(s), s.metric, d.kind, d.period_start, d.hour, d.ledger, NULL, d.sent, d.stripe, NULL)
           FROM billing._step_differences(to_jsonb(s), counted) d;
    END IF;
    PERFORM billing._reconcile_done(to_jsonb(s), '{unsent,stripe}');
END $$;

-- The invoice lines for stretches of a period, of the subscription whose it is. Stripe's periods may begin amid the hour in
-- which ours do.
CREATE FUNCTION billing._period_lines(own text, starts timestamptz, ends timestamptz)
RETURNS TABLE (stripe_invoice_id text, metric text, quantity numeric, period_end timestamptz, stripe_price_id text,
               finalized_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT l.stripe_invoice_id, l.metric, l.quantity, l.period_end, l.stripe_price_id, i.finalized_at
      FROM billing.invoice_lines l
      JOIN billing.invoices i USING (tenant_id, stripe_invoice_id)
      LEFT JOIN (SELECT s.stripe_subscription_id FROM billing._period_of($1, $2) p
                   JOIN billing.subscriptions s ON s.tenant_id = $1 AND s.id = p.subscription_id) s ON true
     WHERE l.tenant_id = $1 AND l.metric IS NOT NULL AND l.stripe_price_id IS NOT NULL     -- no items
       AND date_trunc('hour', l.period_start, 'UTC') >= date_trunc('hour', $2, 'UTC')
       AND date_trunc('hour', l.period_end, 'UTC') <= $3
       AND coalesce(i.stripe_subscription_id = s.stripe_subscription_id, true)
$$;

-- What a period comes to here and on its invoices, per metric that adds up: usage that was sent, or refused, against the
-- lines of final invoices for stretches of that period. Late usage of it is billed elsewhere, and that of others here:
-- that makes what the lines are expected to say; `priced` is all that costs this period's prices. No row while the period
-- is not invoiced for good.
CREATE FUNCTION billing._invoiced(own text, starts timestamptz, ends timestamptz)
RETURNS TABLE (metric text, ledger numeric, sent numeric, priced numeric, expected numeric, invoiced numeric)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH lines AS (
        SELECT l.metric, sum(l.quantity) AS quantity, bool_or(date_trunc('hour', l.period_end, 'UTC') >= date_trunc('hour', least($3, e.ended_at), 'UTC')) AS closing
          FROM billing._period_lines($1, $2, $3) l
         CROSS JOIN (SELECT max(s.ended_at) AS ended_at FROM billing._period_of($1, $2) p
                       JOIN billing.subscriptions s ON s.tenant_id = $1 AND s.id = p.subscription_id) e
         WHERE l.finalized_at IS NOT NULL
         GROUP BY l.metric
    ), used AS (
        SELECT a.metric, sum(a.quantity) AS quantity, sum(a.submitted) AS submitted
          FROM billing.usage_aggregates a
         WHERE a.tenant_id = $1 AND a.period_start = $2 AND (a.submitted IS NOT NULL OR a.blocked)
         GROUP BY a.metric
    )
    SELECT m.name, coalesce(u.quantity, 0), coalesce(u.submitted, 0), coalesce(u.quantity, 0) + coalesce(late.come, 0),
           coalesce(u.quantity, 0) - coalesce(late.gone, 0) + coalesce(late.come, 0), coalesce(l.quantity, 0)
      FROM billing.metrics m
      LEFT JOIN lines l ON l.metric = m.name
      LEFT JOIN used u ON u.metric = m.name
      CROSS JOIN LATERAL (
           SELECT sum(x.quantity) FILTER (WHERE x.period_start = $2) AS gone,
                  sum(x.quantity) FILTER (WHERE x.hour >= date_trunc('hour', $2, 'UTC') AND x.hour < $3) AS come
             FROM billing.late_usage x WHERE x.tenant_id = $1 AND x.metric = m.name) late
     WHERE billing._adds_up(m.kind, m.aggregation)
       AND (l.metric IS NOT NULL OR u.metric IS NOT NULL)
       AND (SELECT bool_or(x.closing) FROM lines x)
       AND NOT EXISTS (SELECT FROM billing._period_lines($1, $2, $3) d WHERE d.finalized_at IS NULL)
       AND NOT EXISTS (SELECT FROM billing.stripe_outbox o
                        WHERE o.tenant_id = $1 AND o.kind = 'invoice_lines' AND o.state IN ('waiting', 'sending'))
$$;

-- Compares a period that is over with its invoices as they are stored; false: they have to be read anew first, as they
-- differ, or are not there.
CREATE FUNCTION billing._reconcile_invoices(step jsonb) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s billing.reconcile_steps := jsonb_populate_record(NULL::billing.reconcile_steps, step);
    known boolean;
    differs boolean;
BEGIN
    IF EXISTS (SELECT FROM billing.stripe_outbox o
                WHERE o.tenant_id = s.tenant_id AND o.kind = 'invoice_lines' AND o.state IN ('waiting', 'sending')) THEN
        PERFORM billing._reconcile_again(step, s.looks, '1 second');
        RETURN true;
    END IF;
    SELECT count(*) > 0, coalesce(bool_or(i.expected <> i.invoiced), false) INTO known, differs
      FROM billing._invoiced(s.tenant_id, s.starts, s.ends) i;
    IF s.looks = 0 AND (differs OR NOT known) THEN
        RETURN false;
    END IF;
    PERFORM billing._note_late_usage(s.tenant_id, s.starts, s.ends) WHERE s.looks > 0;
    PERFORM billing._note_drift(step, i.metric, 'invoice', s.starts, s.starts, i.ledger, NULL, i.sent, NULL, i.invoiced)
       FROM billing._invoiced(s.tenant_id, s.starts, s.ends) i WHERE i.expected <> i.invoiced;
    -- Stripe keeps a draft for three days at most: what is on no final invoice by then will be on none
    IF NOT known AND billing.now() > s.ends + interval '4 days' THEN
        PERFORM billing._note_drift(step, a.metric, 'invoice', s.starts, s.starts, sum(a.quantity), NULL, sum(a.submitted), NULL, NULL)
           FROM billing.usage_aggregates a
          WHERE a.tenant_id = s.tenant_id AND a.period_start = s.starts AND a.submitted <> 0
          GROUP BY a.metric;
    END IF;
    PERFORM billing._reconcile_done(step, '{invoice}');
    RETURN true;
END $$;

-- Takes a page of a subscription's invoices, stores them, and has them compared once all their lines are there.
CREATE FUNCTION billing._apply_invoice_list(request jsonb, response jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r billing.stripe_outbox := jsonb_populate_record(NULL::billing.stripe_outbox, request);
    more boolean := (response ->> 'has_more')::boolean;
BEGIN
    PERFORM billing._apply_invoice(r.tenant_id, i) FROM jsonb_array_elements(response -> 'data') i;
    PERFORM billing._reconcile_again(to_jsonb(x), CASE WHEN more THEN 0 ELSE 1 END, '0', '{}',
                                     CASE WHEN more THEN response #>> '{data,-1,id}' END)
       FROM billing.reconcile_steps x
      WHERE x.tenant_id = r.tenant_id AND x.reconciliation_id = (r.detail ->> 'reconciliation')::bigint
        AND x.kind = 'invoices' AND x.starts = (r.detail ->> 'starts')::timestamptz AND x.state = 'asked';
END $$;

-- A read that Stripe refused ends its step; retry_failed() begins it anew.
CREATE FUNCTION billing._reconcile_refused(request jsonb, complaint text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.reconcile_steps x
       SET state = CASE WHEN $2 IS NULL THEN 'due' ELSE 'failed' END, read = '{}', cursor = NULL, error = $2
     WHERE x.tenant_id = $1 ->> 'tenant_id' AND x.reconciliation_id = ($1 #>> '{detail,reconciliation}')::bigint
       AND x.kind = $1 #>> '{detail,kind}' AND x.metric = $1 #>> '{detail,metric}'
       AND x.starts = ($1 #>> '{detail,starts}')::timestamptz
$$;

CREATE FUNCTION billing._stripe_drift()
RETURNS TABLE (tenant_id text, metric text, period_start timestamptz, hour timestamptz, ledger numeric, aggregated numeric,
               sent numeric, stripe numeric, invoiced numeric, kind text, found_at timestamptz, repaired_at timestamptz,
               repair text)
LANGUAGE sql STABLE AS $$
    SELECT d.tenant_id, d.metric, d.period_start, CASE WHEN d.kind IN ('aggregate', 'unsent', 'stripe') THEN d.hour END,
           d.ledger, d.aggregated, d.sent, d.stripe, d.invoiced, d.kind, d.found_at, d.repaired_at, d.repair
      FROM billing.drift d
$$;

CREATE VIEW billing.stripe_drift AS SELECT * FROM billing._stripe_drift();
COMMENT ON VIEW billing.stripe_drift IS
    'differences that reconcile() found: aggregate and quota (ledger against aggregated), unsent (ledger against sent), stripe (sent against Stripe''s summary of the hour), invoice (ledger against the final invoices of a period); repaired_at null: they are there still';

CREATE FUNCTION billing._stat_reconcile()
RETURNS TABLE (reconciliation_id bigint, only_tenant text, period text, phase text, started_at timestamptz, steps_total bigint,
               steps_done bigint, steps_failed bigint, differences bigint, reads_left bigint, goes_on_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT r.id, r.only_tenant, r.period,
           CASE WHEN x.asked > 0 THEN 'reading' WHEN x.due_at > clock_timestamp() THEN 'waiting for a second look'
                WHEN x.reading AND billing._reads_left() = 0 THEN 'waiting for the allowance of reads' ELSE 'comparing' END,
           r.started_at, r.steps, x.done, x.failed,
           (SELECT count(*) FROM billing.drift d WHERE d.reconciliation_id = r.id AND d.repaired_at IS NULL),
           billing._reads_left(), CASE WHEN x.asked = 0 THEN x.due_at END
      FROM billing.reconciliations r
      CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE s.state = 'asked') AS asked, count(*) FILTER (WHERE s.state = 'done') AS done,
                  count(*) FILTER (WHERE s.state = 'failed') AS failed, bool_and(s.kind <> 'ledger') FILTER (WHERE s.state = 'due') AS reading,
                  min(s.due_at) FILTER (WHERE s.state = 'due') AS due_at
             FROM billing.reconcile_steps s WHERE s.reconciliation_id = r.id) x
     WHERE r.finished_at IS NULL
$$;

CREATE VIEW billing.stat_progress_reconcile AS SELECT * FROM billing._stat_reconcile();
COMMENT ON VIEW billing.stat_progress_reconcile IS
    'reconciliations under way: how many of their steps are done, what they wait for, and how many reads of Stripe today''s allowance has left';
