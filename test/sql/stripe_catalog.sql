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
    {"id": "mtr_4", "event_name": "llm_tokens", "display_name": "LLM tokens", "default_aggregation": {"formula": "sum"}, "event_time_window": "hour"}]}');
CALL settle('', 'meter_find', 'user_seats', 'delivered', '{"has_more": false, "data": [
    {"id": "mtr_5", "event_name": "user_seats", "display_name": "Seats", "default_aggregation": {"formula": "last"}, "event_time_window": "hour"}]}');
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
CALL settle('', 'product_find', 'pgb_plan_standard', 'delivered', '{"id": "pgb_plan_standard", "name": "Standard", "active": true}');
CALL deliver('meter_find', '%');
SELECT FROM billing._stripe_plan(), billing._stripe_claim(100, '1 minute') \g /dev/null
CALL deliver('meter_find', '%');
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL deliver('meter_create', '%');
SELECT billing._stripe_plan() > 0 AS more;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
SELECT method, path, params FROM billing.stripe_outbox WHERE kind = 'price_find' ORDER BY subject;
CALL settle('', 'price_find', 'pgb_standard_month', 'delivered', '{"data": [{"id": "price_found", "currency": "usd", "product": "pgb_plan_standard",
    "billing_scheme": "per_unit", "tiers_mode": null, "unit_amount_decimal": "9900", "transform_quantity": null,
    "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed", "meter": null, "trial_period_days": null}}]}');
CALL deliver('price_find', '%');
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
SELECT count(*) FROM requests WHERE kind = 'price_create';
SELECT method, path, jsonb_pretty(params) AS params FROM requests WHERE kind = 'price_create' AND subject = 'pgb_standard_llm_tokens_month';
-- all there are: 15 metered and 3 flat
SELECT p.lookup_key, p.product, p.unit_amount_decimal, p.billing_scheme, p.tiers_mode,
       (SELECT string_agg(concat_ws(': ', t ->> 'up_to', t ->> 'unit_amount_decimal'), ', ') FROM jsonb_array_elements(p.tiers) t) AS tiers
  FROM billing._stripe_prices() w,
       billing._stripe_price_params(w.plan, w.metric, w.terms) x,
       jsonb_to_record(x || jsonb_build_object('lookup_key', w.lookup_key)) p (lookup_key text, product text, unit_amount_decimal text, billing_scheme text, tiers_mode text, tiers jsonb)
 ORDER BY 1;
SELECT x ->> 'currency' AS currency, x -> 'recurring' AS recurring, count(*)
  FROM billing._stripe_prices() w,
       billing._stripe_price_params(w.plan, w.metric, w.terms) x
 GROUP BY 1, 2 ORDER BY 2;
