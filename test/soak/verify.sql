-- What has to be true at the end, told by the model and by Stripe's own objects: soak.differences is empty then.
--
-- What Stripe does not bill is computed, not waved through. Between its start and its end a subscription's time is cut
-- into spans, at its periods' ends and at its changes of plan, and an event is billed in the span in which it was sent:
--   * not at all if its invoice was final by then (an hour after the period's end), though it is sent;
--   * not at all, and it is not sent, if its hour is over when the plan changes, or when we hear of that: the old price has
--     been billed by then;
--   * not at all in a span that a change without proration (none) ends: Stripe then forgets what the old price counted;
--   * a span that comes to less than nothing, by voids of what an earlier span billed, bills nothing;
--   * not at all if its period began before the subscription, if nobody ever paid for that (it expires after 23 hours), or
--     if it ended before Stripe heard of it.
-- Gauges are billed by one figure per period, or per stretch of it between changes of plan.
-- An event is sent in its step, or if that was left unsettled by the end of the next settled one. If the plan changes
-- meanwhile, after the event was recorded, Stripe may have got it before or after: then the sum of both is certain, and
-- either lies between two bounds.

CREATE TABLE soak.loaded (n bigint GENERATED ALWAYS AS IDENTITY, kind text, doc jsonb);
CREATE INDEX ON soak.loaded (kind, (doc ->> 'effect'));
CREATE FUNCTION soak.time(seconds jsonb) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp(($1 #>> '{}')::bigint)
$$;

CREATE VIEW soak.prices AS
    SELECT l.doc ->> 'id' AS id, p.name AS plan, m.name AS metric, p.price
      FROM soak.loaded l, billing.plans p LEFT JOIN (SELECT name FROM billing.metrics UNION ALL SELECT NULL) m ON true
     WHERE l.kind = 'price' AND l.doc ->> 'lookup_key' = concat_ws('_', 'pgb', p.name, m.name, 'month');

-- Stripe's subscriptions beside ours, with what had changed their plan.
CREATE TABLE soak.billed (
    stripe_id text PRIMARY KEY, tenant text NOT NULL, id bigint NOT NULL, status text NOT NULL, anchor timestamptz NOT NULL,
    ended_at timestamptz, cancels boolean NOT NULL, plan text, first_plan text
);
CREATE TABLE soak.changes (
    stripe_id text NOT NULL, c int NOT NULL,    -- its first, second …
    at timestamptz NOT NULL, known_at timestamptz NOT NULL,     -- at the latest
    step int NOT NULL, plan text NOT NULL, proration text NOT NULL,
    wish bigint,                                -- the action that asked for it
    PRIMARY KEY (stripe_id, c)
);
CREATE TABLE soak.spans (
    stripe_id text NOT NULL, c int NOT NULL,    -- how many changes came before
    starts timestamptz NOT NULL, ends timestamptz NOT NULL, plan text NOT NULL,
    period_start timestamptz NOT NULL, period_end timestamptz NOT NULL, forgotten boolean NOT NULL,
    PRIMARY KEY (stripe_id, c, period_start)
);
-- The spans in which an event may have been sent; `sent` null: perhaps it was not. `certain`: in no other, and billed as told.
CREATE TABLE soak.placed (
    event bigint NOT NULL, stripe_id text NOT NULL, c int NOT NULL, sent boolean, billed boolean NOT NULL, certain boolean NOT NULL
);
-- Invoice lines at Stripe, of what was billed in the end.
CREATE TABLE soak.lines (
    invoice text NOT NULL, stripe_id text NOT NULL, plan text NOT NULL, metric text, starts timestamptz NOT NULL, ends timestamptz NOT NULL,
    quantity numeric NOT NULL, amount numeric NOT NULL
);

CREATE PROCEDURE soak.take_stock() LANGUAGE plpgsql AS $$
DECLARE
    j record;
    previous record;
    wish bigint;
BEGIN
    ANALYZE soak.loaded, soak.events, soak.actions;
    INSERT INTO soak.billed
    SELECT l.doc ->> 'id', l.doc #>> '{metadata,tenant_id}', (l.doc #>> '{metadata,subscription_id}')::bigint, l.doc ->> 'status',
           soak.time(l.doc -> 'start_date'), soak.time(l.doc -> 'ended_at'), (l.doc ->> 'cancel_at_period_end')::boolean,
           (SELECT p.plan FROM jsonb_array_elements(l.doc #> '{items,data}') i JOIN soak.prices p ON p.id = i ->> 'price' AND p.metric IS NULL),
           (SELECT p.plan FROM soak.loaded r, jsonb_array_elements(r.doc #> '{params,items}') i
              JOIN soak.prices p ON p.id = i ->> 'price' AND p.metric IS NULL
             WHERE r.kind = 'request' AND r.doc ->> 'effect' = l.doc ->> 'id' AND r.doc ->> 'path' = '/v1/subscriptions')
      FROM soak.loaded l WHERE l.kind = 'subscription';

    FOR j IN
        SELECT b.*, r.n, soak.time(r.doc -> 'time') AS at, p.plan AS wanted, coalesce(r.doc #>> '{params,proration_behavior}', '') AS proration
          FROM soak.loaded r
          JOIN soak.billed b ON r.doc ->> 'path' = '/v1/subscriptions/' || b.stripe_id
          JOIN LATERAL jsonb_array_elements(r.doc #> '{params,items}') i ON true
          JOIN soak.prices p ON p.id = i ->> 'price' AND p.metric IS NULL
         WHERE r.kind = 'request' AND r.doc ? 'effect' AND r.doc ->> 'method' = 'POST' ORDER BY b.stripe_id, r.n
    LOOP
        SELECT * INTO previous FROM soak.changes c WHERE c.stripe_id = j.stripe_id ORDER BY c.c DESC LIMIT 1;
        -- asked for again under another key, as Stripe remembers an error for the first: nothing changes
        CONTINUE WHEN j.wanted = coalesce(previous.plan, j.first_plan);
        -- what was wished for before a step that was settled had been carried out, or taken back, when that ended
        SELECT min(w.action) INTO wish FROM soak.wishes w JOIN soak.actions a ON a.id = w.action
         WHERE w.tenant = j.tenant AND w.subscription = j.id AND w.kind = 'plan' AND w.plan = j.wanted AND w.action > coalesce(previous.wish, 0)
           AND a.step > (SELECT coalesce(max(u.step), -1) FROM soak.steps u
                          WHERE u.settled AND u.step < (SELECT s.step FROM soak.steps s WHERE s.at = j.at));
        INSERT INTO soak.changes
        SELECT j.stripe_id, coalesce(previous.c, 0) + 1, j.at,
               (SELECT min(u.at) FROM soak.steps u WHERE u.step >= s.step AND u.settled), s.step, j.wanted, j.proration, wish FROM soak.steps s WHERE s.at = j.at;
    END LOOP;

    INSERT INTO soak.spans
    SELECT x.stripe_id, count(k.c), x.starts, x.ends, coalesce((array_agg(k.plan ORDER BY k.c DESC) FILTER (WHERE k.c IS NOT NULL))[1], x.first_plan),
           soak.period(x.anchor, 'UTC', x.starts), soak.next_period(x.anchor, 'UTC', x.starts),
           EXISTS (SELECT FROM soak.changes k WHERE k.stripe_id = x.stripe_id AND k.at = x.ends AND k.proration = 'none')
      FROM (SELECT b.*, t.at AS starts, lead(t.at) OVER (PARTITION BY b.stripe_id ORDER BY t.at) AS ends
              FROM soak.billed b, LATERAL (
                   SELECT (b.anchor AT TIME ZONE 'UTC' + make_interval(months => n)) AT TIME ZONE 'UTC' AS at FROM generate_series(0, 40) n
                   UNION SELECT k.at FROM soak.changes k WHERE k.stripe_id = b.stripe_id UNION SELECT b.ended_at) t
             WHERE t.at <= least(b.ended_at, billing.now()) AND b.status <> 'incomplete_expired') x
      LEFT JOIN soak.changes k ON k.stripe_id = x.stripe_id AND k.at <= x.starts
     WHERE x.ends IS NOT NULL
     GROUP BY x.stripe_id, x.starts, x.ends, x.first_plan, x.anchor;

    INSERT INTO soak.placed
    SELECT x.id, x.stripe_id, nth, CASE WHEN s.sent AND (x.ended OR s.doubtful) THEN NULL ELSE s.sent END, s.sent AND x.at < x.final,
           x.least = x.most AND NOT (s.sent AND (x.ended OR s.doubtful OR x.at < x.final AND x.settled_at >= x.final))
      FROM (SELECT e.id, b.stripe_id, date_trunc('hour', e.occurred_at, 'UTC') AS hour, t.at, settled.at AS settled_at,
                   -- taken back after the subscription's end, of which Stripe may not have heard by then
                   coalesce(t.at > b.ended_at, false) OR EXISTS (SELECT FROM soak.wishes w
                       WHERE w.tenant = b.tenant AND w.subscription = b.id AND w.kind = 'end' AND w.action < e.action) AS ended,
                   CASE WHEN f.ends > b.ended_at THEN 'infinity' ELSE f.ends + interval '1 hour' END AS final,
                   (SELECT count(*) FROM soak.changes k WHERE k.stripe_id = b.stripe_id AND k.step < e.step)::int AS least,
                   (SELECT count(*) FROM soak.changes k WHERE k.stripe_id = b.stripe_id AND k.step <= settled.step AND k.wish <= e.action)::int AS most
              FROM soak.events e
              JOIN soak.billed b ON b.tenant = e.tenant AND b.id = e.subscription AND b.status <> 'incomplete_expired'
              JOIN soak.steps t ON t.step = e.step
              JOIN LATERAL (SELECT u.step, u.at FROM soak.steps u WHERE u.step >= e.step AND u.settled ORDER BY u.step LIMIT 1) settled ON true
              JOIN LATERAL (SELECT soak.next_period(b.anchor, 'UTC', e.occurred_at) AS ends) f ON true
             WHERE e.period_start >= b.anchor
               AND e.step <= (SELECT coalesce(min(u.step), e.step) FROM soak.steps u WHERE u.at >= b.ended_at AND u.settled)) x
     CROSS JOIN LATERAL generate_series(x.least, x.most) nth
     CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE x.hour < date_trunc('hour', k.at, 'UTC')) = 0 AS sent,
                                -- we may have heard of the change in a later hour than Stripe took it
                                count(*) FILTER (WHERE x.hour < date_trunc('hour', k.known_at, 'UTC')) > 0 AS doubtful
                           FROM soak.changes k WHERE k.stripe_id = x.stripe_id AND k.c = nth) s;

    INSERT INTO soak.lines
    SELECT i.doc ->> 'id', b.stripe_id, p.plan, p.metric, soak.time(l #> '{period,start}'), soak.time(l #> '{period,end}'),
           (l ->> 'quantity_decimal')::numeric, (l ->> 'amount')::numeric
      FROM soak.loaded i CROSS JOIN LATERAL jsonb_array_elements(i.doc -> '_lines') l
      JOIN soak.billed b ON b.stripe_id = l #>> '{parent,subscription_item_details,subscription}' AND b.status <> 'incomplete_expired'
      JOIN soak.prices p ON p.id = l #>> '{pricing,price_details,price}'
     WHERE i.kind = 'invoice';
    ANALYZE soak.placed, soak.spans, soak.lines;
END $$;

-- Usage that was billed, span by span, and between which bounds it has to be.
CREATE VIEW soak.billed_usage AS
    SELECT coalesce(x.stripe_id, l.stripe_id) AS stripe_id, coalesce(x.plan, l.plan) AS plan, coalesce(x.metric, l.metric) AS metric,
           coalesce(x.starts, l.starts) AS starts, coalesce(x.ends, l.ends) AS ends, x.forgotten, x.least, x.most, l.quantity, l.charges
      FROM (SELECT s.*, m.metric, greatest(coalesce(e.certain + e.less, 0), 0) AS least, greatest(coalesce(e.certain + e.more, 0), 0) AS most
              FROM soak.spans s
              JOIN billing.plan_metrics m ON m.plan = s.plan
              LEFT JOIN (SELECT p.stripe_id, p.c, date_trunc('minute', e.period_start) AS period_start, e.metric,
                                coalesce(sum(e.quantity) FILTER (WHERE p.certain), 0) AS certain,
                                coalesce(sum(least(e.quantity, 0)) FILTER (WHERE NOT p.certain), 0) AS less,
                                coalesce(sum(greatest(e.quantity, 0)) FILTER (WHERE NOT p.certain), 0) AS more
                           FROM soak.placed p JOIN soak.events e ON e.id = p.event
                          WHERE p.billed GROUP BY 1, 2, 3, 4) e
                     ON (e.stripe_id, e.c, e.period_start, e.metric) = (s.stripe_id, s.c, s.period_start, m.metric)) x
      FULL JOIN (SELECT l.stripe_id, l.plan, l.metric, l.starts, l.ends, sum(l.quantity) AS quantity,
                        string_agg(trim_scale(l.quantity) || ' for ' || l.amount, ', ' ORDER BY l.quantity, l.amount) AS charges
                   FROM soak.lines l WHERE l.metric IS NOT NULL GROUP BY 1, 2, 3, 4, 5) l
             ON (l.stripe_id, l.plan, l.metric, l.starts, l.ends) = (x.stripe_id, x.plan, x.metric, x.starts, x.ends);

-- What a gauge has come to in a period until a time, of an average over time the part that this makes up.
CREATE FUNCTION soak.figure(tenant text, metric text, starts timestamptz, ends timestamptz, until timestamptz) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(CASE $2 WHEN 'storage_gb'
               THEN sum(e.quantity * extract(epoch FROM $5 - greatest(e.occurred_at, $3))) / extract(epoch FROM $4 - $3)
               ELSE max(e.level) FILTER (WHERE e.until > $3) END, 0)
      FROM (SELECT x.quantity, x.occurred_at, sum(x.quantity) OVER w AS level, lead(x.occurred_at, 1, 'infinity') OVER w AS until
              FROM soak.events x WHERE x.tenant = $1 AND x.metric = $2 AND x.occurred_at < $5
            WINDOW w AS (ORDER BY x.occurred_at, x.id)) e
$$;

-- The last change of a gauge in the hour of a time, after it, or that time: hours are rolled up whole.
CREATE FUNCTION soak.last_change(tenant text, metric text, at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT greatest($3, max(e.occurred_at) + interval '1 microsecond') FROM soak.events e
     WHERE e.tenant = $1 AND e.metric = $2 AND e.occurred_at >= $3 AND e.occurred_at < date_trunc('hour', $3, 'UTC') + interval '1 hour'
$$;

-- Gauges as they were billed, span by span, where that is certain: a change of plan and an end at once close a figure as of
-- the wish, or of a change later in that hour; one that runs out with its period is certain if a step was taken before the
-- invoice was final.
CREATE VIEW soak.billed_gauges AS
    SELECT g.*,
           soak.figure(g.tenant, g.metric, g.period_start, g.period_end, g.until)
           - soak.figure(g.tenant, g.metric, g.period_start, g.period_end, soak.last_change(g.tenant, g.metric, g.since)) AS least,
           soak.figure(g.tenant, g.metric, g.period_start, g.period_end,
                       CASE WHEN g.until < g.period_end THEN soak.last_change(g.tenant, g.metric, g.until) ELSE g.until END)
           - soak.figure(g.tenant, g.metric, g.period_start, g.period_end, g.since) AS most
      FROM (SELECT b.tenant, s.plan, s.starts, s.ends, s.period_start, s.period_end, u.metric, u.quantity,
                   CASE WHEN before.at > s.period_start THEN before.at END AS since, coalesce(after.at, x.ends_at, s.period_end) AS until
              FROM soak.spans s
              JOIN soak.billed b USING (stripe_id)
              JOIN soak.billed_usage u ON (u.stripe_id, u.plan, u.starts, u.ends) = (s.stripe_id, s.plan, s.starts, s.ends)
                   AND u.metric IN ('storage_gb', 'user_seats')
              LEFT JOIN soak.subscriptions x ON x.tenant = b.tenant AND x.id = b.id AND x.at_once AND b.ended_at = s.ends
              LEFT JOIN LATERAL (SELECT max(w.at) AS at FROM soak.changes k JOIN soak.wishes w ON w.action = k.wish
                                  WHERE k.stripe_id = s.stripe_id AND k.c = s.c) before ON true
              LEFT JOIN LATERAL (SELECT max(w.at) AS at FROM soak.changes k JOIN soak.wishes w ON w.action = k.wish
                                  WHERE k.stripe_id = s.stripe_id AND k.c = s.c + 1 AND k.at = s.ends) after ON true
             WHERE NOT s.forgotten
               AND (after.at IS NOT NULL OR x.ends_at IS NOT NULL
                    OR EXISTS (SELECT FROM soak.steps t WHERE t.settled AND t.at >= s.ends AND t.at < s.ends + interval '1 hour'))) g;

-- Flat fees: each period's in advance, and what a change within one makes of the rest.
CREATE VIEW soak.fees AS
    WITH periods AS (
        SELECT b.*, soak.period(b.anchor, 'UTC', s.starts) AS starts, soak.next_period(b.anchor, 'UTC', s.starts) AS ends
          FROM soak.billed b, LATERAL (
               SELECT (b.anchor AT TIME ZONE 'UTC' + make_interval(months => n)) AT TIME ZONE 'UTC' AS starts FROM generate_series(0, 40) n) s
         WHERE s.starts <= billing.now() AND s.starts < coalesce(b.ended_at, 'infinity') AND b.status <> 'incomplete_expired'
    ), plans AS (
        SELECT b.stripe_id, 0 AS c, '-infinity'::timestamptz AS at, b.first_plan AS plan, NULL AS proration FROM soak.billed b
        UNION ALL SELECT stripe_id, c, at, plan, proration FROM soak.changes
    )
    SELECT p.stripe_id, x.plan, p.starts, p.ends, round(l.price) AS amount
      FROM periods p
      JOIN LATERAL (SELECT * FROM plans x WHERE x.stripe_id = p.stripe_id AND x.at <= p.starts ORDER BY x.c DESC LIMIT 1) x ON true
      JOIN billing.plans l ON l.name = x.plan
    UNION ALL
    SELECT p.stripe_id, l.name, k.at, p.ends,
           CASE WHEN l.name = k.plan THEN 1 ELSE -1 END
               * round(round(l.price) * extract(epoch FROM p.ends - k.at) / extract(epoch FROM p.ends - p.starts))
      FROM soak.changes k
      JOIN plans before ON before.stripe_id = k.stripe_id AND before.c = k.c - 1
      JOIN periods p ON p.stripe_id = k.stripe_id AND k.at >= p.starts AND k.at < p.ends
      JOIN billing.plans l ON l.name IN (k.plan, before.plan)
     WHERE k.proration <> 'none';

CREATE VIEW soak.differences (what, which, expected, found) AS
    -- The ledger: what was recorded is there, and nothing else.
    SELECT 'event', concat_ws(' ', x.tenant, x.metric, x.quantity, x.key, x.occurred_at, x.period_start), CASE x.n WHEN 1 THEN 'one' ELSE 'none' END, ''
      FROM ((SELECT tenant, metric, quantity, key, occurred_at, period_start, 1 AS n FROM soak.events
             EXCEPT ALL SELECT tenant_id, metric, quantity, idempotency_key, occurred_at, period_start, 1 FROM billing.usage_events)
            UNION ALL
            (SELECT tenant_id, metric, quantity, idempotency_key, occurred_at, period_start, -1 FROM billing.usage_events
             EXCEPT ALL SELECT tenant, metric, quantity, key, occurred_at, period_start, -1 FROM soak.events)) x
    UNION ALL
    SELECT 'hour', concat_ws(' ', tenant, metric, period_start, hour), e.total::text, a.total::text
      FROM (SELECT tenant, metric, period_start, date_trunc('hour', occurred_at, 'UTC') AS hour, ROW(trim_scale(sum(quantity)), count(*)) AS total
              FROM soak.events GROUP BY 1, 2, 3, 4) e
      FULL JOIN (SELECT tenant_id AS tenant, metric, period_start, hour, ROW(trim_scale(quantity), events) AS total FROM billing.usage_aggregates) a
                USING (tenant, metric, period_start, hour)
     WHERE e.total::text IS DISTINCT FROM a.total::text
    UNION ALL
    SELECT 'period', concat_ws(' ', tenant, metric, period_start), e.total::text, concat_ws(', ', q.used, c.used)
      FROM (SELECT tenant, metric, period_start, sum(quantity) AS total FROM soak.events GROUP BY 1, 2, 3) e
      FULL JOIN (SELECT tenant_id AS tenant, metric, period_start, used FROM billing.usage_quotas) q USING (tenant, metric, period_start)
      -- asked for as anybody would; the periods of an earlier subscription cannot be
      LEFT JOIN LATERAL (SELECT billing.get_current_usage(tenant, metric, greatest(period_start, '2000-01-01')::text) AS used
                          WHERE lower(billing._period(tenant, metric, greatest(period_start, '2000-01-01')::text)) = period_start) c ON true
     WHERE coalesce(e.total, 0) <> coalesce(q.used, -1) OR coalesce(e.total, 0) <> c.used
    UNION ALL
    -- What was sent is what was used, but for hours with usage that cannot be sent.
    SELECT 'sent', concat_ws(' ', a.tenant_id, a.metric, a.hour), a.quantity::text, a.submitted::text
      FROM billing.usage_aggregates a
     WHERE a.submitted IS DISTINCT FROM a.quantity AND a.metric NOT IN ('storage_gb', 'user_seats')
       AND NOT EXISTS (SELECT FROM soak.events e LEFT JOIN soak.placed p ON p.event = e.id
                        WHERE (e.tenant, e.metric, e.period_start, date_trunc('hour', e.occurred_at, 'UTC')) = (a.tenant_id, a.metric, a.period_start, a.hour)
                          AND p.sent IS NOT TRUE)
    UNION ALL
    -- Of an hour Stripe keeps what was sent last: all of it, or what came after the latest change of plan in it; of deltas the sum.
    SELECT 'hour at Stripe', concat_ws(' ', tenant, metric, hour), h.value::text, s.value::text
      FROM (SELECT DISTINCT ON (b.tenant, e.metric, date_trunc('hour', e.occurred_at, 'UTC'))
                   b.tenant, e.metric, date_trunc('hour', e.occurred_at, 'UTC') AS hour, sum(e.quantity) AS value,
                   bool_and(p.sent IS NOT NULL AND (p.certain OR NOT p.billed)) AS certain
              FROM soak.placed p JOIN soak.events e ON e.id = p.event JOIN soak.billed b ON b.stripe_id = p.stripe_id
              JOIN billing.metrics m ON m.name = e.metric AND m.kind = 'counter'
             WHERE p.sent IS NOT FALSE
             GROUP BY 1, 2, 3, CASE WHEN billing._meter_adds(m.export) THEN 0 ELSE b.id END, CASE WHEN billing._meter_adds(m.export) THEN 0 ELSE p.c END
             ORDER BY 1, 2, 3, max(b.id) DESC, max(p.c) DESC) h
      FULL JOIN (SELECT t.tenant_id AS tenant, m.name AS metric, (l.doc ->> 'hour')::timestamptz AS hour, (l.doc ->> 'value')::numeric AS value
                   FROM soak.loaded l JOIN billing.billing_customers t ON t.stripe_customer_id = l.doc ->> 'customer'
                   JOIN billing.metrics m ON m.stripe_event_name = l.doc ->> 'metric' AND m.kind = 'counter'
                  WHERE l.kind = 'hour') s
                USING (tenant, metric, hour)
     WHERE h.certain IS NOT FALSE AND h.value IS DISTINCT FROM s.value
       AND tenant NOT IN (SELECT b.tenant FROM soak.billed b WHERE b.status = 'incomplete_expired')
    UNION ALL
    -- What was billed is what was sent, at our prices.
    SELECT 'billed', concat_ws(' ', b.tenant, u.plan, u.metric, u.starts, u.ends), CASE WHEN u.forgotten THEN 'forgotten' ELSE concat_ws(' to ', u.least, u.most) END,
           u.quantity::text
      FROM soak.billed_usage u JOIN soak.billed b USING (stripe_id)
     WHERE u.metric NOT IN ('storage_gb', 'user_seats') AND (CASE WHEN u.forgotten THEN u.quantity IS NULL ELSE u.quantity BETWEEN u.least AND u.most END) IS NOT TRUE
    UNION ALL
    SELECT 'billed gauge', concat_ws(' ', g.tenant, g.plan, g.metric, g.starts, g.ends), concat_ws(' to ', round(g.least, 9), round(g.most, 9)), g.quantity::text
      FROM soak.billed_gauges g WHERE (g.quantity BETWEEN g.least - 0.000001 AND g.most + 0.000001) IS NOT TRUE
    UNION ALL
    SELECT 'charge', concat_ws(' ', u.stripe_id, u.metric, u.starts), r.charges, u.charges
      FROM soak.billed_usage u,
           LATERAL (SELECT string_agg(trim_scale(r.quantity) || ' for ' || r.amount, ', ' ORDER BY r.quantity, r.amount) AS charges
                      FROM billing._plan_terms(u.plan) p, billing._rate(p.terms, u.quantity) r WHERE p.metric = u.metric) r
     WHERE u.quantity IS NOT NULL AND r.charges IS DISTINCT FROM u.charges
    UNION ALL
    SELECT 'fee', concat_ws(' ', x.stripe_id, x.plan, x.starts, x.ends), CASE x.n WHEN 1 THEN x.amount::text END, CASE x.n WHEN -1 THEN x.amount::text END
      FROM ((SELECT stripe_id, plan, starts, ends, amount, 1 AS n FROM soak.fees
             EXCEPT ALL SELECT stripe_id, plan, starts, ends, amount, 1 FROM soak.lines WHERE metric IS NULL)
            UNION ALL
            (SELECT stripe_id, plan, starts, ends, amount, -1 FROM soak.lines WHERE metric IS NULL
             EXCEPT ALL SELECT stripe_id, plan, starts, ends, amount, -1 FROM soak.fees)) x
    UNION ALL
    -- Invoices are stored as Stripe has them.
    SELECT 'invoice', id, s.doc, b.doc
      FROM (SELECT l.doc ->> 'id' AS id, concat_ws(' ', t.tenant_id, l.doc ->> 'status', l.doc ->> 'total', l.doc ->> 'amount_due', l.doc ->> 'amount_paid', x.lines) AS doc
              FROM soak.loaded l JOIN billing.billing_customers t ON t.stripe_customer_id = l.doc ->> 'customer',
                   LATERAL (SELECT string_agg(concat_ws('/', i ->> 'id', p.metric, i ->> 'quantity_decimal', i ->> 'amount'), ', ' ORDER BY i ->> 'id') AS lines
                              FROM jsonb_array_elements(l.doc -> '_lines') i JOIN soak.prices p ON p.id = i #>> '{pricing,price_details,price}') x
             WHERE l.kind = 'invoice') s
      FULL JOIN (SELECT i.stripe_invoice_id AS id, concat_ws(' ', i.tenant_id, i.status, i.total, i.amount_due, i.amount_paid, x.lines) AS doc
                   FROM billing.invoices i,
                        LATERAL (SELECT string_agg(concat_ws('/', l.stripe_line_id, l.metric, l.quantity, l.amount), ', ' ORDER BY l.stripe_line_id) AS lines
                                   FROM billing.invoice_lines l WHERE (l.tenant_id, l.stripe_invoice_id) = (i.tenant_id, i.stripe_invoice_id)) x) b USING (id)
     WHERE s.doc IS DISTINCT FROM b.doc
    UNION ALL
    SELECT 'draft', l.doc ->> 'id', 'none', l.doc ->> 'status' FROM soak.loaded l
     WHERE l.kind = 'invoice' AND l.doc ->> 'status' = 'draft' AND soak.time(l.doc -> 'automatically_finalizes_at') < billing.now() - interval '1 minute'
    UNION ALL
    -- Every wish is in effect, here and there.
    SELECT 'subscription at Stripe', concat_ws(' ', s.tenant, s.id), w.state, f.state
      FROM soak.subscriptions s JOIN soak.tenants t ON t.tenant = s.tenant AND t.stripe
      LEFT JOIN soak.billed b ON b.tenant = s.tenant AND b.id = s.id,
           LATERAL (SELECT CASE WHEN s.ends_at <= billing.now() THEN concat_ws(' ', 'ended', CASE WHEN NOT s.at_once THEN s.ends_at END)
                                ELSE concat_ws(' ', s.plan, CASE WHEN s.ends_at IS NOT NULL THEN 'ends' END) END AS state) w,
           LATERAL (SELECT CASE WHEN b.ended_at IS NOT NULL THEN concat_ws(' ', 'ended', CASE WHEN NOT s.at_once THEN b.ended_at END)
                                ELSE concat_ws(' ', b.plan, CASE WHEN b.cancels THEN 'ends' END) END AS state) f
     WHERE w.state IS DISTINCT FROM f.state AND b.status IS DISTINCT FROM 'incomplete_expired' AND NOT (s.at_once AND b.stripe_id IS NULL)
    UNION ALL
    SELECT 'subscription here', concat_ws(' ', s.tenant, s.id), w.state, f.state
      FROM soak.subscriptions s LEFT JOIN soak.billed b ON b.tenant = s.tenant AND b.id = s.id
      LEFT JOIN billing.subscriptions x ON x.tenant_id = s.tenant AND x.id = s.id,
           LATERAL (SELECT CASE WHEN b.status = 'incomplete_expired' THEN b.status
                                WHEN s.ends_at <= billing.now() THEN concat_ws(' ', 'canceled', s.plan, s.ends_at)
                                ELSE concat_ws(' ', coalesce(b.status, 'active'), s.plan, CASE WHEN s.ends_at IS NOT NULL THEN 'ends' END,
                                               soak.period(s.anchor, s.timezone, billing.now()), soak.next_period(s.anchor, s.timezone, billing.now())) END AS state) w,
           LATERAL (SELECT CASE x.status WHEN 'incomplete_expired' THEN x.status WHEN 'canceled' THEN concat_ws(' ', x.status, x.plan, x.ended_at)
                                ELSE concat_ws(' ', x.status, x.plan, CASE WHEN x.cancel_at_period_end THEN 'ends' END,
                                               x.current_period_start, x.current_period_end) END AS state) f
     WHERE w.state IS DISTINCT FROM f.state
    UNION ALL
    SELECT 'change nobody asked for', concat_ws(' ', k.stripe_id, k.at), NULL, k.plan FROM soak.changes k WHERE k.wish IS NULL
    UNION ALL
    -- Nothing is carried out twice, neither by a request nor by another one.
    SELECT 'repeated with an effect', l.doc ->> 'idempotency_key', '1', count(*)::text
      FROM soak.loaded l WHERE l.kind = 'request' AND l.doc ? 'effect' AND l.doc ->> 'idempotency_key' LIKE 'pgb-%' GROUP BY 2 HAVING count(*) > 1
    UNION ALL
    SELECT 'double customer', l.doc #>> '{metadata,tenant_id}', '1', count(*)::text
      FROM soak.loaded l WHERE l.kind = 'customer' GROUP BY 2 HAVING count(*) > 1
    UNION ALL
    SELECT 'double subscription', concat_ws(' ', b.tenant, b.id), '1', count(*)::text FROM soak.billed b GROUP BY 2 HAVING count(*) > 1
    UNION ALL
    SELECT 'outbox', concat_ws(' ', o.tenant_id, o.kind, o.subject), 'delivered', concat_ws(' ', o.state, o.error)
      FROM billing.stripe_outbox o WHERE o.state <> 'delivered' AND NOT (o.state = 'failed' AND o.retried_at IS NOT NULL)
    UNION ALL
    SELECT 'webhook', concat_ws(' ', w.type, w.object_id), 'processed', w.outcome
      FROM billing.webhook_events w WHERE w.processed_at IS NULL OR w.outcome NOT IN ('applied', 'kept', 'unknown type')
    UNION ALL
    -- Of what is only recorded if it is allowed there is never more than was allowed.
    SELECT 'overshoot', concat_ws(' ', e.tenant, e.metric, e.period_start), max(e.bound)::text, sum(e.quantity)::text
      FROM soak.events e WHERE e.tenant LIKE 'hot%' GROUP BY e.tenant, e.metric, e.period_start HAVING sum(e.quantity) > max(e.bound)
    UNION ALL
    SELECT 'audit', concat_ws(' ', tenant, action), e.n::text, a.n::text
      FROM (SELECT tenant, action, count(*) AS n
              FROM (SELECT tenant, action FROM soak.audited
                    UNION ALL SELECT tenant, 'end' FROM soak.subscriptions WHERE ends_at <= billing.now() AND NOT at_once
                    UNION ALL SELECT tenant, 'end' FROM soak.billed WHERE status = 'incomplete_expired') x GROUP BY 1, 2) e
      FULL JOIN (SELECT tenant_id AS tenant, CASE WHEN action IN ('end_subscription', 'changed_at_stripe') THEN 'end' ELSE action END AS action, count(*) AS n
                   FROM billing.audit_log GROUP BY 1, 2) a USING (tenant, action)
     WHERE e.n IS DISTINCT FROM a.n;

CREATE VIEW soak.summary AS
    SELECT format('# %s actions, %s events, %s subscriptions, %s changes of plan; at Stripe %s requests (%s met a fault), %s invoices, %s lines; '
                  '%s periods of usage billed, %s of gauges looked at, %s events not billed, %s of them sent',
                  (SELECT count(outcome) FROM soak.actions), (SELECT count(*) FROM soak.events), (SELECT count(*) FROM soak.subscriptions),
                  (SELECT count(*) FROM soak.changes), (SELECT count(*) FROM soak.loaded WHERE kind = 'request'),
                  (SELECT count(*) FROM soak.loaded WHERE kind = 'request' AND doc ? 'fault'), (SELECT count(*) FROM soak.loaded WHERE kind = 'invoice'),
                  (SELECT count(*) FROM soak.lines), (SELECT count(*) FROM soak.billed_usage WHERE quantity > 0), (SELECT count(*) FROM soak.billed_gauges WHERE quantity > 0),
                  (SELECT count(DISTINCT event) FROM soak.placed WHERE NOT billed), (SELECT count(DISTINCT event) FROM soak.placed WHERE sent AND NOT billed));
