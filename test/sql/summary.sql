-- get_current_usage, get_usage_summary, is_over_quota, get_usage_percentage: exact before and after the rollup.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('other', 'Other', 'o@o.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('other', 'enterprise') \g /dev/null
SELECT FROM billing.create_customer('bare', 'Bare', 'b@b.example', 'Europe/Berlin', stripe => false) \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 2500) \g /dev/null
SELECT FROM billing.record_usage('acme', 'llm_tokens', 999, NULL, '2030-01-31 11:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'api_calls', 1001) \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 0.5, NULL, '2030-01-10 00:00+00') \g /dev/null
SELECT FROM billing.record_usage('acme', 'user_seats', 3) \g /dev/null
SELECT FROM billing.record_usage('other', 'user_seats', 50) \g /dev/null
SELECT FROM billing.record_usage('bare', 'api_calls', 5) \g /dev/null

SELECT * FROM billing.get_usage_summary('acme');
SELECT * FROM billing.get_usage_summary('other') WHERE used > 0;
SELECT * FROM billing.get_usage_summary('bare');
CREATE VIEW figures AS
    SELECT t AS tenant, m.name AS metric, billing.get_current_usage(t, m.name) AS used,
           billing.get_current_usage(t, m.name, 'previous') AS previous,
           billing.get_current_usage(t, m.name, '2030-01-15') AS in_january,
           billing.is_over_quota(t, m.name) AS over, billing.get_usage_percentage(t, m.name) AS percent
      FROM unnest(ARRAY['acme', 'other', 'bare']) t, billing.metrics m;
SELECT * FROM figures ORDER BY 1, 2;
-- the same when half of it is rolled up, and when all of it is
CREATE TABLE before AS SELECT * FROM figures;
SELECT billing.run_rollup();
BEGIN;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 1) \g /dev/null
SELECT used - 1 AS used FROM figures WHERE tenant = 'acme' AND metric = 'llm_tokens';
ROLLBACK;
SELECT count(*) AS differences FROM (TABLE before EXCEPT TABLE figures) d;
-- what is uncommitted is seen by its own transaction only as long as it lasts
BEGIN;
SELECT FROM billing.record_usage('acme', 'llm_tokens', 7500) \g /dev/null
SELECT billing.get_current_usage('acme', 'llm_tokens'), billing.get_usage_percentage('acme', 'llm_tokens');
ROLLBACK;
SELECT billing.get_current_usage('acme', 'llm_tokens'), billing.get_usage_percentage('acme', 'llm_tokens');
-- overrides
SELECT FROM billing.set_quota('acme', 'llm_tokens', 2000) \g /dev/null
SELECT FROM billing.set_quota('acme', 'api_calls', 0) \g /dev/null
SELECT FROM billing.set_quota('acme', 'user_seats', NULL) \g /dev/null
SELECT metric, used, quota, remaining, percentage, cap, billing.is_over_quota('acme', metric) AS over
  FROM billing.get_usage_summary('acme');
-- a new period begins with nothing, a gauge goes on
CALL travel('28 days');
SELECT metric, used, period_start, period_end, billing.get_current_usage('acme', metric, 'previous') AS previous
  FROM billing.get_usage_summary('acme');

CALL attempt($$SELECT billing.get_current_usage('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.get_current_usage('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_current_usage(NULL, 'api_calls')$$);
CALL attempt($$SELECT billing.get_current_usage('acme', NULL)$$);
CALL attempt($$SELECT billing.get_current_usage('acme', 'api_calls', 'last')$$);
CALL attempt($$SELECT billing.get_usage_summary('nobody')$$);
CALL attempt($$SELECT billing.get_usage_summary(NULL)$$);
CALL attempt($$SELECT billing.is_over_quota('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.is_over_quota('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_usage_percentage('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_usage_percentage('nobody', 'api_calls')$$);
SET pg_billing.tenant_id = 'acme';
CALL attempt($$SELECT billing.get_usage_summary('other')$$);
RESET pg_billing.tenant_id;
