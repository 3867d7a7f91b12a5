-- Mode file: usage that is not billed by Stripe leaves as files, a line of JSON for each total of an hour (docs/export-files.md).
--
-- The rollup notes the hours it has added to (export_hours). Once an hour is over and rolled up, its total is frozen as the line
-- of a file, in one transaction with the note that it is (export_lines); only then does the worker write the file
-- (worker/export_files.cpp), and only then is it noted as written. So a crash in between has the same file written again, byte
-- for byte, under the same name. What an hour comes to later is another line, with the total that the last one had. The numbers
-- of lines and files rise without gaps.

CREATE FUNCTION billing._install_export_files() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.export_hours (
        tenant_id    text COLLATE "C" NOT NULL,
        metric       text NOT NULL,
        period_start timestamptz NOT NULL,
        hour         timestamptz NOT NULL,
        exported     numeric,                           -- the total in the latest line; null: there is none
        due          boolean NOT NULL DEFAULT true,     -- it was added to since then
        PRIMARY KEY (tenant_id, metric, period_start, hour)
    );
    CREATE INDEX IF NOT EXISTS export_hours_due ON billing.export_hours (hour) WHERE due;
    COMMENT ON TABLE billing.export_hours IS 'the hours of metrics with export = ''file'', and what files say of them';

    CREATE TABLE IF NOT EXISTS billing.export_files (
        number     bigint PRIMARY KEY,          -- from 1, without gaps
        name       text NOT NULL UNIQUE,
        first_seq  bigint NOT NULL,
        last_seq   bigint NOT NULL,
        frozen_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        written_at timestamptz,                 -- null: it is still to be written
        error      text                         -- why the latest attempt was in vain
    );
    CREATE INDEX IF NOT EXISTS export_files_unwritten ON billing.export_files (number) WHERE written_at IS NULL;
    COMMENT ON TABLE billing.export_files IS 'the files that usage has been exported to, or is to be: see docs/export-files.md';

    CREATE TABLE IF NOT EXISTS billing.export_lines (
        tenant_id text COLLATE "C" NOT NULL,
        seq       bigint NOT NULL,              -- from 1, without gaps, over all tenants
        file      bigint NOT NULL REFERENCES billing.export_files,
        line      text NOT NULL,
        PRIMARY KEY (tenant_id, seq)
    );
    CREATE INDEX IF NOT EXISTS export_lines_file ON billing.export_lines (file, seq);
    COMMENT ON TABLE billing.export_lines IS 'what the files hold, frozen';
END $$;

