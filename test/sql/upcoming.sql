-- The upcoming invoice, what it will come to, overage, and what a line is made of.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT * FROM billing.get_upcoming_invoice('acme');
SELECT billing.get_projected_cost('acme'), billing.get_overage('acme', 'api_calls'), billing.get_overage_cost('acme', 'api_calls');
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
-- nothing used: the lines Stripe has, too
SELECT * FROM billing.get_upcoming_invoice('acme');

CALL travel('7 days');
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1000000, 'a', '2030-02-01 10:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 234567, 'b', '2030-02-01 10:30+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5000, 'c', '2030-02-01 09:30+00') \g /dev/null
SELECT FROM billing.void_usage('acme', 'c', 'a mistake') \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 300, 'd', '2030-02-02 00:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', 27, 'e', '2030-02-07 12:10+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', -20, 'f', '2030-02-07 12:20+00') \g /dev/null
-- of another period
SELECT FROM billing.record_usage('acme', 'llm_tokens', 9000, 'g', '2030-01-31 11:59+00') \g /dev/null
-- the average of a gauge changes with each second: it is shown without its decimals
CREATE VIEW lines AS
    SELECT metric, regexp_replace(description, '\.\d+', '') AS description, trunc(quantity) AS quantity, unit_amount,
           CASE metric WHEN 'storage_gb' THEN round(amount, -2) ELSE amount END AS amount
      FROM billing.get_upcoming_invoice('acme');
CREATE VIEW figures AS
    SELECT m.name AS metric, round(billing.get_billable_usage('acme', m.name)) AS used,
           CASE m.kind WHEN 'counter' THEN round(p.projected, -4) ELSE round(p.projected, 6) END AS projected,
           round(billing.get_projected_cost('acme', m.name), -2) AS projected_cost,
           round(billing.get_overage('acme', m.name)) AS overage, round(billing.get_overage_cost('acme', m.name), -1) AS overage_cost
      FROM billing.metrics m, billing.get_projected_usage('acme', m.name) p (projected);
TABLE lines;
-- a week of four has passed: sums and counts fourfold; 300 GB from now on; the peak of seats
SELECT * FROM figures ORDER BY metric;
SELECT round(billing.get_projected_cost('acme'), -2) AS cost,
       billing.get_projected_cost('acme') = 9900 + (SELECT sum(billing.get_projected_cost('acme', m.name)) FROM billing.metrics m) AS adds_up;
SELECT * FROM billing.explain_invoice_line('acme', 'llm_tokens');
SELECT * FROM billing.explain_invoice_line('acme', 'user_seats');
SELECT step, count(*), round(sum(quantity)) AS quantity, min(at), max(at) FROM billing.explain_invoice_line('acme', 'storage_gb') GROUP BY 1 ORDER BY 1;
-- all the same when it is rolled up
CREATE TABLE before AS TABLE lines;
CREATE TABLE figures_before AS TABLE figures;
CREATE VIEW explanations AS SELECT m.name AS metric, x.* FROM billing.metrics m, billing.explain_invoice_line('acme', m.name) x WHERE x.step <> 'line';
CREATE TABLE explained AS TABLE explanations;
SELECT billing.run_rollup();
SELECT count(*) AS differences
  FROM ((TABLE before EXCEPT TABLE lines) UNION ALL (TABLE lines EXCEPT TABLE before)) d;
SELECT count(*) AS differences FROM (TABLE figures_before EXCEPT TABLE figures) d;
SELECT count(*) AS differences
  FROM ((TABLE explained EXCEPT TABLE explanations) UNION ALL (TABLE explanations EXCEPT TABLE explained)) d;
-- an override moves the quota, not what is included; the period before had an allowance, too
SELECT FROM billing.set_quota('acme', 'llm_tokens', 10) \g /dev/null
SELECT billing.get_overage('acme', 'llm_tokens'), billing.get_overage('acme', 'llm_tokens', 'previous');
-- volume: what lies beyond the allowance may make the rest cheaper
BEGIN;
UPDATE billing.plan_metrics SET price_model = 'volume' WHERE plan = 'standard' AND metric = 'llm_tokens';
SELECT billing.update_subscription('acme', 'standard');
SELECT billing.get_overage_cost('acme', 'llm_tokens');
UPDATE billing.price_tiers SET unit_amount = 0.01 WHERE plan = 'standard' AND metric = 'llm_tokens' AND ordinal = 1;
SELECT billing.update_subscription('acme', 'standard');
SELECT billing.get_overage_cost('acme', 'llm_tokens');
ROLLBACK;
-- a stored invoice
INSERT INTO billing.subscription_items SELECT tenant_id, id, 'llm_tokens', 'si_1', 'price_1' FROM billing.subscriptions;
SELECT FROM billing._apply_invoice('acme', '{"id": "in_1", "status": "paid", "currency": "usd", "subtotal": 235, "total": 235,
    "amount_due": 235, "amount_paid": 235, "amount_remaining": 0, "created": 1898856000, "lines": {"has_more": false, "data": [
    {"id": "il_1", "description": "1000000 × LLM tokens (Tier 1)", "quantity_decimal": "1000000", "amount": 0, "currency": "usd",
     "period": {"start": 1896091200, "end": 1898510400}, "parent": {"subscription_item_details": {"subscription_item": "si_1"}}},
    {"id": "il_2", "description": "234567 × LLM tokens (Tier 2)", "quantity_decimal": "234567", "amount": 235, "currency": "usd",
     "period": {"start": 1896091200, "end": 1898510400}, "parent": {"subscription_item_details": {"subscription_item": "si_1"}}}]}}') \g /dev/null
SELECT * FROM billing.explain_invoice_line('acme', 'llm_tokens', 'in_1');
CALL attempt($$SELECT billing.explain_invoice_line('acme', 'api_calls', 'in_1')$$);
CALL attempt($$SELECT billing.explain_invoice_line('acme', 'llm_tokens', 'in_2')$$);
-- the fee of a subscription that ends, the usage of one on trial
UPDATE billing.subscriptions SET cancel_at_period_end = true;
SELECT count(*) FROM lines WHERE metric IS NULL;
UPDATE billing.subscriptions SET cancel_at_period_end = false, status = 'trialing', trial_end = current_period_end;
SELECT * FROM lines;
UPDATE billing.subscriptions SET status = 'active';
-- the period is over: another one, whose invoice holds another month's fee
CALL travel('21 days');
SELECT metric, description, amount, period_start, period_end FROM billing.get_upcoming_invoice('acme') WHERE metric IS NULL OR amount > 0;
SELECT metric, used, projected FROM figures ORDER BY 1;

CALL attempt($$SELECT billing.get_upcoming_invoice('nobody')$$);
CALL attempt($$SELECT billing.get_projected_cost('nobody')$$);
CALL attempt($$SELECT billing.get_projected_cost('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_projected_usage('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_overage('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.get_overage_cost('acme', 'api_calls', 'soon')$$);
CALL attempt($$SELECT billing.explain_invoice_line('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.explain_invoice_line('acme', 'nothing')$$);
