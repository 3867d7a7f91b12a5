-- Products, meters and prices at Stripe: looked for first, created where missing, never twice.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
CREATE VIEW requests AS
    SELECT kind, subject, method, path, params FROM billing.stripe_outbox WHERE state IN ('waiting', 'sending');

-- first the products, by ids of our own, and a look for meters
SELECT billing._stripe_plan();
SELECT * FROM requests ORDER BY kind, subject;
SELECT count(DISTINCT idempotency_key), bool_and(idempotency_key ~ ('^pgb-[0-9a-f]{12}-' || id || '$')) AS by_id
  FROM billing.stripe_outbox;
SELECT billing._stripe_plan();
SELECT tenant_id, attempt, method, path, count(*) FROM billing._stripe_claim(100, '1 minute') GROUP BY 1, 2, 3, 4 ORDER BY path;
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');

-- created; there already; not to be had
CALL settle('', 'product_create', 'pgb_plan_free', 'delivered', '{"id": "pgb_plan_free"}');
CALL settle('', 'product_create', 'pgb_plan_standard', 'failed', '{"error": {"code": "resource_already_exists", "message": "Product already exists."}}', 400);
CALL settle('', 'product_create', 'pgb_plan_enterprise', 'failed', '{"error": {"code": "parameter_unknown", "message": "No such thing."}}', 400);
SELECT name, stripe_product_id FROM billing.plans ORDER BY name;
SELECT subject, state, http_status, error, settled_at IS NOT NULL AS settled
  FROM billing.stripe_outbox WHERE kind = 'product_create' AND subject LIKE 'pgb_plan%' ORDER BY 1;
-- what failed waits for somebody who looks at it; its row out of the way, it is tried again
SELECT billing._stripe_plan();
SELECT kind, subject FROM requests WHERE kind NOT LIKE 'product_create' OR subject LIKE 'pgb_plan%' ORDER BY 1, 2;
DELETE FROM billing.stripe_outbox WHERE state = 'failed';
SELECT billing._stripe_plan();
SELECT kind, subject FROM requests WHERE subject = 'pgb_plan_enterprise';

-- a meter is ours if its name and its rules are; on a later page, too
CALL settle('', 'meter_find', 'llm_tokens', 'delivered', '{"has_more": true, "data": [
    {"id": "mtr_1", "event_name": "llm_tokens", "default_aggregation": {"formula": "count"}, "event_time_window": "hour"},
    {"id": "mtr_2", "event_name": "llm_tokens", "default_aggregation": {"formula": "sum"}, "event_time_window": null}]}');
SELECT method, path, params FROM requests WHERE kind = 'meter_find' AND subject = 'llm_tokens';
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL settle('', 'meter_find', 'llm_tokens', 'delivered', '{"has_more": false, "data": [
    {"id": "mtr_3", "event_name": "api_calls", "default_aggregation": {"formula": "sum"}, "event_time_window": "hour"},
    {"id": "mtr_4", "event_name": "llm_tokens", "default_aggregation": {"formula": "sum"}, "event_time_window": "hour"}]}');
CALL settle('', 'meter_find', 'user_seats', 'delivered', '{"has_more": false, "data": [
    {"id": "mtr_5", "event_name": "user_seats", "default_aggregation": {"formula": "last"}, "event_time_window": "hour"}]}');
CALL settle('', 'meter_find', 'api_calls', 'delivered', '{"has_more": false, "data": []}');
CALL settle('', 'meter_find', 'storage_gb', 'delivered', '{"has_more": false, "data": []}');
SELECT name, stripe_meter_id FROM billing.metrics ORDER BY name;
SELECT method, path, params FROM requests WHERE kind = 'meter_create' ORDER BY subject;
SELECT count(*) FROM billing._stripe_claim(100, '1 minute');
CALL settle('', 'meter_create', 'api_calls', 'delivered', '{"id": "mtr_6"}');
CALL settle('', 'meter_create', 'storage_gb', 'failed', '{"error": {"message": "There is an active meter of that name."}}', 400);
SELECT billing._stripe_plan() > 0 AS more;
SELECT kind, subject FROM requests WHERE subject IN ('storage_gb', 'api_calls', 'pgb_storage_gb_free_month');
DELETE FROM billing.stripe_outbox WHERE state = 'failed';