-- Notes the hours that a batch has added to.
CREATE FUNCTION billing._roll_up_exported(batch billing._batch, metrics text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO billing.export_hours (tenant_id, metric, period_start, hour)
    SELECT DISTINCT e.tenant_id, e.metric, e.period_start, date_bin('1 hour', e.occurred_at, 'epoch')
      FROM billing.usage_events e
     WHERE billing._in_batch(e.tick, batch) AND e.metric = ANY (metrics)
    ON CONFLICT ON CONSTRAINT export_hours_pkey DO UPDATE SET due = true;
END $$;

-- Notes an hour that was computed anew, of a unique_count the hours of its period.
CREATE FUNCTION billing._export_hours(tenant_id text, metric text, period_start timestamptz, hour timestamptz) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.export_hours (tenant_id, metric, period_start, hour)
    SELECT a.tenant_id, a.metric, a.period_start, a.hour
      FROM billing.usage_aggregates a JOIN billing.metrics m ON m.name = a.metric AND m.export = 'file'
     WHERE a.tenant_id = $1 AND a.metric = $2 AND a.period_start = $3 AND (a.hour = $4 OR m.aggregation = 'unique_count')
    ON CONFLICT ON CONSTRAINT export_hours_pkey DO UPDATE SET due = true
$$;

-- Freezes what is due as the next file; returns its number, null: nothing is due.
CREATE FUNCTION billing._freeze_export() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most CONSTANT int := 10000;     -- lines of a file
    last billing.export_files;
    lines bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('pg_billing.run_rollup'));   -- no hour is added to between looking and noting
    SELECT * INTO last FROM billing.export_files f ORDER BY f.number DESC LIMIT 1;
    INSERT INTO billing.export_files (number, name, first_seq, last_seq)
    SELECT coalesce(last.number, 0) + 1,
           format('usage-%s-%s.ndjson', s.installation, to_char(coalesce(last.number, 0) + 1, 'FM0000000000')),
           coalesce(last.last_seq, 0) + 1, coalesce(last.last_seq, 0)
      FROM billing.stripe_state s;
    WITH due AS (
        SELECT x.tenant_id, x.metric, x.period_start, x.hour, x.exported, trim_scale(a.quantity) AS total
          FROM billing.export_hours x
          JOIN billing.usage_aggregates a USING (tenant_id, metric, period_start, hour)
         WHERE x.due AND x.hour <= (SELECT s.tail FROM billing.rollup_state s) - interval '1 hour'
         ORDER BY x.hour, x.tenant_id, x.metric, x.period_start LIMIT most
    ), noted AS (
        UPDATE billing.export_hours x SET due = false, exported = d.total FROM due d
         WHERE (x.tenant_id, x.metric, x.period_start, x.hour) = (d.tenant_id, d.metric, d.period_start, d.hour)
    ), changed AS (
        SELECT d.*, coalesce(last.last_seq, 0) + row_number() OVER (ORDER BY d.hour, d.tenant_id, d.metric, d.period_start) AS seq
          FROM due d WHERE d.total IS DISTINCT FROM d.exported
    ), written AS (
        INSERT INTO billing.export_lines (seq, file, tenant_id, line)
        SELECT c.seq, coalesce(last.number, 0) + 1, c.tenant_id,
               (SELECT to_json(l)::text
                  FROM (SELECT c.seq, s.installation AS source, c.tenant_id AS tenant, c.metric, m.unit,
                               billing._iso_time(c.hour) AS hour, billing._iso_time(c.period_start) AS period_start,
                               c.total::text AS total, c.exported::text AS previous) l)
          FROM changed c JOIN billing.metrics m ON m.name = c.metric CROSS JOIN billing.stripe_state s
        RETURNING seq
    )
    SELECT count(*) INTO lines FROM written;
    IF lines = 0 THEN
        DELETE FROM billing.export_files f WHERE f.number = coalesce(last.number, 0) + 1;
        RETURN NULL;
    END IF;
    UPDATE billing.export_files f SET last_seq = f.last_seq + lines WHERE f.number = coalesce(last.number, 0) + 1;
    RETURN coalesce(last.number, 0) + 1;
END $$;

-- The file to write next, in the order of their numbers: one that is frozen already, or else a new one. A copy of the
-- database writes none until it is adopted.
CREATE FUNCTION billing._next_export_file() RETURNS TABLE (number bigint, name text, content text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next bigint;
BEGIN
    IF billing._is_copy() THEN
        RETURN;
    END IF;
    next := coalesce((SELECT min(f.number) FROM billing.export_files f WHERE f.written_at IS NULL), billing._freeze_export());
    RETURN QUERY
    SELECT f.number, f.name, (SELECT string_agg(l.line || E'\n', '' ORDER BY l.seq) FROM billing.export_lines l WHERE l.file = f.number)
      FROM billing.export_files f WHERE f.number = next;
END $$;

-- Notes that a file is written, or why not.
CREATE FUNCTION billing._export_settled(number bigint, error text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE billing.export_files f SET written_at = CASE WHEN $2 IS NULL THEN clock_timestamp() END, error = $2 WHERE f.number = $1
$$;

CREATE FUNCTION billing.rewrite_export_files(number bigint DEFAULT 1) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    files bigint;
BEGIN
    UPDATE billing.export_files f SET written_at = NULL WHERE f.number >= rewrite_export_files.number AND f.written_at IS NOT NULL;
    GET DIAGNOSTICS files = ROW_COUNT;
    PERFORM billing._wake_worker('rollup');
    RETURN files;
END $$;
COMMENT ON FUNCTION billing.rewrite_export_files(bigint) IS
    'has the files of exported usage from that number on (see billing.export_files) written again, as they were; returns how many';
