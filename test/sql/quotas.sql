-- Quotas: what is allowed on each plan and by each kind of cap, overrides, and who is refused whatever he asks for.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
CREATE VIEW plans AS SELECT unnest(ARRAY['free', 'standard', 'enterprise']) AS plan;
SELECT FROM plans, billing.create_customer(plan, plan, 'a@b.example', stripe => false) \g /dev/null
SELECT FROM plans, billing.create_subscription(plan, plan) \g /dev/null

-- every metric of every plan: at the quota, one above, far above
SELECT plan, m.name AS metric, d.cap, d.quota, amount, d.status, d.reason, d.remaining, d.resets_at
  FROM plans, billing.metrics m,
       LATERAL (SELECT allowance FROM billing.plan_metrics pm WHERE pm.plan = plans.plan AND pm.metric = m.name) a,
       LATERAL unnest(ARRAY[coalesce(allowance, 1000000), allowance + 1, allowance * 1.2, allowance * 1.2 + 1]) amount,
       billing.check_quota(plan, m.name, amount) d
 WHERE amount = round(amount, m.scale)
 ORDER BY plan, metric, amount;
-- a check has no effect
SELECT plan, metric, used FROM plans, billing.get_usage_summary(plan) WHERE used <> 0;

-- a hard cap: up to the quota, not by one more; freed again by a gauge that shrinks, once that is committed
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'user_seats', 3);
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'user_seats');
SELECT status, reason, used, remaining FROM billing.check_quota('free', 'user_seats', 0);
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'user_seats', -1);
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'user_seats');
CALL attempt($$SELECT billing.consume('free', 'user_seats')$$);
-- work that has happened is recorded all the same, and says so
SELECT status, allowed, reason, used, quota, remaining FROM billing.record_usage('free', 'user_seats', 2);
SELECT status, reason, used FROM billing.try_consume('free', 'user_seats', -3);
-- a level has decimals
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'storage_gb', 0.999999999);
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'storage_gb', 0.000000002);
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'storage_gb', 0.000000001);

-- a soft cap: warned of from the quota on, refused past the grace
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'agent_executions', 100);
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'agent_executions', 20);
SELECT status, reason, used, remaining FROM billing.try_consume('free', 'agent_executions');
CALL attempt($$SELECT billing.consume('free', 'agent_executions', 5)$$);
SELECT count(*), sum(quantity) FROM billing.usage_events WHERE metric = 'agent_executions';
-- no cap: overage; no limit at all
SELECT status, reason, used, remaining FROM billing.try_consume('standard', 'agent_executions', 5001);
SELECT status, reason, used, quota, remaining FROM billing.try_consume('enterprise', 'user_seats', 100000);

-- overrides: hard unless told otherwise, in force at once, ended again
SELECT billing.set_quota('free', 'agent_executions', 121);
SELECT status, reason, used, quota, cap FROM billing.try_consume('free', 'agent_executions');
SELECT status, reason, used, quota, cap FROM billing.try_consume('free', 'agent_executions');
SELECT billing.set_quota('free', 'agent_executions', 10, 'soft', 20);
SELECT status, reason, used, quota, cap FROM billing.check_quota('free', 'agent_executions', 79);
SELECT status, reason, used, quota, cap FROM billing.check_quota('free', 'agent_executions', 80);
SELECT billing.set_quota('free', 'agent_executions', NULL);
SELECT status, reason, used, quota, cap FROM billing.check_quota('free', 'agent_executions', 1000000);
SELECT billing.set_quota('free', 'agent_executions', 0, 'hard');
SELECT status, reason, used, quota, cap FROM billing.check_quota('free', 'agent_executions', 1);
SELECT status, reason, used, quota, cap FROM billing.check_quota('free', 'agent_executions', 0);
SELECT quota, cap, grace FROM billing.usage_quotas WHERE tenant_id = 'free' AND metric = 'agent_executions';
SELECT billing.clear_quota('free', 'agent_executions');
SELECT status, reason, used, quota, cap FROM billing.check_quota('free', 'agent_executions');
SELECT quota, cap, grace FROM billing.usage_quotas WHERE tenant_id = 'free' AND metric = 'agent_executions';
-- as every change, seen by its own transaction and gone with it
BEGIN;
SELECT billing.set_quota('free', 'agent_executions', 1000);
SELECT status, reason, used, quota, cap FROM billing.try_consume('free', 'agent_executions', 100);
ROLLBACK;
SELECT status, reason, used, quota, cap FROM billing.try_consume('free', 'agent_executions', 100);
-- a plan is data: its change is in force for all who are on it
UPDATE billing.plan_metrics SET allowance = 500 WHERE plan = 'free' AND metric = 'agent_executions';
SELECT status, reason, used, quota, cap FROM billing.check_quota('free', 'agent_executions', 100);

