\echo Use "CREATE EXTENSION pg_billing" to load this file. \quit

-- The schema is not a member of the extension: it holds the tables, which outlive DROP EXTENSION. A schema that
-- somebody else made beforehand could hold objects that capture ours, so it must belong to a superuser.
DO $$
BEGIN
    IF NOT (SELECT r.rolsuper
              FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
             WHERE n.nspname = 'billing') THEN
        RAISE EXCEPTION 'schema billing exists and is not owned by a superuser'
            USING ERRCODE = 'duplicate_schema',
                  HINT = 'Rename or drop that schema, or give it to a superuser after checking what is in it.';
    END IF;
END $$;

-- Conventions: a name that starts with an underscore is private. Times of business events come from billing.now();
-- leases, retries and time-outs use the machine's clock_timestamp().
