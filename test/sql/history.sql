-- Usage by hour, day and period: days are those of the tenant's time zone; the tail counts.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, unique_property, stripe_event_name) VALUES
    ('batches', 'Batches', 'counter', 'batches', 'count', NULL, 'batches'),
    ('largest', 'Largest', 'counter', 'bytes', 'max', NULL, 'largest'),
    ('latest', 'Latest', 'counter', 'bytes', 'last', NULL, 'latest'),
    ('visitors', 'Visitors', 'counter', 'visitors', 'unique_count', 'visitor', 'visitors');
SELECT FROM (VALUES ('berlin', 'Europe/Berlin'), ('kolkata', 'Asia/Kolkata'), ('chatham', 'Pacific/Chatham'), ('utc', 'UTC')) t (t, z),
            billing.create_customer(t, t, 'a@a.example', z, stripe => false), billing.create_subscription(t, 'standard') \g /dev/null
-- one an hour, over the night in which Berlin's clocks go forward
CALL travel('59 days');
SELECT billing.now()::date;
SELECT FROM unnest('{berlin,kolkata,chatham}'::text[]) t,
            generate_series(timestamptz '2030-03-29 00:00+00', '2030-03-31 12:00+00', '1 hour') h,
            billing.record_usage(t, 'api_calls', 1, t || h, h) \g /dev/null
SELECT * FROM billing.get_usage_by_day('berlin', 'api_calls', '2030-03-28 12:00+00');
SELECT * FROM billing.get_usage_by_day('kolkata', 'api_calls', '2030-03-28 12:00+00');
SELECT * FROM billing.get_usage_by_day('chatham', 'api_calls', '2030-03-28 12:00+00');
SELECT * FROM billing.get_usage_by_day('berlin', 'api_calls', '2030-03-30 12:00+01', '2030-03-31 03:00+02');
SELECT billing.get_days_remaining('berlin'), billing.get_days_remaining('kolkata'), billing.get_days_remaining('chatham');
SELECT * FROM billing.get_current_period('berlin');
-- the present period: a moment old
SELECT * FROM billing.get_usage_by_day('berlin', 'api_calls');
SELECT * FROM billing.get_usage_by_hour('berlin', 'api_calls');
SELECT * FROM billing.get_usage_by_hour('berlin', 'api_calls', '2030-03-31 10:45+00', '2030-03-31 12:00+00');
-- autumn
CALL travel('210 days');
SELECT FROM generate_series(timestamptz '2030-10-25 00:00+00', '2030-10-27 12:00+00', '1 hour') h,
            billing.record_usage('berlin', 'api_calls', 1, 'autumn' || h, h) \g /dev/null
SELECT * FROM billing.get_usage_by_day('berlin', 'api_calls', '2030-10-25 00:00+02');
SELECT * FROM billing.get_usage_history('berlin', 'api_calls', 20);
SELECT * FROM billing.get_usage_history('berlin', 'api_calls', 2);
SELECT FROM billing.get_usage_history('berlin', 'api_calls', 0);

-- every kind, before and after the rollup
SELECT FROM generate_series(0, 40) n, LATERAL (SELECT timestamptz '2030-10-26 20:00+00' + n * interval '24 minutes' AS t) x,
            LATERAL (SELECT billing.record_usage('utc', m, (n * 7919) % 100, m || n, t,
                        jsonb_build_object('visitor', n % 13)) FROM unnest('{llm_tokens,batches,largest,latest,visitors}'::text[]) m) y,
            LATERAL (SELECT billing.record_usage('utc', 'storage_gb', n % 5, 's' || n, t)) z \g /dev/null
SELECT FROM (VALUES (9), (4)) t (seats), billing.set_usage('utc', 'user_seats', seats) \g /dev/null
SELECT FROM unnest('{batches3,llm_tokens40}'::text[]) key, billing.void_usage('utc', key, 'no') \g /dev/null
CREATE VIEW hourly AS SELECT m.name, u.* FROM billing.metrics m, billing.get_usage_by_hour('utc', m.name, '2030-10-25 00:00+00') u;
CREATE VIEW daily AS SELECT m.name, u.* FROM billing.metrics m, billing.get_usage_by_day('utc', m.name, '2030-10-25 00:00+00') u;
SELECT name, string_agg(quantity::text, ' ' ORDER BY hour) FROM hourly
 WHERE hour >= '2030-10-26 19:00+00' AND hour < '2030-10-27 12:00+00' GROUP BY 1 ORDER BY 1;
SELECT name, string_agg(quantity::text, ' ' ORDER BY day) FROM daily WHERE day < '2030-10-27' OR name <> 'storage_gb' GROUP BY 1 ORDER BY 1;
SELECT m.name, sum(d.quantity) AS days, billing.get_current_usage('utc', m.name) AS used
  FROM billing.metrics m JOIN daily d USING (name) WHERE m.aggregation IN ('sum', 'count', 'unique_count') AND m.kind = 'counter' GROUP BY 1 ORDER BY 1;
-- but for the average of the present hour and day, which grows
CREATE VIEW settled AS SELECT * FROM hourly WHERE hour < '2030-10-27 12:00+00' OR name <> 'storage_gb'
    UNION ALL SELECT * FROM daily WHERE day < '2030-10-27' OR name <> 'storage_gb';
CREATE TABLE before AS TABLE settled;
SELECT billing.run_rollup() > 0 AS rolled_up;
SELECT count(*) AS differences FROM (TABLE before EXCEPT TABLE settled) d;
-- late ones: a visitor who was known, one who was not, a later and an earlier last
SELECT FROM (VALUES ('visitors', 1, '19:00', 1), ('visitors', 1, '19:01', 99), ('latest', 1000, '19:00', NULL),
                    ('latest', 2000, '20:59', NULL), ('largest', 3000, '20:59', NULL), ('storage_gb', 1, '20:30', NULL)) e (metric, n, at, visitor),
            billing.record_usage('utc', metric, n, metric || at, ('2030-10-26 ' || at || '+00')::timestamptz,
                                 jsonb_build_object('visitor', visitor)) \g /dev/null
SELECT name, string_agg(quantity::text, ' ' ORDER BY hour) FROM hourly WHERE hour BETWEEN '2030-10-26 19:00+00' AND '2030-10-26 21:00+00' GROUP BY 1 ORDER BY 1;
CREATE TABLE late AS TABLE settled;
SELECT billing.run_rollup();
SELECT count(*) AS differences FROM (TABLE late EXCEPT TABLE settled) d;

CALL attempt($$SELECT billing.get_usage_by_hour('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.get_usage_by_hour('utc', 'nothing')$$);
CALL attempt($$SELECT billing.get_usage_by_day('utc', 'api_calls', '2030-10-02', '2030-10-01')$$);
CALL attempt($$SELECT billing.get_usage_by_day('utc', 'api_calls', '-infinity')$$);
CALL attempt($$SELECT billing.get_usage_by_hour('utc', 'api_calls', '2029-09-01')$$);
CALL attempt($$SELECT billing.get_usage_by_day('utc', 'api_calls', '2003-06-01')$$);
CALL attempt($$SELECT billing.get_usage_by_day('nobody', 'api_calls')$$);
CALL attempt($$SELECT billing.get_usage_history('nobody', 'api_calls')$$);
