-- The rollup of every kind of metric: by example, and by many events in a random order against the plain truth.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\set truth :tests /lib/truth.sql
\i :begin
\i :truth
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'free') \g /dev/null
SELECT FROM billing.create_customer('bare', 'Bare', 'b@b.example', stripe => false) \g /dev/null
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, unique_property, stripe_event_name) VALUES
    ('requests', 'Requests', 'counter', 'requests', 'count', NULL, 'requests'),
    ('bandwidth', 'Bandwidth', 'counter', 'Mbit/s', 'max', NULL, 'bandwidth'),
    ('rate', 'Rate', 'counter', 'EUR', 'last', NULL, 'rate'),
    ('visitors', 'Visitors', 'counter', 'visitors', 'unique_count', 'visitor', 'visitors');
INSERT INTO billing.plan_metrics (plan, metric, allowance, cap, grace)
SELECT 'free', name, 10, 'none', 1 FROM billing.metrics WHERE name IN ('requests', 'bandwidth', 'rate', 'visitors');
UPDATE billing.metrics SET dimensions = '{model,region}' WHERE name IN ('llm_tokens', 'requests', 'storage_gb');
CREATE PROCEDURE use(metric text, quantity numeric, at text, properties jsonb DEFAULT NULL) LANGUAGE sql AS $$
    SELECT billing.record_usage('acme', metric, quantity, NULL, ('2030-01-31 ' || at || '+00')::timestamptz, properties)
$$;
CREATE VIEW hours AS
    SELECT metric, hour, trim_scale(quantity) AS quantity, events, last_at::time, trim_scale(weighted) AS weighted,
           trim_scale(peak) AS peak FROM billing.usage_aggregates;
CREATE FUNCTION usage(metric text) RETURNS TABLE (current numeric, billable numeric, rolled_up numeric) LANGUAGE sql AS $$
    SELECT billing.get_current_usage('acme', $1), billing.get_billable_usage('acme', $1),
           (SELECT sum(used) FROM billing.usage_quotas WHERE tenant_id = 'acme' AND metric = $1)
$$;

-- count: an event is one, whatever its quantity
CALL use('requests', 5, '12:05');
CALL use('requests', 0, '12:06');
SELECT * FROM usage('requests');
SELECT billing.run_rollup();
CALL use('requests', 1, '12:01');
SELECT * FROM usage('requests');
SELECT status FROM billing.record_usage('acme', 'requests', 7, 'voided');
SELECT billing.run_rollup();
SELECT status FROM billing.void_usage('acme', 'voided', 'test');
SELECT * FROM usage('requests');
SELECT billing.run_rollup();
SELECT * FROM usage('requests');

-- max: late or not, it is the greatest that counts
CALL use('bandwidth', 5, '12:10');
CALL use('bandwidth', 7, '12:05');
SELECT billing.run_rollup();
CALL use('bandwidth', 6, '12:20');
SELECT * FROM usage('bandwidth');
CALL use('bandwidth', 9, '12:01');
SELECT * FROM usage('bandwidth');
SELECT billing.run_rollup();
SELECT * FROM usage('bandwidth');

-- last: by when it occurred, then by when it was recorded
CALL use('rate', 5, '12:10');
CALL use('rate', 7, '12:05');
SELECT * FROM usage('rate');
SELECT billing.run_rollup();
CALL use('rate', 8, '12:09:59');
SELECT * FROM usage('rate');
CALL use('rate', 4, '12:10');
SELECT * FROM usage('rate');
SELECT billing.run_rollup();
SELECT * FROM usage('rate');
-- an hour that comes late is not the last
CALL use('rate', 1, '12:30');
SELECT billing.run_rollup();
SELECT * FROM usage('rate');
SELECT billing.get_current_usage('acme', 'rate', 'previous');
CALL use('rate', 2, '11:30');
SELECT billing.run_rollup();
SELECT billing.get_current_usage('acme', 'rate'), billing.get_current_usage('acme', 'rate', 'previous');

-- unique_count: different values of a property; without the property none
CALL use('visitors', 1, '12:10', '{"visitor": "ann"}');
CALL use('visitors', 1, '12:11', '{"visitor": "bob"}');
CALL use('visitors', 1, '12:12', '{"visitor": "ann"}');
CALL use('visitors', 1, '12:13', '{"visitor": null}');
CALL use('visitors', 1, '12:13', '{"guest": "ann"}');
CALL use('visitors', 1, '12:13');
SELECT * FROM usage('visitors');
SELECT billing.run_rollup();
CALL use('visitors', 1, '12:10', '{"visitor": "bob"}');
CALL use('visitors', 1, '12:20', '{"visitor": 17}');
CALL use('visitors', 1, '11:50', '{"visitor": "ann"}');
SELECT * FROM usage('visitors');
SELECT billing.run_rollup();
SELECT * FROM usage('visitors');
SELECT billing.get_current_usage('acme', 'visitors', 'previous');

