-- Credits: prepaid or promotional money that pays for metered usage before the tenant does. Money is in minor units.
--
-- credit_ledger is only ever added to, and what a grant has left is the sum of its entries: credit_grants.balance is
-- that sum, kept by _credit_entry() alone, and never below zero, so credit cannot be spent twice. Whoever takes from a
-- tenant's grants locks its live subscription first and the grants then (_lock_credits), so that a period's end, a void
-- and an expiry follow each other. How credit is spent, expires and rolls over: sql/credits_apply.sql. Of a tenant that
-- is billed through Stripe it is Stripe that spends it: sql/stripe_credits.sql.

CREATE FUNCTION billing._install_credits() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.credit_grants (
        tenant_id          text COLLATE "C" NOT NULL REFERENCES billing.billing_customers,
        id                 bigint GENERATED ALWAYS AS IDENTITY,
        name               text,
        amount             numeric NOT NULL CHECK (amount > 0),
        balance            numeric NOT NULL DEFAULT 0,  -- the sum of its entries in credit_ledger
        currency           text NOT NULL CHECK (currency ~ '^[a-z]{3}$'),
        category           text NOT NULL CHECK (category IN ('paid', 'promotional')),
        priority           int NOT NULL CHECK (priority BETWEEN 0 AND 100),
        metrics            text[],          -- whose usage it pays for; null: any
        created_at         timestamptz NOT NULL,
        expires_at         timestamptz,
        rollover_max       numeric CHECK (rollover_max > 0),    -- what of an expired rest begins anew; null: nothing
        rollover_for       interval,        -- for how long that is valid; null: as long as this one
        rollover_times     int CHECK (rollover_times >= 0),     -- how often still
        rolled_over_from   bigint,
        idempotency_key    text,
        voided_at          timestamptz,     -- when it was asked for; the entry follows once Stripe has carried it out
        void_reason        text,
        stripe_grant_id    text,
        stripe_voided_at   timestamptz,
        stripe_checked_at  timestamptz,     -- when its transactions at Stripe were looked at last
        stripe_stale_since timestamptz,     -- since when Stripe may have some that are not here (machine time)
        PRIMARY KEY (tenant_id, id),
        CONSTRAINT credit_is_not_overdrawn CHECK (balance >= 0)
    );
    CREATE UNIQUE INDEX IF NOT EXISTS credit_grants_key ON billing.credit_grants (tenant_id, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE UNIQUE INDEX IF NOT EXISTS credit_grants_stripe ON billing.credit_grants (tenant_id, stripe_grant_id)
        WHERE stripe_grant_id IS NOT NULL;
    CREATE INDEX IF NOT EXISTS credit_grants_id ON billing.credit_grants (id);
    CREATE INDEX IF NOT EXISTS credit_grants_open ON billing.credit_grants (tenant_id) WHERE balance > 0;
    CREATE INDEX IF NOT EXISTS credit_grants_due ON billing.credit_grants (expires_at) WHERE balance > 0;
    CREATE INDEX IF NOT EXISTS credit_grants_stale ON billing.credit_grants (tenant_id) WHERE stripe_stale_since IS NOT NULL;
    COMMENT ON TABLE billing.credit_grants IS 'money granted to a tenant for metered usage: how much, for what, until when, and what is left of it';

    CREATE TABLE IF NOT EXISTS billing.credit_ledger (
        tenant_id             text COLLATE "C" NOT NULL,
        id                    bigint GENERATED ALWAYS AS IDENTITY,
        grant_id              bigint NOT NULL,
        kind                  text NOT NULL CHECK (kind IN ('granted', 'applied', 'reversed', 'voided', 'expired', 'rolled_over')),
        amount                numeric NOT NULL,     -- what it adds to the grant's balance
        at                    timestamptz NOT NULL,
        metric                text,                 -- of one applied here: what it paid for …
        period_start          timestamptz,          -- … and of which billing period
        stripe_invoice_id     text,                 -- of one applied at Stripe: to which invoice …
        stripe_line_id        text,                 -- … and which of its lines
        stripe_transaction_id text,
        reason                text,
        PRIMARY KEY (tenant_id, id),
        FOREIGN KEY (tenant_id, grant_id) REFERENCES billing.credit_grants,
        CHECK (CASE WHEN kind IN ('granted', 'reversed') THEN amount > 0 ELSE amount < 0 END)
    );
    -- once at a period's end here, once per transaction of Stripe's
    CREATE UNIQUE INDEX IF NOT EXISTS credit_ledger_applied ON billing.credit_ledger (tenant_id, metric, period_start, grant_id, at)
        WHERE kind = 'applied' AND stripe_transaction_id IS NULL;
    CREATE UNIQUE INDEX IF NOT EXISTS credit_ledger_stripe ON billing.credit_ledger (tenant_id, stripe_transaction_id, kind)
        WHERE stripe_transaction_id IS NOT NULL;
    CREATE INDEX IF NOT EXISTS credit_ledger_grant ON billing.credit_ledger (tenant_id, grant_id);
    CREATE INDEX IF NOT EXISTS credit_ledger_invoice ON billing.credit_ledger (tenant_id, stripe_invoice_id)
        WHERE stripe_invoice_id IS NOT NULL;
    COMMENT ON TABLE billing.credit_ledger IS 'every change of a credit grant''s balance; rows are only ever added';

    CREATE OR REPLACE TRIGGER keep_audit BEFORE UPDATE OR DELETE OR TRUNCATE ON billing.credit_ledger
        EXECUTE FUNCTION billing._keep_audit();
    ALTER TABLE billing.credit_ledger ENABLE ALWAYS TRIGGER keep_audit;
END $$;

-- Makes an entry, unless it is there already: one that Stripe's transaction led to, or the same period's.
CREATE FUNCTION billing._credit_entry(tenant text, credit_grant bigint, kind text, amount numeric, at timestamptz,
                                      metric text DEFAULT NULL, period_start timestamptz DEFAULT NULL,
                                      stripe_transaction jsonb DEFAULT NULL, reason text DEFAULT NULL)
RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH entry AS (
        INSERT INTO billing.credit_ledger (tenant_id, grant_id, kind, amount, at, metric, period_start, stripe_invoice_id,
                                           stripe_line_id, stripe_transaction_id, reason)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8 ->> 'invoice', $8 ->> 'invoice_line_item', $8 ->> 'id', $9 WHERE $4 <> 0
        ON CONFLICT DO NOTHING
        RETURNING amount
    ), changed AS (
        UPDATE billing.credit_grants g SET balance = g.balance + e.amount FROM entry e WHERE g.tenant_id = $1 AND g.id = $2
    )
    SELECT EXISTS (SELECT FROM entry)
$$;

-- Until the end of the transaction nobody else takes from a tenant's grants. What its periods that are over have used of
-- them is taken before.
CREATE FUNCTION billing._lock_credits(tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM billing.subscriptions s
      WHERE s.tenant_id = tenant AND s.status NOT IN ('canceled', 'incomplete_expired') FOR UPDATE;
    PERFORM billing._advance_periods(tenant);
    PERFORM FROM billing.credit_grants g WHERE g.tenant_id = tenant AND g.balance > 0 ORDER BY g.id FOR NO KEY UPDATE;
END $$;

-- The currency that a tenant is billed in, or was granted credit in last; null: neither.
CREATE FUNCTION billing._credit_currency(tenant text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT w.terms ->> 'currency'
                       FROM billing.subscriptions s
                       JOIN LATERAL billing._prices_of(s.tenant_id, s.plan, s.plan_version) w ON w.metric IS NULL
                      WHERE s.tenant_id = $1 AND s.status NOT IN ('canceled', 'incomplete_expired')),
                    (SELECT g.currency FROM billing.credit_grants g WHERE g.tenant_id = $1 ORDER BY g.id DESC LIMIT 1))
$$;

CREATE FUNCTION billing.grant_credit(tenant_id text, amount numeric, currency text DEFAULT NULL,
                                     category text DEFAULT 'paid', priority int DEFAULT 50,
                                     expires_at timestamptz DEFAULT NULL, metrics text[] DEFAULT NULL,
                                     rollover_max numeric DEFAULT NULL, rollover_for interval DEFAULT NULL,
                                     rollover_times int DEFAULT NULL, name text DEFAULT NULL,
                                     idempotency_key text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong text;
    hint text;
    g billing.credit_grants;
    through_stripe boolean;
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    currency := coalesce(currency, billing._credit_currency(tenant_id));
    expires_at := date_trunc('second', expires_at);     -- as Stripe keeps times
    CASE
    WHEN (amount > 0 AND amount < 1e12 AND amount = trunc(amount)) IS NOT TRUE THEN
        wrong := format('an amount of %s', amount);
        hint := 'It is a whole number of minor units (cents) from 1 to 999999999999.';
    WHEN currency IS NULL THEN
        wrong := format('credit without a currency, of tenant "%s", who has no subscription,', tenant_id);
        hint := 'Name the currency.';
    WHEN currency !~ '^[a-z]{3}$' THEN
        wrong := format('currency "%s"', left(currency, 64));
        hint := 'Use an ISO code in lower case, such as usd.';
    WHEN (category IN ('paid', 'promotional')) IS NOT TRUE THEN
        wrong := format('category "%s"', left(category, 64));
        hint := 'Use paid or promotional.';
    WHEN (priority BETWEEN 0 AND 100) IS NOT TRUE THEN
        wrong := format('priority %s', priority);
        hint := 'It is a number from 0, which is spent first, to 100.';
    WHEN expires_at <= billing.now() OR NOT isfinite(expires_at) THEN
        wrong := format('an expiry at %s', expires_at);
        hint := 'It has to be in the future; null: never.';
    WHEN metrics = '{}' OR array_position(metrics, NULL) IS NOT NULL THEN
        wrong := format('the list of metrics %s', metrics);
        hint := 'Name at least one; null: all that are metered.';
    WHEN (rollover_max > 0 AND rollover_max < 1e12 AND rollover_max = trunc(rollover_max)) IS FALSE
         OR rollover_max IS NOT NULL AND expires_at IS NULL OR rollover_for <= interval '0' OR rollover_times < 1
         OR rollover_max IS NULL AND (rollover_for IS NOT NULL OR rollover_times IS NOT NULL) THEN
        wrong := format('a rollover of %s, %s times, for %s, with an expiry at %s', rollover_max, rollover_times, rollover_for, expires_at);
        hint := 'Credit that expires may roll over up to rollover_max, whole minor units, for a time (null: its own) and once or more often.';
    WHEN name = '' OR length(name) > 100 THEN
        wrong := format('the name "%s"', left(name, 64));
        hint := 'It has 1 to 100 characters.';
    ELSE
        NULL;
    END CASE;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '% is not valid', wrong USING ERRCODE = 'UB032', HINT = hint;
    END IF;
    IF octet_length(idempotency_key) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'idempotency key of % bytes is not valid', octet_length(idempotency_key)
            USING ERRCODE = 'UB023', HINT = 'A key has 1 to 255 bytes.';
    END IF;
    PERFORM billing._check_metric(m) FROM unnest(metrics) m;
    PERFORM billing._lock_credits(tenant_id);

    INSERT INTO billing.credit_grants AS x (tenant_id, name, amount, currency, category, priority, metrics, created_at,
            expires_at, rollover_max, rollover_for, rollover_times, idempotency_key)
    VALUES (grant_credit.tenant_id, grant_credit.name, grant_credit.amount, grant_credit.currency, grant_credit.category,
            grant_credit.priority, (SELECT array_agg(DISTINCT m ORDER BY m) FROM unnest(grant_credit.metrics) m),
            date_trunc('second', billing.now()), grant_credit.expires_at, grant_credit.rollover_max, grant_credit.rollover_for,
            CASE WHEN grant_credit.rollover_max IS NOT NULL THEN coalesce(grant_credit.rollover_times, 1) END,
            grant_credit.idempotency_key)
    ON CONFLICT DO NOTHING
    RETURNING x.* INTO g;
    IF NOT FOUND THEN
        SELECT * INTO STRICT g FROM billing.credit_grants x
         WHERE x.tenant_id = grant_credit.tenant_id AND x.idempotency_key = grant_credit.idempotency_key;
        IF (g.amount, g.currency, g.category) <> (amount, currency, category) THEN
            RAISE EXCEPTION 'idempotency key "%" is that of another credit grant: % % %', left(idempotency_key, 64),
                    g.amount, g.currency, g.category
                USING ERRCODE = 'UB092', HINT = 'Repeat a grant with the same arguments; use another key for another one.';
        END IF;
        RETURN g.id;
    END IF;
    SELECT c.stripe INTO through_stripe FROM billing.billing_customers c WHERE c.tenant_id = g.tenant_id;
    IF through_stripe AND (SELECT count(*) FROM billing.credit_grants x WHERE x.tenant_id = g.tenant_id AND x.balance > 0) >= 100 THEN
        RAISE EXCEPTION 'tenant "%" has 100 credit grants that are not used up', g.tenant_id
            USING ERRCODE = 'UB093', HINT = 'Stripe keeps no more; void some of them.';
    END IF;
    PERFORM billing._credit_entry(g.tenant_id, g.id, 'granted', g.amount, g.created_at);
    PERFORM billing._audit(g.tenant_id, 'grant_credit', NULL, to_jsonb(x))
       FROM billing.credit_grants x WHERE x.tenant_id = g.tenant_id AND x.id = g.id;
    IF through_stripe THEN
        PERFORM billing._wake_worker('stripe');
    END IF;
    RETURN g.id;
END $$;
COMMENT ON FUNCTION billing.grant_credit(text, numeric, text, text, int, timestamptz, text[], numeric, interval, int, text, text) IS
    'grants a tenant credit (amount in minor units; currency null: that of its plan) that pays for metered usage, of some metrics or of all, before the tenant does: lower priority numbers first, then what expires sooner, then what is older. Of what expires unused, up to rollover_max begins anew. Returns the grant''s id; the same idempotency key grants once. Raises UB010, UB011, UB023, UB032, UB040, UB092, UB093';

CREATE FUNCTION billing.void_credit(grant_id bigint, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was billing.credit_grants;
    g billing.credit_grants;
BEGIN
    SELECT * INTO g FROM billing.credit_grants x WHERE x.id = grant_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown credit grant %', grant_id
            USING ERRCODE = 'UB090', HINT = 'billing.get_credit_grants() lists a tenant''s.';
    END IF;
    PERFORM billing._check_bound(g.tenant_id);
    IF coalesce(reason, '') = '' THEN
        RAISE EXCEPTION 'credit is not voided without a reason'
            USING ERRCODE = 'UB032', HINT = 'Say why: it is kept in billing.credit_ledger.';
    END IF;
    PERFORM billing._lock_credits(g.tenant_id);
    SELECT * INTO was FROM billing.credit_grants x WHERE x.tenant_id = g.tenant_id AND x.id = grant_id;
    IF was.voided_at IS NOT NULL THEN
        RETURN;
    ELSIF was.balance = 0 THEN
        RAISE EXCEPTION 'nothing is left of credit grant %', grant_id
            USING ERRCODE = 'UB091', HINT = 'billing.get_credit_ledger() tells where it went.';
    END IF;
    UPDATE billing.credit_grants x SET voided_at = billing.now(), void_reason = reason
     WHERE x.tenant_id = was.tenant_id AND x.id = was.id
    RETURNING * INTO g;
    PERFORM billing._audit(g.tenant_id, 'void_credit', to_jsonb(was), to_jsonb(g));
    -- A request that was never sent is not sent any more; Stripe confirms what it knows of.
    DELETE FROM billing.stripe_outbox o
     WHERE o.tenant_id = g.tenant_id AND o.kind = 'credit_grant_create' AND o.subject = g.id::text
       AND o.state = 'waiting' AND o.attempts = 0;
    IF billing._credit_is_here(g.tenant_id, g.id) THEN
        PERFORM billing._credit_entry(g.tenant_id, g.id, 'voided', -g.balance, g.voided_at, reason => void_credit.reason);
    ELSE
        PERFORM billing._wake_worker('stripe');
    END IF;
END $$;
COMMENT ON FUNCTION billing.void_credit(bigint, text) IS
    'takes back what is left of a credit grant: it pays for nothing more from now on, and rolls over to none. Raises UB032, UB040, UB090, UB091';

-- Whether a grant is spent here: Stripe does not have it, and no request may have made it there.
CREATE FUNCTION billing._credit_is_here(tenant text, credit_grant bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT g.stripe_grant_id IS NULL AND billing._stripe_free($1, 'credit_grant_create', $2::text)
           AND billing._stripe_free($1, 'credit_grant_find', $2::text)
      FROM billing.credit_grants g WHERE g.tenant_id = $1 AND g.id = $2
$$;

-- The readers run with the caller's rights: row-level security decides whose credit is seen.
CREATE FUNCTION billing.get_credit_balance(tenant_id text, currency text DEFAULT NULL) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    RETURN (SELECT coalesce(sum(g.balance), 0) FROM billing.credit_grants g
             WHERE g.tenant_id = get_credit_balance.tenant_id AND g.balance > 0 AND g.voided_at IS NULL
               AND (g.expires_at > billing.now()) IS NOT FALSE
               AND g.currency = coalesce(get_credit_balance.currency, billing._credit_currency(get_credit_balance.tenant_id)));
END $$;
COMMENT ON FUNCTION billing.get_credit_balance(text, text) IS
    'returns what a tenant has left of its credit in a currency (null: that of its plan), in minor units. Raises UB010, UB040';

CREATE FUNCTION billing.get_credit_grants(tenant_id text)
RETURNS TABLE (grant_id bigint, name text, status text, amount numeric, balance numeric, currency text, category text,
               priority int, metrics text[], created_at timestamptz, expires_at timestamptz, rollover_max numeric,
               rolled_over_from bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    RETURN QUERY
    SELECT g.id, g.name, s.status, g.amount, g.balance, g.currency, g.category, g.priority, g.metrics, g.created_at,
           g.expires_at, g.rollover_max, g.rolled_over_from
      FROM billing.credit_grants g,
           LATERAL (SELECT CASE WHEN g.voided_at IS NOT NULL THEN 'voided' WHEN g.expires_at <= billing.now() THEN 'expired'
                                WHEN g.balance > 0 THEN 'active' ELSE 'used' END) s (status)
     WHERE g.tenant_id = get_credit_grants.tenant_id
     ORDER BY s.status <> 'active', g.priority, g.expires_at, g.created_at, g.id;
END $$;
COMMENT ON FUNCTION billing.get_credit_grants(text) IS
    'returns a tenant''s credit grants, in the order in which they are spent, and then those that are no more: used, expired or voided. Raises UB010, UB040';

CREATE FUNCTION billing.get_credit_ledger(tenant_id text)
RETURNS TABLE (at timestamptz, grant_id bigint, kind text, amount numeric, balance numeric, currency text, metric text,
               period_start timestamptz, stripe_invoice_id text, reason text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing._check_tenant(tenant_id);
    RETURN QUERY
    SELECT e.at, e.grant_id, e.kind, e.amount, sum(e.amount) OVER (PARTITION BY g.currency ORDER BY e.id), g.currency,
           coalesce(e.metric, l.metric), coalesce(e.period_start, l.period_start), e.stripe_invoice_id, e.reason
      FROM billing.credit_ledger e
      JOIN billing.credit_grants g ON g.tenant_id = e.tenant_id AND g.id = e.grant_id
      LEFT JOIN billing.invoice_lines l ON l.tenant_id = e.tenant_id AND l.stripe_invoice_id = e.stripe_invoice_id
                                       AND l.stripe_line_id = e.stripe_line_id
     WHERE e.tenant_id = get_credit_ledger.tenant_id
     ORDER BY e.id;
END $$;
COMMENT ON FUNCTION billing.get_credit_ledger(text) IS
    'returns every change of a tenant''s credit in the order in which they became known, with the balance after each; amounts in minor units. Raises UB010, UB040';