CALL attempt($$SELECT billing.set_quota('nobody', 'api_calls', 1)$$);
CALL attempt($$SELECT billing.set_quota('free', 'nothing', 1)$$);
CALL attempt($$SELECT billing.set_quota('free', NULL, 1)$$);
CALL attempt($$SELECT billing.set_quota('free', 'api_calls', -1)$$);
CALL attempt($$SELECT billing.set_quota('free', 'api_calls', 'NaN')$$);
CALL attempt($$SELECT billing.set_quota('free', 'api_calls', 'Infinity')$$);
CALL attempt($$SELECT billing.set_quota('free', 'api_calls', 1, 'firm')$$);
CALL attempt($$SELECT billing.set_quota('free', 'api_calls', 1, 'soft', 0.5)$$);
CALL attempt($$SELECT billing.set_quota('free', 'api_calls', 1, 'soft', 'NaN')$$);
CALL attempt($$SELECT billing.clear_quota('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.clear_quota('free', 'nothing')$$);
SELECT count(*) FROM billing.quota_overrides;

-- without a subscription nothing is allowed, but what happened is recorded, into the calendar month
SELECT FROM billing.create_customer('bare', 'Bare', 'b@b.example', 'Asia/Tokyo', stripe => false) \g /dev/null
SELECT * FROM billing.check_quota('bare', 'api_calls');
SELECT * FROM billing.try_consume('bare', 'api_calls');
CALL attempt($$SELECT billing.consume('bare', 'api_calls')$$);
SELECT * FROM billing.record_usage('bare', 'api_calls', 7);
-- an override alone is enough
SELECT billing.set_quota('bare', 'api_calls', 8);
SELECT * FROM billing.try_consume('bare', 'api_calls');
SELECT * FROM billing.try_consume('bare', 'api_calls');
-- which ended, none is in force any more, neither here nor for the alerts
SELECT quota, cap FROM billing.usage_quotas WHERE tenant_id = 'bare' AND metric = 'api_calls';
SELECT billing.clear_quota('bare', 'api_calls');
SELECT quota, cap FROM billing.usage_quotas WHERE tenant_id = 'bare' AND metric = 'api_calls';
SELECT status, reason FROM billing.check_quota('bare', 'api_calls');
-- a subscription that has a problem
SELECT FROM billing.create_customer('late', 'Late', 'l@l.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('late', 'standard') \g /dev/null
CREATE FUNCTION check_when(status text, past_due_for interval DEFAULT NULL) RETURNS billing.decision
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE billing.subscriptions s
       SET status = check_when.status, past_due_since = billing.now() - past_due_for WHERE tenant_id = 'late';
    RETURN billing.check_quota('late', 'api_calls');
END $$;
SELECT subscription, d.status, d.reason, d.quota, d.cap
  FROM unnest(ARRAY['pending', 'trialing', 'active', 'incomplete', 'unpaid', 'paused', 'canceled']) subscription,
       check_when(subscription) d;
UPDATE billing.subscriptions SET status = 'active' WHERE tenant_id = 'late';
SELECT past_due_for, d.status, d.reason
  FROM unnest(ARRAY['0', '6 days 23 hours', '7 days']::interval[]) past_due_for, check_when('past_due', past_due_for) d;
-- a metric its plan does not have
UPDATE billing.subscriptions SET status = 'active' WHERE tenant_id = 'late';
INSERT INTO billing.metrics (name, display_name, kind, unit, scale, stripe_event_name)
VALUES ('gpu_hours', 'GPU hours', 'counter', 'hours', 2, 'gpu_hours');
SELECT * FROM billing.try_consume('late', 'gpu_hours', 0.25);
SELECT * FROM billing.record_usage('late', 'gpu_hours', 0.25);
