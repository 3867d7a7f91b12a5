-- Rating: the examples of docs/pricing.md to the minor unit, and the edges. The price Stripe gets is the one rated here.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
CREATE FUNCTION rate(plan text, metric text, used numeric) RETURNS TABLE (charges text, total numeric)
LANGUAGE sql AS $$
    SELECT string_agg(concat('tier ' || tier || ': ', CASE WHEN flat THEN 'flat ' ELSE quantity || ' × ' END, unit_amount,
                             ' = ', amount), ', ' ORDER BY n), sum(amount)
      FROM billing._plan_terms(plan) p, billing._rate(p.terms, used) WITH ORDINALITY r (tier, flat, quantity, unit_amount, amount, n)
     WHERE p.metric = rate.metric
$$;

-- docs/pricing.md, graduated: an allowance, then a price
SELECT used, r.* FROM unnest(ARRAY[0, 1000000, 1000001, 1000500, 1234567]) used, rate('standard', 'llm_tokens', used) r;
-- no tiers: each unit has one price
INSERT INTO billing.plans (name, display_name, price) VALUES ('fonts', 'Fonts', 0);
INSERT INTO billing.plan_metrics (plan, metric, cap) SELECT 'fonts', m.name, 'none' FROM billing.metrics m;
INSERT INTO billing.price_tiers VALUES ('fonts', 'llm_tokens', 1, NULL, 0.001);
SELECT used, r.* FROM unnest(ARRAY[0, 499, 500, 534567]) used, rate('fonts', 'llm_tokens', used) r;
-- graduated and volume: the tables of docs.stripe.com/subscriptions/pricing-models/tiered-pricing
INSERT INTO billing.price_tiers
SELECT 'fonts', m, n, up_to, amount FROM unnest(ARRAY['api_calls', 'agent_executions']) m,
       (VALUES (1, 5, 700), (2, 10, 650), (3, NULL, 600)) t (n, up_to, amount);
UPDATE billing.plan_metrics SET price_model = 'volume' WHERE plan = 'fonts' AND metric = 'agent_executions';
SELECT used, r.* FROM unnest(ARRAY[0, 1, 5, 6, 10, 11, 20, 25]) used, rate('fonts', 'api_calls', used) r;
SELECT used, r.* FROM unnest(ARRAY[0, 1, 5, 6, 10, 11, 20, 25]) used, rate('fonts', 'agent_executions', used) r;
-- with a flat amount for each tier that is reached
UPDATE billing.price_tiers SET flat_amount = 1000 * ordinal WHERE plan = 'fonts' AND metric <> 'llm_tokens' AND ordinal < 3;
SELECT used, r.* FROM unnest(ARRAY[0, 5, 6, 20]) used, rate('fonts', 'api_calls', used) r;
SELECT used, r.* FROM unnest(ARRAY[0, 5, 6, 20]) used, rate('fonts', 'agent_executions', used) r;
-- packages: $10 for each 60 minutes, a part of them counting as a whole, or not at all
INSERT INTO billing.price_tiers VALUES ('fonts', 'storage_gb', 1, NULL, 1000);
UPDATE billing.plan_metrics SET price_model = 'package', package_size = 60, package_round = 'up' WHERE plan = 'fonts' AND metric = 'storage_gb';
SELECT used, r.* FROM unnest(ARRAY[0, 0.000000001, 59, 60, 60.5, 150]) used, rate('fonts', 'storage_gb', used) r;
UPDATE billing.plan_metrics SET package_round = 'down' WHERE plan = 'fonts' AND metric = 'storage_gb';
SELECT used, r.* FROM unnest(ARRAY[0, 59.999999999, 60, 150]) used, rate('fonts', 'storage_gb', used) r;
-- a single tier with a flat amount is a tier
INSERT INTO billing.price_tiers VALUES ('fonts', 'user_seats', 1, NULL, 0, 250.5);
SELECT used, r.* FROM unnest(ARRAY[0, 3]) used, rate('fonts', 'user_seats', used) r;
-- fractions: halves up, each line on its own
SELECT used, r.* FROM unnest(ARRAY[99.999999999, 100, 100.009, 100.01, 100.029, 100.03, 100.5]) used, rate('standard', 'storage_gb', used) r;
-- many decimals, and large numbers
INSERT INTO billing.plans (name, display_name, price, currency) VALUES ('yen', 'Yen', 980, 'jpy');
INSERT INTO billing.plan_metrics (plan, metric, cap) VALUES ('yen', 'llm_tokens', 'none'), ('yen', 'api_calls', 'none');
INSERT INTO billing.price_tiers VALUES ('yen', 'llm_tokens', 1, NULL, 0.000000000001),
    ('yen', 'api_calls', 1, 100, 0.5), ('yen', 'api_calls', 2, NULL, 0.25);
SELECT used, r.* FROM unnest(ARRAY[499999999999, 500000000000, 999999999999999, 123456789012345678901234]) used, rate('yen', 'llm_tokens', used) r;
-- a currency without decimals: the minor unit is the yen itself
SELECT used, r.* FROM unnest(ARRAY[1, 3, 100, 101, 102, 110]) used, rate('yen', 'api_calls', used) r;
-- the same as Stripe is told
SELECT w.metric, x - '{currency,product,nickname,recurring}'::text[] AS price
  FROM billing._plan_terms('fonts') w, billing._stripe_price_params('fonts', w.metric, w.terms) x ORDER BY 1;

-- no price, no charge
SELECT * FROM rate('yen', 'user_seats', 5);
-- a price that makes no sense is not published, nor is the plan
CREATE PROCEDURE refused(change text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'UPDATE billing.price_tiers SET ' || change;
    CALL attempt($a$SELECT billing._publish_plan('fonts')$a$);
    ROLLBACK;
END $$;
CALL refused($$up_to = 1000 WHERE plan = 'fonts' AND metric = 'llm_tokens'$$);
CALL refused($$up_to = NULL WHERE plan = 'fonts' AND metric = 'api_calls' AND ordinal = 2$$);
CALL refused($$up_to = 4 WHERE plan = 'fonts' AND metric = 'api_calls' AND ordinal = 2$$);
CALL refused($$flat_amount = 1 WHERE plan = 'fonts' AND metric = 'storage_gb'$$);
SELECT count(*) FROM billing.plan_versions;
SELECT billing._publish_plan('fonts');
CALL attempt($$UPDATE billing.price_tiers SET up_to = 0.5$$);
CALL attempt($$UPDATE billing.price_tiers SET unit_amount = 'NaN'$$);
CALL attempt($$UPDATE billing.price_tiers SET unit_amount = 0.0000000000001$$);
CALL attempt($$UPDATE billing.price_tiers SET flat_amount = 'Infinity'$$);
CALL attempt($$UPDATE billing.plan_metrics SET package_size = NULL WHERE price_model = 'package'$$);
CALL attempt($$UPDATE billing.plan_metrics SET package_round = 'up'$$);
CALL attempt($$UPDATE billing.plan_metrics SET price_model = 'tiered'$$);
