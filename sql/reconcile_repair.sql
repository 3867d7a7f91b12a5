-- What drift can be mended, and how. Aggregates and quotas are computed anew from the events, with the counters that
-- were loaded from them; an hour that Stripe counts wrongly is sent anew, under another identifier, and overwrites. So is the
-- figure of a period, which the latest event is.
-- An invoice that is final stays as it is: what it lacks is stated with its price.

-- Makes the counters of a tenant's metric what the tables say, for the period and the windows around a time. The caller
-- holds usage (_hold_usage) and reservations.
CREATE FUNCTION billing._match_counters(tenant_id text, metric text, at timestamptz, period_start timestamptz) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_match_counters';

-- Computes one hour of usage_aggregates from its events, of a unique_count all hours of the period.
CREATE FUNCTION billing._recompute(own text, what text, starts timestamptz, at_hour timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    tail billing._batch := billing._tail();
    since timestamptz := billing._closed_by(at_hour - billing._duration('pg_billing.future_limit'));
    m record;
BEGIN
    SELECT x.kind, x.aggregation, x.unique_property INTO m FROM billing.metrics x WHERE x.name = what;
    IF m.aggregation = 'unique_count' THEN
        DELETE FROM billing.usage_uniques u WHERE u.tenant_id = own AND u.metric = what AND u.period_start = starts;
        INSERT INTO billing.usage_uniques (tenant_id, metric, period_start, value, hour)
        SELECT own, what, starts, billing._event_key(e.properties ->> m.unique_property),
               min(date_bin('1 hour', e.occurred_at, 'epoch'))
          FROM billing.usage_events e
         WHERE e.tenant_id = own AND e.tick >= since AND NOT billing._in_batch(e.tick, tail) AND e.metric = what
           AND e.period_start = starts AND e.properties ->> m.unique_property IS NOT NULL
         GROUP BY 4;
        UPDATE billing.usage_aggregates a
           SET quantity = (SELECT count(*) FROM billing.usage_uniques u WHERE u.tenant_id = own AND u.metric = what
                              AND u.period_start = starts AND u.hour = a.hour)
         WHERE a.tenant_id = own AND a.metric = what AND a.period_start = starts;
        RETURN;
    END IF;
    INSERT INTO billing.usage_aggregates AS a (tenant_id, metric, period_start, hour, quantity, events, last_at, recorded_at,
                                               weighted, peak)
    SELECT own, what, starts, at_hour, coalesce(c.quantity, 0), c.events, c.last_at, c.recorded_at, c.weighted, c.peak
      FROM (SELECT CASE WHEN m.kind = 'gauge' THEN sum(e.quantity)
                        WHEN m.aggregation = 'max' THEN max(e.quantity)
                        WHEN m.aggregation = 'last' THEN
                            (array_agg(e.quantity ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.quantity DESC))[1]
                        ELSE sum(billing._contribution(m.aggregation, e.quantity, e.void_reason)) END AS quantity,
                   count(*) AS events,
                   CASE WHEN m.kind = 'gauge' OR m.aggregation = 'last' THEN max(e.occurred_at)
                        WHEN m.aggregation = 'max' THEN (array_agg(e.occurred_at ORDER BY e.quantity DESC, e.occurred_at DESC))[1]
                   END AS last_at,
                   CASE m.aggregation
                        WHEN 'last' THEN (array_agg(e.recorded_at ORDER BY e.occurred_at DESC, e.recorded_at DESC))[1]
                        WHEN 'max' THEN (array_agg(e.recorded_at ORDER BY e.quantity DESC, e.occurred_at DESC))[1]
                   END AS recorded_at,
                   CASE m.kind WHEN 'gauge' THEN
                        sum(e.quantity * extract(epoch FROM at_hour + interval '1 hour' - e.occurred_at)) END AS weighted,
                   CASE m.kind WHEN 'gauge' THEN billing._gauge_peak(own, what, at_hour) END AS peak
              FROM billing.usage_events e
             WHERE e.tenant_id = own AND e.tick >= since AND NOT billing._in_batch(e.tick, tail) AND e.metric = what
               AND e.period_start = starts AND e.occurred_at >= at_hour AND e.occurred_at < at_hour + interval '1 hour') c
    ON CONFLICT ON CONSTRAINT usage_aggregates_pkey
    DO UPDATE SET quantity = excluded.quantity, events = excluded.events, last_at = excluded.last_at,
                  recorded_at = CASE WHEN m.kind = 'gauge' THEN a.recorded_at ELSE excluded.recorded_at END,
                  weighted = excluded.weighted, peak = excluded.peak;
END $$;

-- Mends aggregates or a quota, if they still differ; returns what the figure becomes, null: nothing to do.
CREATE FUNCTION billing._repair_ledger(drift jsonb, dry_run boolean) RETURNS numeric
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    d billing.drift := jsonb_populate_record(NULL::billing.drift, drift);
    r record;
BEGIN
    SELECT x.* INTO r
      FROM billing._recount(d.tenant_id, d.hour, CASE WHEN d.kind = 'aggregate' AND d.hour > d.period_start
                                                      THEN d.hour + interval '1 hour' ELSE 'infinity' END) x
     WHERE (x.metric, x.kind, x.period_start, x.hour) = (d.metric, d.kind, d.period_start, d.hour);
    IF NOT FOUND THEN
        RETURN NULL;
    ELSIF dry_run THEN
        RETURN coalesce(r.ledger, 0);
    END IF;
    -- loaded before the tables change, lest what is not committed yet be loaded
    PERFORM billing._match_counters(d.tenant_id, d.metric, at, d.period_start) FROM unnest(ARRAY[d.hour, billing.now()]) at;
    IF d.kind = 'aggregate' THEN
        PERFORM billing._recompute(d.tenant_id, d.metric, d.period_start, d.hour);
        PERFORM billing._export_hours(d.tenant_id, d.metric, d.period_start, d.hour);
    ELSE
        UPDATE billing.usage_quotas q SET used = r.ledger
         WHERE q.tenant_id = d.tenant_id AND q.metric = d.metric AND q.period_start = d.period_start;
    END IF;
    PERFORM billing._match_counters(d.tenant_id, d.metric, at, d.period_start) FROM unnest(ARRAY[d.hour, billing.now()]) at;
    RETURN coalesce(r.ledger, 0);
END $$;

-- Has an hour, or a period's figure, sent anew, as far as Stripe takes it; returns whether it will be. A meter that adds would count it twice: to
-- that only what was refused is sent.
CREATE FUNCTION billing._repair_hour(drift jsonb, dry_run boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    d billing.drift := jsonb_populate_record(NULL::billing.drift, drift);
    adds boolean := (SELECT billing._meter_adds(m.export) FROM billing.metrics m WHERE m.name = d.metric);
    -- of which Stripe is told
    moment timestamptz := CASE WHEN billing._by_hour(d.metric) THEN d.hour
                               ELSE (SELECT max(f.period_end) FROM billing.usage_figures f
                                      WHERE f.tenant_id = d.tenant_id AND f.metric = d.metric AND f.period_start = d.period_start) END;
    due boolean;
BEGIN
    IF moment < billing.now() - interval '35 days' OR adds AND d.kind = 'stripe' THEN
        RETURN false;
    ELSIF dry_run THEN
        RETURN true;
    END IF;
    PERFORM billing._stripe_put_back(to_jsonb(o)) FROM billing.stripe_outbox o
     WHERE o.tenant_id = d.tenant_id AND o.kind = 'meter_event' AND o.subject = d.metric AND o.state = 'failed'
       AND o.retried_at IS NULL AND coalesce(o.detail ->> 'hour', o.detail ->> 'period_start')::timestamptz = d.hour;
    IF NOT billing._by_hour(d.metric) THEN
        UPDATE billing.usage_figures f SET submitted = NULL, blocked = false, due_at = '-infinity'
         WHERE f.tenant_id = d.tenant_id AND f.metric = d.metric AND f.period_start = d.period_start;
        RETURN FOUND;
    END IF;
    IF adds THEN
        RETURN true;
    END IF;
    -- an hour of which Stripe counts something and here is nothing is sent as nothing
    PERFORM billing._send_anew(d.tenant_id, d.metric, d.period_start, d.hour);
    SELECT count(*) > 0 INTO due FROM billing._stripe_due_hours() h
     WHERE h.tenant_id = d.tenant_id COLLATE "C" AND h.metric = d.metric COLLATE "default" AND h.hour = d.hour;
    IF NOT due THEN     -- the subscription has ended at Stripe, or does not have the metric
        UPDATE billing.usage_aggregates a SET submitted = d.sent
         WHERE (a.tenant_id, a.metric, a.period_start, a.hour) = (d.tenant_id, d.metric, d.period_start, d.hour);
    END IF;
    RETURN due;
END $$;

-- What a final invoice lacks goes by the policy for late usage; returns what that is, in words, and whether it is on its way.
CREATE FUNCTION billing._repair_invoice(drift jsonb, dry_run boolean, OUT mended boolean, OUT action text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    d billing.drift := jsonb_populate_record(NULL::billing.drift, drift);
    ends timestamptz := (SELECT upper(p.period) FROM billing._period_of(d.tenant_id, d.period_start) p);
    plan text;
    terms jsonb;
    i record;
BEGIN
    SELECT x.plan, x.terms INTO plan, terms FROM billing._invoiced_at(d.tenant_id, d.metric, d.period_start, ends) x;
    SELECT x.* INTO i FROM billing._invoiced(d.tenant_id, d.period_start, ends) x WHERE x.metric = d.metric;
    IF plan IS NULL OR NOT FOUND THEN
        mended := false;
        action := 'the period is on no final invoice: bill it by an invoice item';
        RETURN;
    END IF;
    action := format('the final invoice lacks %s %s: late usage, %s',
                     billing._rated_difference(terms, i.priced - (i.expected - i.invoiced), i.priced),
                     terms ->> 'currency', billing._late_policy(plan));
    IF NOT dry_run THEN
        PERFORM billing._note_late_usage(d.tenant_id, d.period_start, ends);
    END IF;
    mended := CASE WHEN dry_run THEN billing._late_policy(plan) <> 'ignore'
              ELSE NOT EXISTS (SELECT FROM billing._invoiced(d.tenant_id, d.period_start, ends) x
                                WHERE x.metric = d.metric AND x.expected <> x.invoiced) END;
END $$;

CREATE FUNCTION billing.repair(tenant_id text DEFAULT NULL, dry_run boolean DEFAULT true)
RETURNS TABLE (tenant text, metric text, kind text, period_start timestamptz, hour timestamptz, was numeric, becomes numeric,
               mended boolean, action text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own text := coalesce(tenant_id, billing.current_tenant());
    dry boolean := dry_run IS NOT FALSE;
    d billing.drift;
BEGIN
    IF own IS NOT NULL THEN
        PERFORM billing._check_tenant(own);
    END IF;
    IF NOT dry AND EXISTS (SELECT FROM billing.drift x WHERE x.repaired_at IS NULL AND x.kind IN ('aggregate', 'quota')
                                                         AND (own IS NULL OR x.tenant_id = own)) THEN
        -- No rollup meanwhile, and nothing that counters do not have from the tables.
        PERFORM pg_advisory_xact_lock(hashtext('pg_billing.run_rollup'));
        PERFORM billing._hold_usage(x.metric) FROM billing.drift x
          WHERE x.repaired_at IS NULL AND x.kind IN ('aggregate', 'quota') LIMIT 1;
        LOCK TABLE billing.reservations IN SHARE ROW EXCLUSIVE MODE;
    END IF;
    FOR d IN
        SELECT x.* FROM billing.drift x
         WHERE x.repaired_at IS NULL AND (own IS NULL OR x.tenant_id = own)
         ORDER BY array_position('{aggregate,quota,unsent,stripe,invoice}', x.kind), x.id FOR UPDATE
    LOOP
        tenant := d.tenant_id;
        metric := d.metric;
        kind := d.kind;
        period_start := d.period_start;
        hour := CASE WHEN d.kind IN ('aggregate', 'unsent', 'stripe') THEN d.hour END;
        CASE
        WHEN d.kind = 'quota' AND NOT isfinite(d.period_start) THEN
            was := d.aggregated;
            becomes := NULL;
            mended := false;
            action := 'the hours of the gauge add up to another level: reconcile the periods before, then state it with billing.set_usage()';
        WHEN d.kind IN ('aggregate', 'quota') THEN
            was := d.aggregated;
            becomes := billing._repair_ledger(to_jsonb(d), dry);
            mended := true;
            action := CASE WHEN becomes IS NULL THEN 'gone' ELSE 'computed anew from the events' END;
        WHEN d.kind IN ('unsent', 'stripe') THEN
            was := CASE d.kind WHEN 'stripe' THEN d.stripe ELSE d.sent END;
            mended := billing._repair_hour(to_jsonb(d), dry);
            becomes := CASE WHEN mended THEN coalesce(CASE d.kind WHEN 'stripe' THEN d.sent ELSE d.ledger END, 0) END;
            action := CASE WHEN mended THEN 'sent anew'
                           ELSE 'Stripe takes usage for 35 days only, of subscriptions that have the metric, and overwrites only hourly totals: bill it by an invoice item' END;
        ELSE
            was := d.invoiced;
            becomes := NULL;
            SELECT r.mended, r.action INTO mended, action FROM billing._repair_invoice(to_jsonb(d), dry) r;
        END CASE;
        IF mended AND NOT dry THEN
            UPDATE billing.drift x SET repaired_at = billing.now(), repair = action
             WHERE x.tenant_id = d.tenant_id AND x.id = d.id;
            PERFORM billing._audit(d.tenant_id, 'repair', to_jsonb(d) - '{tenant_id,reconciliation_id,repaired_at,repair}'::text[],
                                   jsonb_build_object('action', action, 'becomes', becomes));
        END IF;
        RETURN NEXT;
    END LOOP;
    IF NOT dry THEN
        PERFORM billing._wake_worker('stripe');
    END IF;
END $$;
COMMENT ON FUNCTION billing.repair(text, boolean) IS
    'mends the drift that reconcile() found, of one tenant or of all: aggregates and quotas are computed anew from the events (usage waits meanwhile), hours that Stripe counts otherwise are sent anew, what is invoiced for good is stated with its price; unless dry_run is false it only tells what it would do. Audited; a second call finds nothing to do. Raises UB010, UB040, UB054';
