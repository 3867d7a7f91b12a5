-- The audit log: who changed which tenant's customer, subscription, quotas, credit or prices, and how. It is only ever added to, so it
-- holds no name and no address: those may have to be erased some day.

CREATE FUNCTION billing._install_audit() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $install$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.audit_log (
        tenant_id text COLLATE "C" NOT NULL,
        id        bigint GENERATED ALWAYS AS IDENTITY,
        at        timestamptz NOT NULL,
        actor     name NOT NULL,        -- who had logged in
        role      name,                 -- the role that session had set, if any
        action    text NOT NULL,
        before    jsonb,                -- the row; null: there was none
        after     jsonb,                -- null: there is none any more
        PRIMARY KEY (tenant_id, id)
    );
    COMMENT ON TABLE billing.audit_log IS 'every change of a customer, subscription, quota, credit grant or price of its own; rows are only ever added';

    -- Also of credit_ledger. Not a member of the extension: the tables keep it after DROP EXTENSION.
    CREATE OR REPLACE FUNCTION billing._keep_audit() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        RAISE EXCEPTION 'billing.% is only ever added to: % is refused', TG_TABLE_NAME, TG_OP
            USING ERRCODE = 'UB055', HINT = 'A change that was wrong is followed by another one.';
    END $$;
    REVOKE ALL ON FUNCTION billing._keep_audit() FROM PUBLIC;
    CREATE OR REPLACE TRIGGER keep_audit BEFORE UPDATE OR DELETE OR TRUNCATE ON billing.audit_log
        EXECUTE FUNCTION billing._keep_audit();
    -- in every session, also where session_replication_role is replica
    ALTER TABLE billing.audit_log ENABLE ALWAYS TRIGGER keep_audit;
END $install$;

-- In functions with raised rights current_user is their owner: who called is told by the session.
CREATE FUNCTION billing._audit(tenant_id text, action text, before jsonb, after jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO billing.audit_log (tenant_id, at, actor, role, action, before, after)
    VALUES ($1, billing.now(), session_user, nullif(current_setting('role'), 'none'), $2, $3, $4)
$$;