-- one that is refused is for somebody to look at
CALL settle('', 'price_create', 'pgb_free_month', 'failed', '{"error": {"code": "parameter_invalid_integer", "message": "No such amount."}}', 400);
SELECT state, error FROM billing.stripe_outbox WHERE kind = 'price_create' AND subject = 'pgb_free_month';
DELETE FROM billing.stripe_outbox WHERE state = 'failed';
CALL deliver('price_create', '%');
CALL stripe();
SELECT name, stripe_product_id FROM billing.plans ORDER BY name;
SELECT name, stripe_product_id, stripe_meter_id FROM billing.metrics ORDER BY name;
SELECT plan, metric, stripe_price_id FROM billing.plan_prices ORDER BY 1, 2 NULLS FIRST;
-- settled: nothing is asked for again
SELECT billing._stripe_plan();
SELECT state, count(*) FROM billing.stripe_outbox GROUP BY 1;
SELECT name, stripe_name, stripe_meter_name, stripe_feature_id, stripe_feature_name FROM billing.metrics ORDER BY name;
SELECT plan, count(*), min(stripe_product_feature_id) FROM billing.plan_features GROUP BY 1 ORDER BY 1;
-- what is called otherwise here is called so there
UPDATE billing.metrics SET display_name = 'Tokens' WHERE name = 'llm_tokens';
UPDATE billing.plans SET display_name = 'Team' WHERE name = 'standard';
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests ORDER BY 1, 3;
CALL stripe();
SELECT billing._stripe_plan();
-- a metric that a plan has no more is detached from its product, and one that was gone is, too; one that it has anew is attached
DELETE FROM billing.price_tiers WHERE plan = 'free' AND metric IN ('api_calls', 'storage_gb');
DELETE FROM billing.plan_metrics WHERE plan = 'free' AND metric IN ('api_calls', 'storage_gb');
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests WHERE kind LIKE 'feature%' ORDER BY 3;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('', 'feature_detach', 'free api_calls', 'delivered', '{"id": "prodft_free api_calls", "deleted": true}');
CALL settle('', 'feature_detach', 'free storage_gb', 'failed', '{"error": {"code": "resource_missing", "message": "No such feature."}}', 404);
SELECT metric FROM billing.plan_features WHERE plan = 'free' ORDER BY 1;
CALL deliver('price_update', '%');
INSERT INTO billing.plan_metrics (plan, metric, allowance, cap) VALUES ('free', 'api_calls', 1000, 'soft');
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests;
-- though that was done already, by an attempt whose error Stripe remembered: then what is attached is read again
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('', 'feature_attach', 'free api_calls', 'failed', '{"error": {"code": "resource_already_exists", "message": "It is attached already."}}', 400);
SELECT billing._stripe_plan();
SELECT kind, method, path, params FROM requests;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('', 'features_find', 'free', 'delivered', '{"has_more": false, "data": [{"id": "prodft_5", "entitlement_feature": {"id": "feat_api_calls"}}]}');
SELECT stripe_product_feature_id FROM billing.plan_features WHERE (plan, metric) = ('free', 'api_calls');
SELECT billing._stripe_plan();
SELECT count(*) FROM billing.stripe_dead_letter;
-- what is there already is found: a feature, archived or under another name, and what is attached, by us or by others
UPDATE billing.metrics SET stripe_feature_id = NULL, stripe_feature_name = NULL WHERE name IN ('api_calls', 'storage_gb');
UPDATE billing.plans SET stripe_features_known = false WHERE name = 'free';
DELETE FROM billing.plan_features WHERE plan = 'free';
SELECT billing._stripe_plan();
SELECT kind, subject, method, path, params FROM requests ORDER BY subject;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('', 'feature_find', 'api_calls', 'delivered', '{"data": [{"id": "feat_1", "active": true, "name": "Calls"}]}');
CALL settle('', 'feature_find', 'storage_gb', 'delivered', '{"data": [{"id": "feat_2", "active": false, "name": "Storage"}]}');
SELECT billing._stripe_plan();
SELECT kind, subject, method, path, params FROM requests ORDER BY 1, 2;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL deliver('feature_update', '%');
CALL settle('', 'features_find', 'free', 'delivered', '{"has_more": true, "data": [{"id": "prodft_1", "entitlement_feature": {"id": "feat_llm_tokens"}},
    {"id": "prodft_2", "entitlement_feature": {"id": "feat_of_others"}}]}');
SELECT kind, params FROM requests;
SELECT FROM billing._stripe_claim(100, '1 minute') \g /dev/null
CALL settle('', 'features_find', 'free', 'delivered', '{"has_more": false, "data": [{"id": "prodft_3", "entitlement_feature": {"id": "feat_1"}},
    {"id": "prodft_4", "entitlement_feature": {"id": "feat_2"}}]}');
SELECT plan, metric, stripe_product_feature_id FROM billing.plan_features WHERE plan = 'free' ORDER BY 2;
SELECT billing._stripe_plan();
SELECT kind, subject, method, path, params FROM requests ORDER BY 1, 2;
CALL stripe();
-- a price for three months, and for a year
UPDATE billing.plans SET interval_months = 3 WHERE name = 'standard';
UPDATE billing.plans SET interval_months = 12 WHERE name = 'enterprise';
SELECT billing._stripe_plan();
SELECT w.lookup_key, x -> 'recurring' AS recurring
  FROM billing._stripe_prices() w, billing._stripe_price_params(w.plan, w.metric, w.terms) x
 WHERE w.stripe_price_id IS NULL AND w.metric IN ('api_calls') OR w.stripe_price_id IS NULL AND w.metric IS NULL ORDER BY 1;
