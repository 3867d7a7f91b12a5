-- Versions of a plan: a change of price touches no subscriber unless asked, a change of limits all at once.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest('{old,new,later}'::text[]) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
CREATE VIEW versions AS
    SELECT plan, version, published_at = billing.now() AS now FROM billing.plan_versions ORDER BY 1, 2;
CREATE VIEW prices AS
    SELECT coalesce(metric, 'fee') AS price, since, until, terms FROM billing.plan_prices WHERE plan = 'standard' ORDER BY metric NULLS FIRST, since;
CREATE VIEW bills AS
    SELECT s.tenant_id, s.plan, s.plan_version, i.metric, i.tier, i.quantity, i.unit_amount, i.amount
      FROM billing.subscriptions s, billing.get_upcoming_invoice(s.tenant_id) i
     WHERE i.metric = 'llm_tokens' AND i.tier = 2 OR i.metric IS NULL ORDER BY 1, 4;
-- What a plan costs is written down once somebody depends on it.
TABLE versions;
SELECT FROM billing.create_subscription('old', 'standard') \g /dev/null
TABLE versions;
TABLE prices;
SELECT FROM unnest('{old,new}'::text[]) t, billing.record_usage(t, 'llm_tokens', 3000000) \g /dev/null

-- a change back and forth that nobody saw is none
UPDATE billing.plans SET price = 12000 WHERE name = 'standard';
UPDATE billing.plans SET price = 9900.00 WHERE name = 'standard';
SELECT billing._publish_plan('standard');
-- a dearer fee, another allowance; the rest is shared by both versions
UPDATE billing.plans SET price = 12000 WHERE name = 'standard';
UPDATE billing.price_tiers SET up_to = 2000000 WHERE plan = 'standard' AND metric = 'llm_tokens' AND ordinal = 1;
UPDATE billing.price_tiers SET unit_amount = 0.002 WHERE plan = 'standard' AND metric = 'llm_tokens' AND ordinal = 2;
TABLE bills;
SELECT FROM billing.create_subscription('new', 'standard') \g /dev/null
TABLE versions;
SELECT price, since, until FROM prices;
SELECT terms FROM prices WHERE since = 2;
TABLE bills;
SELECT tenant_id, billing.get_overage(tenant_id, 'llm_tokens') AS overage, billing.get_overage_cost(tenant_id, 'llm_tokens') AS costs,
       billing.get_projected_cost(tenant_id) > 0 AS projected, sum(e.amount) AS explained
  FROM billing.subscriptions, billing.explain_invoice_line(tenant_id, 'llm_tokens') e GROUP BY 1 ORDER BY 1;

-- limits are those of the plan as it is
UPDATE billing.plan_metrics SET allowance = 2000000, cap = 'soft', grace = 1.5 WHERE plan = 'standard' AND metric = 'llm_tokens';
SELECT tenant_id, d.reason, d.quota, d.cap FROM billing.subscriptions, billing.check_quota(tenant_id, 'llm_tokens', 1) d ORDER BY 1;
SELECT billing._publish_plan('standard');

-- a metric that is no longer billed; one that is again
DELETE FROM billing.price_tiers WHERE plan = 'standard' AND metric = 'user_seats';
SELECT billing._publish_plan('standard');
INSERT INTO billing.price_tiers VALUES ('standard', 'user_seats', 1, NULL, 100);
SELECT FROM billing.create_subscription('later', 'standard') \g /dev/null
SELECT price, since, until FROM prices WHERE price = 'user_seats';
SELECT count(*) FROM billing._prices_of('', 'standard', 2) UNION ALL SELECT count(*) FROM billing._prices_of('', 'standard', 3);

-- moved to the newest prices when asked: one, then all
SELECT billing.update_subscription('old', 'standard', 'none');
SELECT billing.update_subscription('old', 'standard', 'none');
SELECT tenant_id, plan_version FROM billing.subscriptions ORDER BY 1;
SELECT action, before -> 'plan_version' AS before, after -> 'plan_version' AS after FROM billing.audit_log WHERE action = 'update_subscription';
UPDATE billing.plans SET price = 13000 WHERE name = 'standard';
SELECT billing.upgrade_subscribers('standard'), billing.upgrade_subscribers('standard'), billing.upgrade_subscribers('free');
TABLE bills;
-- another plan is taken at its newest prices
UPDATE billing.plans SET price = 50000 WHERE name = 'enterprise';
SELECT billing.update_subscription('old', 'enterprise');
SELECT amount FROM bills WHERE tenant_id = 'old' AND metric IS NULL;

-- a price that makes no sense touches nobody, and nobody gets it
UPDATE billing.price_tiers SET up_to = NULL WHERE plan = 'standard' AND metric = 'api_calls';
CALL attempt($$SELECT billing.upgrade_subscribers('standard')$$);
CALL attempt($$SELECT billing.update_subscription('old', 'standard')$$);
SELECT count(*) FROM bills;
CALL attempt($$SELECT billing.upgrade_subscribers('gold')$$);
UPDATE billing.price_tiers SET up_to = 1 WHERE plan = 'standard' AND metric = 'api_calls' AND ordinal = 1;
UPDATE billing.plans SET price = 14000 WHERE name = 'standard';
CALL attempt($$SELECT billing.upgrade_subscribers('standard', 'sometimes')$$);
-- of another currency or interval: only for new subscribers
UPDATE billing.plans SET currency = 'eur' WHERE name = 'standard';
CALL attempt($$SELECT billing.update_subscription('new', 'standard')$$);
SELECT DISTINCT currency FROM billing.get_upcoming_invoice('new');
