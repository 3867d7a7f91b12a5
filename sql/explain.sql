-- Why a decision is what it is, told step by step from the same rows and counters that the decision comes from.

CREATE FUNCTION billing.explain_decision(tenant_id text, metric text, quantity numeric DEFAULT 1)
RETURNS TABLE (step text, detail text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := billing.now();
    q record;
    s record;
    w record;
    o record;
    d billing.decision := billing.check_quota(tenant_id, metric, quantity);
    rolled numeric;
    recent numeric;
BEGIN
    SELECT * INTO STRICT q FROM billing._quota_in_force(explain_decision.tenant_id, explain_decision.metric, at);
    SELECT * INTO s FROM billing.subscriptions x
     WHERE x.tenant_id = explain_decision.tenant_id AND x.status NOT IN ('canceled', 'incomplete_expired');
    SELECT * INTO o FROM billing.quota_overrides x
     WHERE x.tenant_id = explain_decision.tenant_id AND x.metric = explain_decision.metric;

    step := 'subscription';
    detail := CASE WHEN s.id IS NULL THEN 'none'
                   ELSE format('plan %s, %s', s.plan, s.status)
                        || CASE WHEN s.status = 'past_due' THEN format(' since %s; the plan is kept until %s', s.past_due_since,
                               s.past_due_since + (SELECT p.past_due_grace FROM billing.plans p WHERE p.name = s.plan)) ELSE '' END END;
    RETURN NEXT;
    step := 'period';
    detail := CASE WHEN q.kind = 'gauge' THEN 'a gauge is a level: it has no period and does not reset'
                   ELSE format('%s to %s', lower(q.period), upper(q.period)) END;
    RETURN NEXT;
    step := 'quota';
    detail := CASE WHEN o.tenant_id IS NOT NULL THEN 'set for this tenant by billing.set_quota(): '
                   WHEN q.cap IS NULL THEN 'none in force'
                   ELSE format('of plan %s: ', q.plan) END
              || CASE WHEN q.cap IS NULL THEN '' ELSE coalesce(q.quota::text, 'unlimited') || format(', cap %s', q.cap) END
              || CASE WHEN q.cap = 'soft' THEN format(', refused past %s', trim_scale(q.bound)) ELSE '' END;
    RETURN NEXT;
    FOR w IN SELECT * FROM billing._window_limits(explain_decision.tenant_id, explain_decision.metric, q.plan, q.timezone, at) x
              WHERE x.quota IS NOT NULL LOOP
        step := format('limit per %s', w.per);
        detail := format('%s until %s, %s used', w.quota, upper(w.span),
            billing._used_within(explain_decision.tenant_id, explain_decision.metric, lower(w.span), upper(w.span)));
        RETURN NEXT;
    END LOOP;
    rolled := coalesce((SELECT u.used FROM billing.usage_quotas u
                         WHERE u.tenant_id = explain_decision.tenant_id AND u.metric = explain_decision.metric
                           AND u.period_start = lower(q.period)), 0);
    recent := billing._used(explain_decision.tenant_id, explain_decision.metric, lower(q.period)) - rolled;
    step := 'used';
    detail := format('%s rolled up, %s not yet', rolled, recent)
              || CASE WHEN d.reason IN ('hour_limit', 'day_limit') OR d.used IS NULL THEN ''
                      ELSE format(', %s held or in flight', d.used - rolled - recent) END;
    RETURN NEXT;
    step := 'decision';
    detail := format('%s, because ', d.status) || CASE d.reason
        WHEN 'within_quota' THEN format('%s used and %s more stay within the quota of %s', d.used, quantity, d.quota)
        WHEN 'unlimited' THEN 'the quota is unlimited'
        WHEN 'overage' THEN format('the plan bills what goes beyond the quota of %s', d.quota)
        WHEN 'soft_cap_exceeded' THEN format('a soft cap lets usage go beyond the quota of %s up to %s', d.quota, trim_scale(q.bound))
        WHEN 'hard_cap' THEN format('%s used and %s more would pass the hard cap of %s', d.used, quantity, d.quota)
        WHEN 'upgrade_required' THEN CASE WHEN d.used IS NULL THEN format('plan %s does not include the metric', q.plan)
            ELSE format('%s used and %s more would pass %s, where the grace of the soft cap ends', d.used, quantity, trim_scale(q.bound)) END
        WHEN 'hour_limit' THEN format('%s used and %s more would pass the limit of %s per hour', d.used, quantity, d.quota)
        WHEN 'day_limit' THEN format('%s used and %s more would pass the limit of %s per day', d.used, quantity, d.quota)
        WHEN 'no_subscription' THEN 'the tenant has neither a subscription nor a quota of its own'
        WHEN 'subscription_inactive' THEN format('the subscription is %s', s.status) END;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION billing.explain_decision(text, text, numeric) IS
    'tells step by step why billing.check_quota() decides as it does now: subscription, period, quota, limits, usage, decision. Raises as check_quota does';

-- What a line of an invoice is made of: the hours add up to it (of a gauge their average or peak is its quantity), the
-- events of an hour to the hour. Events that are not kept any more have left their hour.
CREATE FUNCTION billing.explain_invoice_line(tenant_id text, metric text, invoice text DEFAULT NULL)
RETURNS TABLE (step text, at timestamptz, quantity numeric, amount numeric, detail text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    starts timestamptz;
    ends timestamptz;
    m record;
    l record;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    PERFORM billing._check_metric(metric);
    SELECT x.aggregation, x.unique_property INTO m FROM billing.metrics x WHERE x.name = explain_invoice_line.metric;
    FOR l IN
        SELECT i.description, i.quantity, i.amount, i.period_start, i.period_end
          FROM billing._invoice(explain_invoice_line.tenant_id, false) i
         WHERE invoice IS NULL AND i.metric = explain_invoice_line.metric
        UNION ALL
        (SELECT i.description, i.quantity, i.amount, i.period_start, i.period_end FROM billing.invoice_lines i
          WHERE i.tenant_id = explain_invoice_line.tenant_id AND i.stripe_invoice_id = invoice
            AND i.metric = explain_invoice_line.metric
          ORDER BY i.ordinal)
    LOOP
        starts := least(starts, l.period_start);
        ends := greatest(ends, l.period_end);
        step := 'line';
        at := l.period_start;
        quantity := l.quantity;
        amount := l.amount;
        detail := l.description;
        RETURN NEXT;
    END LOOP;
    IF starts IS NULL THEN
        RAISE EXCEPTION 'invoice "%" has no line of metric "%"', coalesce(left(invoice, 64), 'upcoming'), metric
            USING ERRCODE = 'UB032', HINT = 'billing.invoice_lines and billing.get_upcoming_invoice() list the lines.';
    END IF;
    RETURN QUERY
    WITH events AS (
        SELECT date_bin('1 hour', e.occurred_at, 'epoch') AS hour, e.*
          FROM billing.usage_events e
         WHERE e.tenant_id = explain_invoice_line.tenant_id AND e.metric = explain_invoice_line.metric
           AND e.occurred_at >= starts AND e.occurred_at < ends
    )
    SELECT x.step, x.at, x.quantity, NULL::numeric, x.detail
      FROM (SELECT lower(u.span) AS hour, 'hour' AS step, lower(u.span) AS at, NULL::timestamptz AS recorded_at,
                   u.quantity, NULL AS detail
              FROM billing._usage_per(explain_invoice_line.tenant_id, explain_invoice_line.metric, 'hour', starts, ends) u
             WHERE u.quantity <> 0 OR lower(u.span) IN (SELECT e.hour FROM events e)
            UNION ALL
            SELECT e.hour, 'event', e.occurred_at, e.recorded_at,
                   billing._contribution(m.aggregation, e.quantity, e.void_reason),
                   concat_ws(', ', e.idempotency_key, m.unique_property || ': ' || (e.properties ->> m.unique_property),
                             'taken back: ' || e.void_reason)
              FROM events e) x
     ORDER BY x.hour, x.step DESC, x.at, x.recorded_at;
END $$;
COMMENT ON FUNCTION billing.explain_invoice_line(text, text, text) IS
    'tells what a metric''s lines are made of, on a stored invoice of that Stripe id or on the upcoming one: the lines, then each hour followed by its events. Raises UB010, UB011, UB032, UB040';
