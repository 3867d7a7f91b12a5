-- Billing periods counted from an anchor: ends of months, leap years, daylight saving. Half-open, without gap or overlap.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
CREATE FUNCTION period(anchor text, at text, timezone text DEFAULT 'UTC', months int DEFAULT 1) RETURNS text
LANGUAGE sql AS $$
    SELECT concat(lower(p) AT TIME ZONE timezone, ' to ', upper(p) AT TIME ZONE timezone,
                  ' (', upper(p) - lower(p), ')')
      FROM billing._period_at(anchor::timestamptz, months, timezone, at::timestamptz) p
$$;
-- the 31st is kept although months in between are shorter
SELECT month, period('2027-01-31 00:00+00', month || ' 00:00+00')
  FROM unnest(ARRAY['2027-01-31', '2027-02-27', '2027-02-28', '2027-03-30', '2027-03-31', '2027-04-29', '2027-04-30',
                    '2027-12-31']) month;
-- a leap year has its 29th of February
SELECT period('2028-01-30 08:00+00', '2028-02-29 07:59:59+00'), period('2028-01-30 08:00+00', '2028-02-29 08:00+00');
SELECT period('2028-02-29 00:00+00', '2029-02-28 00:00+00'), period('2028-02-29 00:00+00', '2032-02-29 00:00+00');
SELECT period('2028-02-29 00:00+00', '2029-02-27 23:59:59+00', months => 12),
       period('2028-02-29 00:00+00', '2029-02-28 00:00+00', months => 12),
       period('2028-02-29 00:00+00', '2032-02-29 00:00+00', months => 12);
-- before the anchor, too: late events count there
SELECT period('2027-03-31 00:00+00', '2027-03-30 23:59:59.999999+00'), period('2027-03-31 00:00+00', '2026-12-31 00:00+00');
-- midnight in Berlin, through both changes of the clock
SELECT period('2027-03-01 00:00+01', '2027-03-28 12:00+02', 'Europe/Berlin'),
       period('2027-03-01 00:00+01', '2027-10-15 00:00+02', 'Europe/Berlin');
-- an anchor in the hour that spring leaves out, and in the one that autumn has twice
SELECT period('2027-01-28 02:30+01', '2027-03-28 03:29+02', 'Europe/Berlin'),
       period('2027-01-28 02:30+01', '2027-03-28 03:30+02', 'Europe/Berlin');
SELECT period('2026-10-31 01:30-04', '2027-11-10 00:00-05', 'America/New_York', 12);
SELECT period('2027-01-15 00:00+13:45', '2027-04-20 00:00+12:45', 'Pacific/Chatham'),
       period('2027-01-15 00:00+05:30', '2027-02-14 23:59+05:30', 'Asia/Kolkata');

-- every moment lies in exactly one period, which is the one that follows the one before
CREATE TABLE moments AS
    SELECT zone, anchor, months, at, billing._period_at(anchor, months, zone, at) AS period
      FROM unnest(ARRAY['UTC', 'Europe/Berlin', 'America/New_York', 'Australia/Lord_Howe', 'Pacific/Apia', 'Africa/Casablanca']) zone,
           unnest(ARRAY[timestamptz '2023-01-31 02:30+00', '2024-02-29 00:00+00', '2023-10-29 01:00+00']) anchor,
           unnest(ARRAY[1, 3, 12]) months,
           generate_series(timestamptz '2022-06-01 00:00+00', '2028-06-01 00:00+00', interval '59 hours') at;
SELECT count(*) > 40000 AS many, bool_and(period @> at) AS contained FROM moments;
SELECT count(*) AS gaps_or_overlaps
  FROM (SELECT upper(period) AS ends, lower(lead(period) OVER (PARTITION BY zone, anchor, months ORDER BY at)) AS next_start,
               period = lead(period) OVER (PARTITION BY zone, anchor, months ORDER BY at) AS same
          FROM moments) m
 WHERE NOT same AND ends <> next_start;