-- gauges: 3 seats from 12:06 on and 1 from 12:18; 0.8 GB over a half hour from 12:00 is 0.8 until now
CALL use('user_seats', 3, '12:06');
CALL use('user_seats', -2, '12:18');
CALL use('storage_gb', 0.8, '12:00');
SELECT * FROM usage('user_seats');
SELECT billing.get_billable_usage('acme', 'user_seats', 'previous') AS seats_before,
       abs(billing.get_billable_usage('acme', 'storage_gb') - 0.8) < 1e-9 AS all_the_time,
       billing.get_billable_usage('acme', 'storage_gb', 'previous') AS gb_before;
SELECT billing.run_rollup();
-- in between, late: 4 at 12:10, and another 5 that come and go at the same moment
CALL use('user_seats', 1, '12:10');
CALL use('user_seats', 5, '12:20');
CALL use('user_seats', -5, '12:20');
SELECT * FROM usage('user_seats');
SELECT billing.run_rollup();
SELECT * FROM usage('user_seats');
-- what went at the full hour is not of the hour
CALL use('user_seats', 7, '10:30');
CALL use('user_seats', -7, '12:00');
SELECT billing.run_rollup();
SELECT billing.get_billable_usage('acme', 'user_seats') AS now, billing.get_billable_usage('acme', 'user_seats', 'previous') AS before;
SELECT * FROM hours ORDER BY metric, hour;
SELECT * FROM differences;

-- alerts follow the figure; those of a gauge are of the billing period
SELECT metric, period_start, threshold, used, quota FROM billing.usage_alerts ORDER BY 1, 2, 3;
CALL use('user_seats', 4, '12:29');
CALL use('rate', 11, '12:31');
SELECT billing.run_rollup();
CALL use('user_seats', -4, '12:29');
SELECT billing.run_rollup();
CALL use('user_seats', 4, '12:29:30');
SELECT billing.run_rollup();
SELECT metric, period_start, threshold, used, quota FROM billing.usage_alerts WHERE metric <> 'bandwidth' ORDER BY 1, 2, 3;
CALL travel('28 days');
SELECT billing.run_rollup();
SELECT count(*) FROM billing.usage_alerts WHERE period_start > '2030-02-01';
SELECT FROM billing.record_usage('acme', 'user_seats', -1) \g /dev/null
SELECT billing.run_rollup();
SELECT metric, period_start, threshold, used, quota FROM billing.usage_alerts WHERE period_start > '2030-02-01' ORDER BY 1, 2, 3;
-- what a gauge was at the end of a period it is at the start of the next
SELECT billing.get_billable_usage('acme', 'user_seats') AS now, billing.get_billable_usage('acme', 'user_seats', 'previous') AS before,
       billing.get_billable_usage('acme', 'user_seats', '2029-12-01') AS long_ago,
       billing.get_billable_usage('acme', 'user_seats', '2030-06-01') AS to_come;
SELECT * FROM differences;
CALL attempt($$SELECT billing.get_billable_usage('acme', 'nothing')$$);
CALL attempt($$SELECT billing.get_billable_usage('nobody', 'user_seats')$$);
CALL attempt($$SELECT billing.get_billable_usage('acme', 'user_seats', 'next')$$);

-- 600 events of all kinds in the last two days, and a rollup after every sixth or so: the figures are true at any time
\set ECHO none
\o /dev/null
SELECT setseed(0.25);
CREATE FUNCTION void(tenant text, key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (billing.void_usage(tenant, key, 'by chance')).status;
EXCEPTION WHEN SQLSTATE 'UB000' THEN
    RETURN SQLSTATE;    -- never recorded, does not add up, or would be below zero
END $$;
SELECT CASE WHEN random() < 0.15 THEN 'SELECT billing.run_rollup()'
            WHEN random() < 0.1 THEN format('SELECT void(%L, %L)', tenant, 'event ' || (random() * generate_series)::int)
            ELSE format($$SELECT billing.record_usage(%L, %L, %s, 'event %s', %s,
                                 jsonb_strip_nulls(jsonb_build_object('visitor', %s, 'model', %s, 'region', %L::text)))$$,
                        tenant, metric,
                        CASE WHEN metric NOT IN ('user_seats', 'storage_gb') THEN (random() * 9)::int::text
                             ELSE format('greatest(%s, -billing.get_current_usage(%L, %L))', (random() * 9 - 4)::int, tenant, metric) END,
                        generate_series,
                        CASE WHEN random() < 0.3 THEN 'NULL'
                             ELSE format('date_trunc(''hour'', billing.now()) - %L::interval',
                                         make_interval(mins => (random() * 48)::int * 60 - (random() * 3)::int)) END,
                        (random() * 20)::int, (random() * 2)::int, nullif((random() * 2)::int, 0)) END
  FROM generate_series(1, 600), LATERAL (SELECT (ARRAY['acme', 'bare'])[1 + (random() * 1.2)::int] AS tenant,
       (SELECT name FROM billing.metrics WHERE generate_series > 0 ORDER BY random() LIMIT 1) AS metric) m
\gexec
\o
\set ECHO all
SELECT count(*) > 400 AS many, count(void_reason) > 5 AS some_voided FROM billing.usage_events;
SELECT * FROM differences;
SELECT billing.run_rollup() > 0;
SELECT * FROM differences;
SELECT count(*) FROM unrolled;
