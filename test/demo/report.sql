-- What happened, was billed and is proven; fails if what should be the same number is not.
\set stripe `cat :'stripe_state'`
\pset footer off
\pset numericlocale on
\pset null ''

-- What Stripe's meters hold, by its own account.
CREATE TEMP TABLE stripe AS
SELECT c.tenant_id, meter.key AS metric, (customer.value ->> 'total')::numeric AS quantity
  FROM jsonb_each(:'stripe'::jsonb -> 'meters') meter,
       jsonb_each(meter.value -> 'customers') customer
  JOIN billing.billing_customers c ON c.stripe_customer_id = customer.key;

-- Each tenant's hour: what it asked for, what counted, and what its invoice for the period says.
CREATE TEMP TABLE tenants AS
SELECT t.tenant_id, s.plan, pm.allowance AS quota, r.requests, r.denied, r.tokens, r.denied_tokens,
       coalesce(st.quantity, 0) AS stripe_tokens, i.stripe_invoice_id, round(i.total / 100, 2) AS invoice_total
  FROM billing.billing_customers t
  JOIN billing.subscriptions s USING (tenant_id)
  JOIN billing.plan_metrics pm ON pm.plan = s.plan AND pm.metric = 'llm_tokens'
  LEFT JOIN (SELECT tenant_id, count(*) FILTER (WHERE allowed) AS requests, count(*) FILTER (WHERE NOT allowed) AS denied,
                    coalesce(sum(tokens) FILTER (WHERE allowed), 0) AS tokens,
                    coalesce(sum(tokens) FILTER (WHERE NOT allowed), 0) AS denied_tokens
               FROM demo.requests GROUP BY 1) r USING (tenant_id)
  LEFT JOIN stripe st ON st.tenant_id = t.tenant_id AND st.metric = 'llm_tokens'
  LEFT JOIN billing.invoices i ON i.tenant_id = t.tenant_id AND i.billing_reason = 'subscription_cycle';

\echo 'By plan'
SELECT plan, count(*) AS tenants, quota AS "quota of each", sum(requests) AS requests, sum(denied) AS denied,
       sum(tokens) AS "LLM tokens", sum(stripe_tokens) AS "tokens at Stripe", sum(invoice_total) AS "invoiced, $"
  FROM tenants GROUP BY plan, quota ORDER BY sum(invoice_total) DESC;

\echo 'The five largest tenants'
SELECT tenant_id AS tenant, plan, requests, denied, tokens AS "LLM tokens", quota, stripe_tokens AS "tokens at Stripe",
       invoice_total AS "invoice, $"
  FROM tenants ORDER BY requests + denied DESC, tenant_id LIMIT 5;

\echo 'Their invoices: usage of the period that ended, and the next one''s flat fee'
SELECT l.tenant_id AS tenant, l.description AS line, l.quantity, round(l.amount / 100, 2) AS "amount, $"
  FROM (SELECT * FROM tenants ORDER BY requests + denied DESC, tenant_id LIMIT 5) t
  JOIN billing.invoice_lines l USING (tenant_id, stripe_invoice_id)
 WHERE l.amount > 0 OR l.quantity > 0
 ORDER BY t.requests + t.denied DESC, tenant_id, l.metric NULLS LAST, l.amount;

-- The replay's own log against every stage usage goes through.
CREATE TEMP TABLE proof AS
SELECT m.metric, m.in_trace AS "in the trace", m.asked, m.denied, m.asked - m.denied AS recorded,
       (SELECT coalesce(sum(quantity), 0) FROM billing.usage_events u WHERE u.metric = m.metric) AS events,
       (SELECT coalesce(sum(quantity), 0) FROM billing.usage_aggregates a WHERE a.metric = m.metric) AS aggregates,
       (SELECT coalesce(sum(quantity), 0) FROM stripe s WHERE s.metric = m.metric) AS "at Stripe",
       (SELECT coalesce(sum(quantity), 0) FROM billing.invoice_lines l WHERE l.metric = m.metric) AS invoiced
  FROM (SELECT 'api_calls' AS metric, :trace_requests::numeric AS in_trace, count(*)::numeric AS asked,
               (count(*) FILTER (WHERE NOT allowed))::numeric AS denied
          FROM demo.requests
        UNION ALL
        SELECT 'llm_tokens', :trace_tokens, sum(tokens), coalesce(sum(tokens) FILTER (WHERE NOT allowed), 0) FROM demo.requests) m;

CREATE TEMP TABLE counts AS
SELECT (SELECT count(*) FROM demo.requests) AS requests,
       (SELECT count(*) FROM demo.requests WHERE allowed) AS allowed,
       (SELECT count(DISTINCT split_part(idempotency_key, '/', 1)) FROM billing.usage_events) AS "requests recorded",
       (SELECT count(*) FROM billing.usage_events) AS events,
       (SELECT count(*) FROM billing.usage_event_keys) AS "distinct keys",
       (SELECT sum(events) FROM billing.usage_aggregates) AS "events aggregated";

\echo 'The proof: in the trace = asked; asked - denied = recorded = events = aggregates = at Stripe = invoiced, although each event was sent twice'
TABLE proof;
TABLE counts;

DO $$
DECLARE
    wrong text;
BEGIN
    SELECT string_agg(p.metric, ', ') INTO wrong FROM proof p
     WHERE (p."in the trace" = p.asked AND p.recorded = p.events AND p.events = p.aggregates AND p.aggregates = p."at Stripe"
            AND p."at Stripe" = p.invoiced) IS NOT TRUE;
    IF wrong IS NULL AND EXISTS (SELECT FROM counts c
            WHERE (c.allowed = c."requests recorded" AND c.events = 2 * c.allowed AND c.events = c."distinct keys"
                   AND c.events = c."events aggregated") IS NOT TRUE) THEN
        wrong := 'number of events';
    END IF;
    IF wrong IS NULL AND EXISTS (
            SELECT FROM (SELECT 1 AS n, u.tenant_id, u.metric, u.description, u.quantity, u.amount, u.period_start, u.period_end
                           FROM demo.upcoming u
                         UNION ALL
                         SELECT -1, l.tenant_id, l.metric, l.description, l.quantity, l.amount, l.period_start, l.period_end
                           FROM billing.invoice_lines l JOIN tenants t USING (tenant_id, stripe_invoice_id)) x
             GROUP BY x.tenant_id, x.metric, x.description, x.quantity, x.amount, x.period_start, x.period_end HAVING sum(x.n) <> 0) THEN
        wrong := 'the invoices told before the period ended, and those Stripe wrote';
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'NOT PROVEN: these differ: %', wrong;
    END IF;
END $$;
\echo 'Proven: every figure agrees.'
\echo
