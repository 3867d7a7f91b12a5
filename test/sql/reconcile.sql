-- Reconciliation: the ledger, what was sent and what Stripe counts are compared, drift is found, mended, and gone.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
SET pg_billing.reconcile_settle = 0;
-- A Stripe that counts: the latest total of an hour, as told; and answers what it is asked for.
CREATE TABLE at_stripe (tenant text, metric text, hour timestamptz, value numeric, PRIMARY KEY (tenant, metric, hour));
ALTER FUNCTION answer(text, text, text, jsonb) RENAME TO plain_answer;
CREATE FUNCTION answer(tenant text, kind text, subject text, params jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF kind = 'meter_event' THEN
        INSERT INTO at_stripe VALUES (tenant, subject, date_trunc('hour', to_timestamp((params ->> 'timestamp')::bigint), 'UTC'),
                                      (params #>> '{payload,value}')::numeric)
        ON CONFLICT ON CONSTRAINT at_stripe_pkey DO UPDATE SET value = excluded.value;
    ELSIF kind = 'meter_summary' THEN
        RETURN (WITH hours AS (
                    SELECT extract(epoch FROM CASE WHEN params ? 'value_grouping_window' THEN a.hour
                                              ELSE to_timestamp((params ->> 'start_time')::bigint) END)::bigint AS start,
                           CASE WHEN a.metric IN ('storage_gb', 'user_seats') THEN (array_agg(a.value ORDER BY a.hour DESC))[1] ELSE sum(a.value) END AS value
                      FROM at_stripe a
                     WHERE params ->> 'customer' = 'cus_' || a.tenant AND a.metric = split_part(answer.subject, ' ', 2)
                       AND a.hour >= to_timestamp((params ->> 'start_time')::bigint) AND a.hour < to_timestamp((params ->> 'end_time')::bigint)
                     GROUP BY 1, a.metric)
                -- two hours a page, the newest first, though more are asked for
                SELECT jsonb_build_object('has_more', count(*) > 2, 'data', coalesce(jsonb_agg(
                           jsonb_build_object('id', 'sum_' || h.start, 'start_time', h.start, 'aggregated_value', h.value)
                           ORDER BY h.start DESC) FILTER (WHERE h.n <= 2), '[]'))
                  FROM (SELECT x.*, row_number() OVER (ORDER BY x.start DESC) AS n FROM hours x
                         WHERE NOT params ? 'starting_after' OR x.start < split_part(params ->> 'starting_after', '_', 2)::bigint) h);
    END IF;
    RETURN plain_answer(tenant, kind, subject, params);
END $$;
CREATE VIEW open_drift AS
    SELECT tenant_id, metric, kind, hour, ledger, aggregated, sent, stripe FROM billing.stripe_drift WHERE repaired_at IS NULL;
CREATE FUNCTION reads() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM billing.stripe_outbox WHERE kind = 'meter_summary' $$;

SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('cash', 'Cash', 'c@c.example', stripe => false) \g /dev/null
SELECT FROM unnest('{acme,bolt}'::text[]) t, billing.create_subscription(t, 'standard') \g /dev/null
CALL stripe();
CALL travel('2 days');
SELECT FROM unnest('{acme,bolt,cash}'::text[]) t, generate_series(timestamptz '2030-01-31 13:10+00', '2030-02-01 02:10+00', '3 hours') at,
       LATERAL (SELECT billing.record_usage(t, 'llm_tokens', 1000, NULL, at), billing.record_usage(t, 'api_calls', 7, NULL, at)) u \g /dev/null
SELECT FROM billing.record_usage('acme', 'storage_gb', 20, NULL, '2030-01-31 14:30+00') \g /dev/null
SELECT billing.run_rollup();
CALL stripe();

-- in order: each metric's total is one read
SELECT billing.reconcile('current') AS run \gset
SELECT period, phase, steps_total, steps_done, reads_left FROM billing.stat_progress_reconcile;
CALL stripe();
SELECT tenant_id, kind, metric, starts, ends, until, state, looks FROM billing.reconcile_steps WHERE tenant_id <> 'bolt' ORDER BY 1, 2, 3;
SELECT count(*) AS under_way FROM billing.stat_progress_reconcile;
SELECT finished_at >= started_at AS finished, steps, reads() FROM billing.reconciliations;
SELECT * FROM open_drift;
SELECT subject, path, params FROM billing.stripe_outbox WHERE kind = 'meter_summary' AND tenant_id = 'acme' ORDER BY id;
-- what is asked for twice is done once; a tenant by itself
SELECT billing.reconcile('current', 'acme') = billing.reconcile('current', 'acme') AS one_run;
CALL attempt($$SELECT billing.reconcile('soon')$$);
CALL attempt($$SELECT billing.reconcile(NULL)$$);
CALL attempt($$SELECT billing.reconcile('current', 'nobody')$$);
CALL stripe();
SELECT DISTINCT tenant_id FROM billing.reconcile_steps WHERE reconciliation_id = (SELECT max(id) FROM billing.reconciliations);

-- Stripe lost one hour, has another total of a second, and counts in a third where nothing was; an hour was refused
DELETE FROM at_stripe WHERE tenant = 'acme' AND metric = 'llm_tokens' AND hour = '2030-01-31 16:00+00';
UPDATE at_stripe SET value = 999 WHERE tenant = 'acme' AND metric = 'llm_tokens' AND hour = '2030-01-31 19:00+00';
INSERT INTO at_stripe VALUES ('bolt', 'agent_executions', '2030-01-31 20:00+00', 5);
SELECT FROM billing.record_usage('bolt', 'llm_tokens', 50, NULL, '2030-02-01 05:10+00') \g /dev/null
SELECT billing.run_rollup();
SELECT FROM billing._stripe_plan(), billing._stripe_claim(10, '1 minute') \g /dev/null
CALL settle('bolt', 'meter_event', 'llm_tokens', 'failed', '{"error": {"message": "No such customer."}}', 400);
-- an hour's aggregate and a period's quota are not what the events say; counters that are loaded now take them over
SET session_replication_role = replica;
UPDATE billing.usage_aggregates SET quantity = quantity + 93 WHERE tenant_id = 'acme' AND metric = 'api_calls' AND hour = '2030-01-31 16:00+00';
UPDATE billing.usage_aggregates SET quantity = 7, weighted = 1 WHERE tenant_id = 'acme' AND metric = 'storage_gb';
DELETE FROM billing.usage_aggregates WHERE tenant_id = 'cash' AND metric = 'llm_tokens' AND hour = '2030-02-01 01:00+00';
UPDATE billing.usage_quotas SET used = used - 20 WHERE tenant_id = 'acme' AND metric = 'api_calls';
RESET session_replication_role;
UPDATE billing.metrics SET scale = 1 WHERE name = 'api_calls';
SELECT used FROM billing.check_quota('acme', 'api_calls');
SELECT FROM billing.reconcile('current') \g /dev/null
-- the allowance of reads is kept, from page to page: it goes on another day
SELECT reads() AS before \gset
SELECT set_config('pg_billing.reconcile_reads', (:before + 8)::text, false) \g /dev/null
CALL stripe();
SELECT reads() - :before AS reads;
SELECT phase, reads_left FROM billing.stat_progress_reconcile;
SET pg_billing.reconcile_reads = -1;
CALL stripe();
SELECT (SELECT count(*) FROM billing.stat_progress_reconcile) AS under_way, reads() - :before AS reads;
SELECT * FROM open_drift ORDER BY tenant_id, metric, kind, hour;
SELECT count(*) FROM billing.stripe_drift WHERE found_at IS NULL OR period_start IS NULL;

-- what it would do; that changes nothing
SELECT tenant, metric, kind, hour, was, becomes, mended, action FROM billing.repair() ORDER BY 1, 2, 3, 4;
SELECT count(*) FROM open_drift;
SELECT count(*) FROM billing.repair('bolt');
SELECT mended, count(*) FROM billing.repair(dry_run => false) GROUP BY 1;
SELECT count(*) AS left_to_do FROM billing.repair(dry_run => false);
SELECT used FROM billing.check_quota('acme', 'api_calls');
SELECT metric, hour, quantity, weighted, peak, events FROM billing.usage_aggregates
 WHERE (tenant_id, metric) IN (('acme', 'storage_gb'), ('cash', 'llm_tokens')) ORDER BY 1, 2;
SELECT used FROM billing.usage_quotas WHERE tenant_id = 'acme' AND metric = 'api_calls';
SELECT action, after, count(*) FROM billing.audit_log WHERE action = 'repair' GROUP BY 1, 2 ORDER BY 3, 2;
CALL stripe();
SELECT * FROM at_stripe WHERE (tenant, metric) IN (('acme', 'llm_tokens'), ('bolt', 'agent_executions'), ('acme', 'api_calls')) OR value = 50 ORDER BY 1, 2, 3;
-- the second one is clean, hour by hour, too; a repeated identifier Stripe would have refused
SELECT FROM billing.reconcile('current', by_hour => true) \g /dev/null
CALL stripe();
SELECT count(*) AS open FROM open_drift;
SELECT count(*) = count(DISTINCT params ->> 'identifier') AS own_identifiers FROM billing.stripe_outbox WHERE kind = 'meter_event';
SELECT kind, repair, count(*) FROM billing.stripe_drift GROUP BY 1, 2 ORDER BY 1, 2;

-- two errors in a period that cancel each other out: only hour by hour
UPDATE at_stripe SET value = value + 1 WHERE tenant = 'acme' AND metric = 'api_calls' AND hour = '2030-01-31 13:00+00';
UPDATE at_stripe SET value = value - 1 WHERE tenant = 'acme' AND metric = 'api_calls' AND hour = '2030-01-31 19:00+00';
SELECT FROM billing.reconcile('current', 'acme') \g /dev/null
CALL stripe();
SELECT count(*) AS open FROM open_drift;
SELECT FROM billing.reconcile('current', 'acme', true) \g /dev/null
CALL stripe();
SELECT * FROM open_drift ORDER BY hour;
-- gone by itself: Stripe was only late
UPDATE at_stripe SET value = 7 WHERE tenant = 'acme' AND metric = 'api_calls';
SELECT FROM billing.reconcile('current', 'acme', true) \g /dev/null
CALL stripe();
SELECT count(*) AS open, (SELECT count(*) FROM billing.stripe_drift WHERE repair = 'gone') AS gone FROM open_drift;

-- the latest hours are not compared; a difference that is there only at the first look is none
SET pg_billing.reconcile_settle = '24h';
UPDATE at_stripe SET value = 1 WHERE tenant = 'acme' AND metric = 'llm_tokens' AND hour = '2030-01-31 13:00+00';
SELECT FROM billing.record_usage('acme', 'llm_tokens', 5) \g /dev/null
SELECT billing.run_rollup();
SELECT FROM billing.reconcile('current', 'acme') \g /dev/null
CALL stripe();
SELECT metric, until, state, looks, due_at - clock_timestamp() BETWEEN '119 minutes' AND '2 hours' AS waits FROM billing.reconcile_steps
 WHERE reconciliation_id = (SELECT max(id) FROM billing.reconciliations) AND kind = 'meter' ORDER BY 1;
SELECT phase, goes_on_at > clock_timestamp() AS later FROM billing.stat_progress_reconcile;
UPDATE at_stripe SET value = 1000 WHERE tenant = 'acme' AND metric = 'llm_tokens' AND hour = '2030-01-31 13:00+00';
UPDATE billing.reconcile_steps SET due_at = clock_timestamp() WHERE state = 'due';
CALL stripe();
SELECT count(*) AS open, (SELECT count(*) FROM billing.stat_progress_reconcile) AS under_way FROM open_drift;

-- a read that is refused ends its step, until it is retried
SET pg_billing.reconcile_settle = 0;
SELECT FROM billing.reconcile('current', 'bolt') \g /dev/null
SELECT FROM billing._stripe_plan(), billing._stripe_claim(10, '1 minute') \g /dev/null
SELECT o.subject AS read FROM billing.stripe_outbox o WHERE o.state = 'sending' AND o.subject LIKE '%llm_tokens%' \gset
CALL settle('bolt', 'meter_summary', :'read', 'failed', '{"error": {"message": "No such meter."}}', 404);
SELECT metric, state, error FROM billing.reconcile_steps WHERE state = 'failed';
SELECT billing.retry_failed('meter_summary');
CALL stripe();
SELECT count(*) FROM billing.reconcile_steps WHERE state <> 'done';

-- by itself, if told to: once in that time
SELECT max(id) AS last FROM billing.reconciliations \gset
SET pg_billing.reconcile_interval = '1h';
CALL stripe();
SELECT count(*) FROM billing.reconciliations WHERE id > :last;
UPDATE billing.reconciliations SET started_at = clock_timestamp() - interval '61 minutes';
CALL stripe();
SELECT only_tenant, period, finished_at IS NOT NULL AS finished FROM billing.reconciliations WHERE id > :last ORDER BY period;
CALL stripe();
SELECT count(*) FROM billing.reconciliations WHERE id > :last;
RESET pg_billing.reconcile_interval;

-- what is no sum: the greatest, the last, the number of different values
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, unique_property, stripe_event_name) VALUES
    ('greatest', 'Greatest', 'counter', 'x', 'max', NULL, 'greatest'), ('latest', 'Latest', 'counter', 'x', 'last', NULL, 'latest'),
    ('users', 'Users', 'counter', 'users', 'unique_count', 'who', 'users'), ('calls', 'Calls', 'counter', 'calls', 'count', NULL, 'calls');
SELECT FROM generate_series(1, 5) n, LATERAL (SELECT billing.record_usage('cash', m, (n * 7) % 5, m || n, timestamptz '2030-02-01 06:00+00' + n * interval '25 minutes',
    jsonb_build_object('who', n % 3)) FROM unnest('{greatest,latest,users,calls}'::text[]) m) u \g /dev/null
SELECT FROM billing.void_usage('cash', 'calls3', 'a mistake') \g /dev/null
SELECT billing.run_rollup();
CREATE TABLE right_ones AS SELECT metric, hour, quantity, events, last_at, recorded_at FROM billing.usage_aggregates WHERE tenant_id = 'cash';
SELECT FROM billing.reconcile('current', 'cash') \g /dev/null
CALL stripe();
SELECT count(*) AS open FROM open_drift;
SET session_replication_role = replica;
UPDATE billing.usage_aggregates SET quantity = 9, last_at = NULL, recorded_at = NULL, events = 1 WHERE tenant_id = 'cash' AND metric IN ('greatest', 'latest', 'calls');
UPDATE billing.usage_aggregates SET quantity = quantity + 1 WHERE tenant_id = 'cash' AND metric = 'users' AND hour = '2030-02-01 06:00+00';
RESET session_replication_role;
SELECT FROM billing.reconcile('current', 'cash') \g /dev/null
CALL stripe();
SELECT metric, kind, hour, ledger, aggregated FROM open_drift ORDER BY 1, 3;
SELECT bool_and(mended) AS all_mended FROM billing.repair('cash', false);
SELECT count(*) AS differences FROM ((TABLE right_ones EXCEPT SELECT metric, hour, quantity, events, last_at, recorded_at FROM billing.usage_aggregates WHERE tenant_id = 'cash')
    UNION ALL (SELECT metric, hour, quantity, events, last_at, recorded_at FROM billing.usage_aggregates WHERE tenant_id = 'cash' EXCEPT TABLE right_ones)) d;

-- a level whose hours say otherwise is not guessed
SET session_replication_role = replica;
UPDATE billing.usage_quotas SET used = 50 WHERE tenant_id = 'acme' AND metric = 'storage_gb';
RESET session_replication_role;
SELECT FROM billing.reconcile('current', 'acme') \g /dev/null
CALL stripe();
SELECT metric, kind, was, becomes, mended, action FROM billing.repair('acme', false);
SELECT count(*) FROM billing.repair('acme');

-- events that are not kept any more cannot be recounted: what they became is not in question
SET pg_billing.event_retention = '36d';
CALL travel('1 day');
SELECT billing.run_rollup() \g /dev/null
CALL travel('39 days');
SELECT FROM billing.record_usage('cash', 'api_calls', 1) \g /dev/null
SELECT billing.run_rollup() \g /dev/null
SELECT billing.maintain();
SELECT count(*) AS kept FROM billing.usage_events WHERE tenant_id = 'cash' AND occurred_at < '2030-03-01';
SELECT FROM billing.reconcile('2030-02-10', 'cash') \g /dev/null
CALL stripe();
SELECT count(*) AS open FROM open_drift WHERE tenant_id = 'cash';
-- nor is the sum of those hours
SELECT count(*) AS to_be_mended FROM billing.repair('cash');

SET ROLE billing_app;
CALL attempt($$SELECT billing.reconcile()$$);
CALL attempt($$TABLE billing.stripe_drift$$);
RESET ROLE;
SET ROLE billing_admin;
SELECT count(*) > 0 AS seen FROM billing.stripe_drift;
SELECT count(*) FROM billing.stat_progress_reconcile;
RESET ROLE;

-- a figure of a whole period: what Stripe lost is told anew, and counts once its hour is closed
CALL travel('2 hours');
SELECT FROM billing.record_usage('acme', 'user_seats', 12) \g /dev/null
CALL travel('1 hour');
SELECT billing.run_rollup() > 0 AS rolled_up;
CALL stripe();
CALL travel('1 hour');
UPDATE at_stripe SET value = 3 WHERE tenant = 'acme' AND metric = 'user_seats';
SELECT FROM billing.reconcile('current', 'acme') \g /dev/null
CALL stripe();
SELECT tenant_id, metric, kind, ledger, sent, stripe FROM open_drift WHERE metric = 'user_seats';
SELECT metric, kind, was, becomes, mended, action FROM billing.repair('acme') WHERE metric = 'user_seats';
SELECT mended FROM billing.repair('acme', dry_run => false) WHERE metric = 'user_seats';
SELECT metric, hours FROM billing.stripe_unsubmitted WHERE tenant_id = 'acme' AND metric = 'user_seats';
CALL stripe();
CALL travel('2 hours');
SELECT FROM billing.reconcile('current', 'acme') \g /dev/null
CALL stripe();
SELECT * FROM open_drift WHERE metric = 'user_seats';
-- a period that is over, whose figure nobody told in the end
UPDATE billing.usage_figures SET submitted = 5, due_at = NULL WHERE tenant_id = 'acme' AND metric = 'storage_gb' AND period_end <= billing.now();
SELECT FROM billing.reconcile('previous', 'acme') \g /dev/null
CALL stripe();
SELECT metric, kind, round(ledger) AS ledger, sent FROM open_drift WHERE metric = 'storage_gb' AND kind = 'unsent';
SELECT kind, mended, action FROM billing.repair('acme', dry_run => false) WHERE kind IN ('unsent', 'invoice') ORDER BY metric;
CALL stripe();
SELECT FROM billing.reconcile('previous', 'acme') \g /dev/null
CALL stripe();
SELECT * FROM open_drift WHERE metric = 'storage_gb' AND kind = 'unsent';
