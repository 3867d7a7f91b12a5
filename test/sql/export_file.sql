-- Mode file: a metric that Stripe does not bill leaves as lines of files, an hour's total each, frozen before they are written.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set stripe :tests /lib/stripe.sql
\i :stripe
-- What the worker does with the next file; trouble: why it could not be written.
CREATE FUNCTION write_file(trouble text DEFAULT NULL) RETURNS TABLE (file text) LANGUAGE plpgsql AS $$
DECLARE
    f record;
BEGIN
    FOR f IN SELECT * FROM billing._next_export_file() LOOP
        PERFORM billing._export_settled(f.number, trouble);
        RETURN QUERY SELECT replace(l, s.installation, 'INSTALLATION')
                       FROM billing.stripe_state s, regexp_split_to_table(f.name || E'\n' || f.content, E'\n') l;
    END LOOP;
END $$;
CREATE PROCEDURE use(tenant text, metric text, quantity numeric, at timestamptz, key text DEFAULT NULL) LANGUAGE sql AS $$
    SELECT billing.record_usage(tenant, metric, quantity, key, at)
$$;
CREATE VIEW files AS
    SELECT number, first_seq, last_seq, written_at IS NOT NULL AS written, error FROM billing.export_files ORDER BY number;
DELETE FROM billing.price_tiers WHERE metric NOT IN ('api_calls', 'llm_tokens');
DELETE FROM billing.plan_metrics WHERE metric NOT IN ('api_calls', 'llm_tokens');
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, export, stripe_event_name)
    VALUES ('peak', 'Peak', 'counter', 'MB', 'max', 3, 'file', 'peak');

-- counters only
CALL attempt($$UPDATE billing.metrics SET export = 'file' WHERE name = 'storage_gb'$$);
UPDATE billing.metrics SET export = 'file' WHERE name = 'api_calls';
-- Stripe hears nothing of it but the feature; its price is none
CALL stripe();
SELECT kind, subject FROM billing.stripe_outbox WHERE kind ~ '^(product|meter|price|feature)_(create|find)$' AND subject ~ 'api_calls|llm_tokens' ORDER BY 1, 2;
SELECT metric FROM billing._plan_terms('standard');
SELECT FROM billing.create_customer('acme', 'Acme', 'a@a.example', stripe => true) \g /dev/null
SELECT FROM billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('acme', 'standard') \g /dev/null
CALL stripe();
SELECT jsonb_array_length(params -> 'items') AS items FROM billing.stripe_outbox WHERE kind = 'subscription_create';
SELECT metric FROM billing.subscription_items;

-- an hour that goes on is not a line, nor is one that is not rolled up
CALL use('acme', 'api_calls', 5, '2030-01-31 12:10+00');
CALL use('acme', 'llm_tokens', 5, '2030-01-31 12:10+00');
SELECT billing.run_rollup();
SELECT * FROM write_file();
CALL travel('2 hours');
SELECT * FROM write_file();

-- what cannot be written stays as it is, and so does what was written
SELECT billing.run_rollup();
SELECT * FROM write_file('cannot create the file: Permission denied');
CALL use('bolt', 'api_calls', 3, '2030-01-31 12:20+00');
SELECT billing.run_rollup();
SELECT * FROM files;
SELECT * FROM write_file();
SELECT * FROM files;

-- late usage, and what is taken back, is another line, with what the last one said
CALL use('acme', 'api_calls', 7, '2030-01-31 12:59:59+00', 'late');
CALL use('acme', 'api_calls', 1, '2030-01-31 13:00+00');
CALL use('acme', 'peak', 2.5, '2030-01-31 13:10+00');
CALL use('acme', 'peak', 1.25, '2030-01-31 13:20+00');
SELECT billing.run_rollup();
SELECT * FROM write_file();
SELECT * FROM write_file();
SELECT FROM billing.void_usage('acme', 'late', 'test') \g /dev/null
CALL use('acme', 'peak', 2, '2030-01-31 13:30+00');
SELECT billing.run_rollup();
SELECT * FROM write_file();
-- what changes nothing is none
CALL use('acme', 'api_calls', 9, '2030-01-31 12:30+00', 'mistake');
SELECT FROM billing.void_usage('acme', 'mistake', 'test') \g /dev/null
SELECT billing.run_rollup();
SELECT * FROM write_file();
SELECT * FROM files;

-- the same files again
SELECT billing.rewrite_export_files(3);
SELECT * FROM write_file();
SELECT * FROM write_file();
SELECT * FROM write_file();

-- an hour that was mended is looked at
SELECT count(*) FROM billing.export_hours WHERE due;
SELECT billing._export_hours('acme', 'api_calls', '2030-01-31 12:00+00', '2030-01-31 12:00+00');
SELECT metric, hour, due FROM billing.export_hours WHERE due;
SELECT * FROM write_file();
SELECT count(*) FROM billing.export_hours WHERE due;

-- a copy writes nothing until it is adopted, and then under a name of its own
CALL use('acme', 'api_calls', 100, '2030-01-31 12:30+00');
SELECT billing.run_rollup();
UPDATE billing.stripe_state SET database_oid = 1;
SELECT * FROM write_file();
SELECT installation AS before FROM billing.stripe_state \gset
SELECT billing.adopt();
SELECT count(*) FROM write_file() WHERE file LIKE 'usage-INSTALLATION-%';
SELECT count(DISTINCT split_part(name, '-', 2)) FROM billing.export_files;

-- Stripe has none of it, and nobody misses it there
SELECT metric, submitted, blocked FROM billing.usage_aggregates WHERE tenant_id = 'acme' AND metric <> 'llm_tokens';
SELECT metric, hours FROM billing.stripe_unsubmitted;
SELECT count(*) FROM billing.stripe_outbox WHERE kind = 'meter_event' AND subject <> 'llm_tokens';

-- back to Stripe: as the meter and price that it had, or gets; what came before is in files
UPDATE billing.metrics SET export = 'delta' WHERE name = 'api_calls';
SELECT stripe_event_name FROM billing.metrics WHERE name = 'api_calls';
UPDATE billing.metrics SET export = 'file' WHERE name = 'api_calls';
UPDATE billing.metrics SET export = 'hourly_total' WHERE name = 'api_calls';
SELECT stripe_event_name FROM billing.metrics WHERE name = 'api_calls';
SELECT metric FROM billing._plan_terms('standard');
-- and not while subscriptions are billed for it
CALL stripe();
SELECT billing.upgrade_subscribers('standard');
CALL stripe();
SELECT metric FROM billing.subscription_items ORDER BY 1;
CALL attempt($$UPDATE billing.metrics SET export = 'file' WHERE name = 'api_calls'$$);