-- the prices: looked for by lookup key; one is there
CREATE PROCEDURE deliver(kind text, subject text) LANGUAGE sql AS $$
    SELECT billing._stripe_settle('', o.id, o.attempts, 'delivered', 200, answer('', o.kind, o.subject, o.params), NULL, NULL)
      FROM billing.stripe_outbox o WHERE o.kind = deliver.kind AND o.subject LIKE deliver.subject AND o.state = 'sending'
$$;
CALL deliver('product_create', '%');
CALL deliver('meter_find', '%');
SELECT FROM billing._stripe_plan(), billing._stripe_claim(100, '1 minute') \g /dev/null
CALL deliver('meter_find', '%');
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL deliver('meter_create', '%');
SELECT billing._stripe_plan() > 0 AS more;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
SELECT method, path, params FROM billing.stripe_outbox WHERE kind = 'price_find' ORDER BY subject;
CALL settle('', 'price_find', 'pgb_standard_month', 'delivered', '{"data": [{"id": "price_found"}]}');
CALL deliver('price_find', '%');
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
SELECT count(*) FROM requests WHERE kind = 'price_create';
SELECT method, path, jsonb_pretty(params) AS params FROM requests WHERE kind = 'price_create' AND subject = 'pgb_standard_llm_tokens_month';
-- all there are: 15 metered and 3 flat
SELECT p.lookup_key, p.product, p.unit_amount_decimal, p.billing_scheme, p.tiers_mode,
       (SELECT string_agg(concat_ws(': ', t ->> 'up_to', t ->> 'unit_amount_decimal'), ', ') FROM jsonb_array_elements(p.tiers) t) AS tiers
  FROM (SELECT name AS plan, '' AS metric FROM billing.plans UNION ALL SELECT plan, metric FROM billing.plan_metrics) w,
       billing._stripe_price_params(w.plan, w.metric) x,
       jsonb_to_record(x) p (lookup_key text, product text, unit_amount_decimal text, billing_scheme text, tiers_mode text, tiers jsonb)
 ORDER BY 1;
SELECT x ->> 'currency' AS currency, x -> 'recurring' AS recurring, count(*)
  FROM (SELECT name AS plan, '' AS metric FROM billing.plans UNION ALL SELECT plan, metric FROM billing.plan_metrics) w,
       billing._stripe_price_params(w.plan, w.metric) x
 GROUP BY 1, 2 ORDER BY 2;
-- a price of that key which is not active is none of ours: that is for somebody to look at
CALL settle('', 'price_create', 'pgb_free_month', 'failed', '{"error": {"code": "resource_already_exists", "message": "A price already uses that lookup key."}}', 400);
SELECT state, error FROM billing.stripe_outbox WHERE kind = 'price_create' AND subject = 'pgb_free_month';
DELETE FROM billing.stripe_outbox WHERE state = 'failed';
CALL deliver('price_create', '%');
CALL stripe();
SELECT name, stripe_product_id, stripe_price_id FROM billing.plans ORDER BY name;
SELECT name, stripe_product_id, stripe_meter_id FROM billing.metrics ORDER BY name;
SELECT plan, metric, stripe_price_id FROM billing.plan_metrics ORDER BY 1, 2;
-- settled: nothing is asked for again
SELECT billing._stripe_plan();
SELECT state, count(*) FROM billing.stripe_outbox GROUP BY 1;
-- a price for three months, and for a year
UPDATE billing.plans SET interval_months = 3 WHERE name = 'standard';
UPDATE billing.plans SET interval_months = 12 WHERE name = 'enterprise';
SELECT x ->> 'lookup_key' AS lookup_key, x -> 'recurring' AS recurring
  FROM (VALUES ('standard', ''), ('standard', 'api_calls'), ('enterprise', '')) w (plan, metric), billing._stripe_price_params(w.plan, w.metric) x;
