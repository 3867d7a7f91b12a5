-- The model: what tenants do, chosen at random from a seed, and what of it has to count. An action and the model's note
-- of it are one transaction, so both are there or neither, whatever is killed; and the model keeps its own figures by its
-- own means, so that verify.sql can compare.
--
-- A tenant's actions come from one session, in order; those of `hot` tenants from all sessions at once. soak.rnd() gives
-- the same number for the same seed and name, whoever asks when.

CREATE SCHEMA soak;
CREATE TABLE soak.run (seed text NOT NULL, clock text NOT NULL, clients int NOT NULL);

CREATE FUNCTION soak.rnd(what text) RETURNS float8 LANGUAGE sql STABLE AS $$
    SELECT ('x' || left(md5(r.seed || '/' || $1), 8))::bit(32)::bigint / 4294967296.0 FROM soak.run r
$$;
CREATE FUNCTION soak.among(what text, VARIADIC choices text[]) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT $2[1 + floor(soak.rnd($1) * cardinality($2))::int]
$$;
CREATE FUNCTION soak.amount(metric text, what text) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT CASE $1 WHEN 'llm_tokens' THEN 1 + floor(soak.rnd($2) ^ 2 * 900000) WHEN 'api_calls' THEN 1 + floor(soak.rnd($2) * 70000)
                   WHEN 'agent_executions' THEN 1 + floor(soak.rnd($2) * 4000) WHEN 'user_seats' THEN 1 + floor(soak.rnd($2) * 20)
                   ELSE round((0.001 + soak.rnd($2) * 80)::numeric, 3) END::numeric
$$;

-- Where the simulated time stands at each step; an unsettled one is left before all is carried out at Stripe.
CREATE TABLE soak.steps (step int PRIMARY KEY, at timestamptz NOT NULL, settled boolean NOT NULL, chaos text);

CREATE TABLE soak.tenants (
    tenant   text PRIMARY KEY,
    client   int NOT NULL,          -- whose actions these are; 0: everybody's
    timezone text NOT NULL,
    stripe   boolean NOT NULL,
    pays     text NOT NULL,         -- invoice: sent one; card: charged; never: is to be charged, and has no card
    joins    int NOT NULL           -- the step in which it is created
);
CREATE TABLE soak.subscriptions (
    tenant   text NOT NULL REFERENCES soak.tenants,
    id       bigint NOT NULL,
    action   bigint NOT NULL,
    plan     text NOT NULL,
    anchor   timestamptz NOT NULL,
    timezone text NOT NULL,
    ends_at  timestamptz,           -- when it ends or has ended
    at_once  boolean,               -- and whether that was asked for at once, not with the period
    PRIMARY KEY (tenant, id)
);
CREATE TABLE soak.actions (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    step    int NOT NULL,
    client  int NOT NULL,
    tenant  text NOT NULL REFERENCES soak.tenants,
    kind    text NOT NULL,
    outcome text                    -- null: not done yet
);
CREATE INDEX ON soak.actions (step, client);
-- Wishes about subscriptions that change something.
CREATE TABLE soak.wishes (
    action bigint NOT NULL REFERENCES soak.actions, tenant text NOT NULL, subscription bigint NOT NULL, kind text NOT NULL,
    plan text, proration text, at timestamptz NOT NULL DEFAULT billing.now()
);
CREATE TABLE soak.audited (tenant text NOT NULL, action text NOT NULL);
CREATE TABLE soak.events (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    step         int NOT NULL,
    action       bigint NOT NULL REFERENCES soak.actions,
    tenant       text NOT NULL,
    subscription bigint,            -- that was in force then
    metric       text NOT NULL,
    quantity     numeric NOT NULL,
    key          text,
    occurred_at  timestamptz NOT NULL,
    period_start timestamptz NOT NULL,
    bound        numeric,           -- of what is only recorded if allowed: the limit then
    voids        bigint             -- the event it takes back
);
CREATE INDEX ON soak.events (tenant, metric);

-- The start of the billing period around a time, by trying all of them.
CREATE FUNCTION soak.period(anchor timestamptz, timezone text, at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT max(s.starts) FROM generate_series(-4, 40) n,
           LATERAL (SELECT ($1 AT TIME ZONE $2 + make_interval(months => n)) AT TIME ZONE $2 AS starts) s
     WHERE s.starts <= $3
$$;
CREATE FUNCTION soak.next_period(anchor timestamptz, timezone text, at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT min(s.starts) FROM generate_series(-4, 40) n,
           LATERAL (SELECT ($1 AT TIME ZONE $2 + make_interval(months => n)) AT TIME ZONE $2 AS starts) s
     WHERE s.starts > $3
$$;

-- The subscription in force. Whether one that is not paid in time has expired only Stripe can tell.
CREATE FUNCTION soak.live(tenant text) RETURNS soak.subscriptions LANGUAGE sql STABLE AS $$
    SELECT s FROM soak.subscriptions s JOIN soak.tenants t USING (tenant)
      JOIN billing.subscriptions b ON b.tenant_id = s.tenant AND b.id = s.id
     WHERE s.tenant = $1 AND (s.ends_at IS NULL OR s.ends_at > billing.now())
       AND (t.pays = 'invoice' OR b.status <> 'incomplete_expired')
$$;

-- When the last subscription before a time had ended; what comes after that begins on no whole second.
CREATE FUNCTION soak.ended(tenant text, at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT max(e.at)
      FROM soak.subscriptions s JOIN billing.subscriptions b ON b.tenant_id = s.tenant AND b.id = s.id,
           LATERAL (SELECT coalesce(s.ends_at, CASE WHEN b.status = 'incomplete_expired' THEN b.ended_at END) AS at) x,
           LATERAL (SELECT x.at + CASE WHEN x.at = date_trunc('second', x.at) THEN interval '1 microsecond' ELSE '0' END AS at) e
     WHERE s.tenant = $1 AND e.at <= $2
$$;

-- Makes the tenants of a run, and its steps: time goes on by a few hours or days, and stands well before the full hour
-- while a step is taken, for Stripe's clock stands still then, and the server's does not.
CREATE PROCEDURE soak.set_up(tenants int, starts timestamptz, ends timestamptz, mean_hours float8)
LANGUAGE plpgsql AS $$
DECLARE
    hour timestamptz := date_trunc('hour', starts, 'UTC');
    now timestamptz := starts;
    before timestamptz := starts;
    step int := 0;
    settled boolean;
BEGIN
    WHILE now < ends LOOP
        settled := step < 2 OR now < soak.period(hour, 'UTC', now) + interval '1 hour' OR soak.rnd('settled' || step) > 0.08;
        INSERT INTO soak.steps VALUES (step, now, settled,
            CASE WHEN step > 1 AND soak.rnd('chaos' || step) < 0.15
                 THEN soak.among('chaos kind' || step, 'worker', 'worker', 'backend', 'server') END);
        now := CASE WHEN settled THEN date_trunc('hour', now, 'UTC') + make_interval(
                        hours => 1 + floor(soak.rnd('gap' || step) * 2 * mean_hours)::int,
                        mins => 1 + floor(soak.rnd('minute' || step) * 44)::int)
                    ELSE date_trunc('hour', now, 'UTC') + interval '61 minutes' END;
        -- the tenants of the first hour have their figures sent when their periods are over
        IF now > soak.next_period(hour, 'UTC', before) + interval '1 hour' THEN
            now := soak.next_period(hour, 'UTC', before) + interval '10 minutes';
        END IF;
        before := now;
        step := step + 1;
    END LOOP;
    UPDATE soak.steps s SET settled = true WHERE s.at = (SELECT max(l.at) FROM soak.steps l);
    INSERT INTO soak.tenants
    SELECT 't' || i, 1 + i % r.clients,
           soak.among('zone' || i, 'UTC', 'Europe/Berlin', 'America/New_York', 'Pacific/Apia', 'Asia/Kathmandu', 'Australia/Lord_Howe',
                      'America/St_Johns', 'Africa/Casablanca'),
           soak.rnd('stripe' || i) < 0.8,
           soak.among('pays' || i, 'invoice', 'invoice', 'invoice', 'invoice', 'invoice', 'card', 'card', 'card', 'card', 'never'),
           -- a third at the month's end, where the run begins, the others in its first half
           CASE WHEN i % 3 = 0 THEN 0 ELSE floor(soak.rnd('joins' || i) * step / 2)::int END
      FROM soak.run r, generate_series(1, tenants) i;
    INSERT INTO soak.tenants SELECT 'hot' || i, 0, 'Europe/Berlin', i = 1, 'invoice', 0 FROM generate_series(1, 2) i;
END $$;

-- What is done in a step: usage, then perhaps a wish, then usage; by a share of the tenants.
CREATE PROCEDURE soak.plan_step(this int, share float8) LANGUAGE sql AS $$
    INSERT INTO soak.actions (step, client, tenant, kind)
    SELECT this, t.client, t.tenant, CASE WHEN slot = 0 THEN 'join'
           WHEN slot = 4 THEN CASE WHEN t.joins = this THEN 'subscribe' ELSE 'wish' END
           ELSE soak.among('use' || name, 'record', 'record', 'record', 'record', 'record', 'keyed', 'keyed', 'keyed', 'again',
                           'batch', 'batch', 'late', 'late', 'rollback', 'void', 'consume', 'level', 'hold', 'quota') END
      FROM soak.tenants t, generate_series(0, 7) slot, format('%s %s %s', t.tenant, this, slot) name
     WHERE t.client > 0 AND t.joins <= this
       AND CASE slot WHEN 0 THEN t.joins = this
                -- not after an unsettled step: of two changes that Stripe gets at one moment of its clock, which stands
                -- still, the first one's time would be none
                WHEN 4 THEN t.joins = this OR soak.rnd('active' || t.tenant || this) < share AND soak.rnd('wish' || name) < 0.4
                            AND (SELECT s.settled FROM soak.steps s WHERE s.step = this - 1)
                ELSE (t.joins = this OR soak.rnd('active' || t.tenant || this) < share) AND soak.rnd('used' || name) < 0.45 END
     ORDER BY t.tenant, slot;
    INSERT INTO soak.actions (step, client, tenant, kind)
    SELECT this, CASE WHEN kind = 'consume' THEN c ELSE 1 END, t.tenant, kind
      FROM soak.tenants t, (VALUES (1, 'join'), (2, 'subscribe'), (3, 'quota'), (4, 'consume')) k (slot, kind), soak.run r,
           generate_series(1, CASE WHEN kind = 'consume' THEN r.clients ELSE 1 END) c,
           generate_series(1, CASE WHEN kind = 'consume' THEN 3 ELSE 1 END) n
     WHERE t.client = 0 AND CASE WHEN kind IN ('join', 'subscribe') THEN this = 0
                                 WHEN kind = 'quota' THEN this = 0 OR soak.rnd(t.tenant || 'quota' || this) < 0.2 ELSE this > 0 END
     ORDER BY slot;
$$;

CREATE FUNCTION soak.check(what text, expected text, result text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF expected IS DISTINCT FROM result THEN
        RAISE EXCEPTION '%: expected %, found %', what, expected, result;
    END IF;
END $$;

-- Notes an event that counts. One that comes late is of the subscription before, if that had the same period as this one's, counted back from its start.
CREATE FUNCTION soak.note(a soak.actions, metric text, quantity numeric, key text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL,
                          bound numeric DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
    INSERT INTO soak.events (step, action, tenant, subscription, metric, quantity, key, occurred_at, period_start, bound)
    SELECT a.step, a.id, t.tenant, coalesce((SELECT max(l.id) FROM soak.subscriptions l WHERE l.tenant = t.tenant AND l.id < s.id AND o.at >= l.anchor AND o.at < l.ends_at
               AND $2 NOT IN ('storage_gb', 'user_seats') AND soak.period(l.anchor, l.timezone, o.at) = soak.period(s.anchor, s.timezone, o.at)), s.id), $2, $3, $4, o.at,
           CASE WHEN $2 IN ('storage_gb', 'user_seats') THEN '-infinity'
                -- the first one may begin a second later than its hour, which a month without a subscription has begun with
                WHEN s.id IS NOT NULL THEN (SELECT greatest(p.starts, CASE WHEN b.starts < p.starts + interval '1 hour' THEN b.starts END)
                     FROM billing.subscriptions b, LATERAL (SELECT soak.period(s.anchor, s.timezone, o.at) AS starts) p
                    WHERE b.tenant_id = t.tenant AND b.id = s.id)
                ELSE greatest(date_trunc('month', o.at, t.timezone), soak.ended(t.tenant, o.at)) END, $6
      FROM soak.tenants t LEFT JOIN soak.live(t.tenant) s ON s.id IS NOT NULL,
           LATERAL (SELECT coalesce($5, billing.now()) AS at) o
     WHERE t.tenant = a.tenant
$$;

CREATE FUNCTION soak.level(tenant text, metric text) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(e.quantity), 0) FROM soak.events e WHERE e.tenant = $1 AND e.metric = $2
$$;

CREATE FUNCTION soak.use(a soak.actions) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    name text := format('%s %s', a.step, a.id);
    what text := CASE WHEN a.tenant LIKE 'hot%' THEN 'agent_executions'
                        ELSE soak.among('metric' || name, 'llm_tokens', 'llm_tokens', 'agent_executions', 'api_calls', 'api_calls',
                                        'storage_gb', 'user_seats') END;
    quantity numeric := soak.amount(what, 'amount' || name);
    key text := 'key ' || a.id;
    then_at timestamptz;
    d billing.decision;
    r billing.reservation;
    e soak.events;
    n int;
BEGIN
    CASE a.kind
    WHEN 'record' THEN
        d := billing.record_usage(a.tenant, what, quantity);
        PERFORM soak.check('record', 'recorded', d.status), soak.note(a, what, quantity);
    WHEN 'keyed' THEN
        d := billing.record_usage(a.tenant, what, quantity, key);
        PERFORM soak.check('keyed', 'recorded', d.status), soak.note(a, what, quantity, key);
    WHEN 'again' THEN       -- a key that is known, or one twice in a transaction
        SELECT * INTO e FROM soak.events x WHERE x.tenant = a.tenant AND x.key IS NOT NULL AND x.voids IS NULL
           AND x.occurred_at > billing.now() - interval '20 days'
         ORDER BY md5(x.id || name) LIMIT 1;
        IF NOT FOUND THEN
            RETURN 'nothing to repeat';
        END IF;
        d := billing.record_usage(a.tenant, e.metric, e.quantity, e.key);
        PERFORM soak.check('again', 'duplicate', d.status);
    WHEN 'batch' THEN
        SELECT count(*) INTO n
          FROM billing.record_usage_batch((
               SELECT jsonb_agg(jsonb_build_object('tenant_id', a.tenant, 'metric', b.metric, 'quantity', b.quantity, 'idempotency_key', b.key,
                                                   'occurred_at', b.at))
                 FROM generate_series(1, 4) i, LATERAL (
                      SELECT CASE WHEN i = 4 THEN 'api_calls' ELSE soak.among('metric' || i || name, 'llm_tokens', 'api_calls') END AS metric,
                             floor(soak.rnd('amount' || i || name) * 20000) AS quantity,
                             format('%s %s', key, least(i, 3)) AS key,      -- the last two are one
                             billing.now() - i * interval '17 minutes' AS at) b)) x
         WHERE x.status = 'recorded';
        PERFORM soak.check('batch', '3', n::text);
        PERFORM soak.note(a, soak.among('metric' || i || name, 'llm_tokens', 'api_calls'), floor(soak.rnd('amount' || i || name) * 20000)::numeric,
                          format('%s %s', key, i), billing.now() - i * interval '17 minutes')
           FROM generate_series(1, 3) i;
    WHEN 'late' THEN        -- never of a gauge, which could fall below zero in between
        IF what IN ('storage_gb', 'user_seats') THEN
            what := 'llm_tokens';
            quantity := floor(quantity);
        END IF;
        then_at := billing.now() - make_interval(secs => soak.rnd('late' || name) ^ 4 * 20 * 86400);
        d := billing.record_usage(a.tenant, what, quantity, key, then_at);
        PERFORM soak.check('late', 'recorded', d.status), soak.note(a, what, quantity, key, then_at);
    WHEN 'rollback' THEN
        BEGIN
            d := billing.record_usage(a.tenant, what, quantity, key);
            RAISE EXCEPTION SQLSTATE 'SOAK0';
        EXCEPTION WHEN SQLSTATE 'SOAK0' THEN
            d := billing.record_usage(a.tenant, what, 1, key);
            PERFORM soak.check('rollback', 'recorded', d.status), soak.note(a, what, 1, key);
        END;
    WHEN 'void' THEN
        SELECT * INTO e FROM soak.events x
         WHERE x.tenant = a.tenant AND x.key IS NOT NULL AND x.occurred_at > billing.now() - interval '25 days'
           AND x.metric NOT IN ('storage_gb', 'user_seats') AND x.voids IS NULL
           AND NOT EXISTS (SELECT FROM soak.events v WHERE v.voids = x.id)
         ORDER BY md5(x.id || name) LIMIT 1;
        IF NOT FOUND THEN
            RETURN 'nothing to take back';
        END IF;
        d := billing.void_usage(a.tenant, e.key, 'soak');
        PERFORM soak.check('void', 'recorded', d.status);
        -- out of the period that the event was counted in, whatever is in force now
        INSERT INTO soak.events (step, action, tenant, subscription, metric, quantity, key, occurred_at, period_start, voids)
        SELECT a.step, a.id, a.tenant, e.subscription, e.metric, -e.quantity, e.key, e.occurred_at, e.period_start, e.id;
    WHEN 'consume' THEN
        IF a.client > 0 AND a.tenant LIKE 'hot%' THEN
            quantity := 1 + floor(soak.rnd('hot' || name) * 30);
        END IF;
        d := billing.try_consume(a.tenant, what, quantity, key);
        IF NOT d.allowed THEN
            RETURN d.reason;
        END IF;
        PERFORM soak.note(a, what, quantity, key, NULL, d.quota * CASE WHEN d.cap = 'soft' THEN 1.2 WHEN d.cap = 'hard' THEN 1 END);
    WHEN 'level' THEN
        what := soak.among('gauge' || name, 'storage_gb', 'user_seats');
        quantity := soak.amount(what, 'level' || name);
        IF quantity <> soak.level(a.tenant, what) THEN
            d := billing.set_usage(a.tenant, what, quantity);
            PERFORM soak.note(a, what, quantity - soak.level(a.tenant, what));
        END IF;
    WHEN 'hold' THEN
        r := billing.reserve(a.tenant, what, quantity, '10 minutes', key);
        IF NOT r.allowed THEN
            RETURN r.reason;
        ELSIF soak.rnd('settle' || name) < 0.7 THEN
            quantity := ceil(quantity / 2);
            PERFORM billing.settle(r.reservation_id, quantity);
            PERFORM soak.note(a, what, quantity, key);
        ELSE
            PERFORM billing.release(r.reservation_id);
        END IF;
    WHEN 'quota' THEN
        IF a.tenant LIKE 'hot%' THEN
            PERFORM billing.set_quota(a.tenant, 'agent_executions', (100 + floor(soak.rnd('quota' || name) * 200))::numeric);
        ELSIF EXISTS (SELECT FROM billing.quota_overrides q WHERE q.tenant_id = a.tenant AND q.metric = what) THEN
            PERFORM billing.clear_quota(a.tenant, what);
            INSERT INTO soak.audited VALUES (a.tenant, 'clear_quota');
            RETURN 'done';
        ELSE
            PERFORM billing.set_quota(a.tenant, what, quantity, soak.among('cap' || name, 'hard', 'soft', 'none'));
        END IF;
        INSERT INTO soak.audited VALUES (a.tenant, 'set_quota');
    END CASE;
    RETURN 'done';
END $$;

CREATE FUNCTION soak.subscribe(a soak.actions, plan text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t soak.tenants;
BEGIN
    SELECT * INTO t FROM soak.tenants x WHERE x.tenant = a.tenant;
    INSERT INTO soak.subscriptions
    SELECT t.tenant, billing.create_subscription(t.tenant, plan, CASE WHEN t.pays = 'invoice' THEN 'send_invoice' ELSE 'charge_automatically' END,
                         CASE WHEN t.pays = 'invoice' THEN 30 END),
           a.id, plan, date_trunc('hour', billing.now(), 'UTC'), CASE WHEN t.stripe THEN 'UTC' ELSE t.timezone END;
    INSERT INTO soak.audited VALUES (a.tenant, 'create_subscription');
END $$;

CREATE FUNCTION soak.cancel(a soak.actions, s soak.subscriptions, at_once boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM billing.cancel_subscription(a.tenant, NOT at_once);
    IF at_once OR s.ends_at IS NULL THEN
        INSERT INTO soak.audited VALUES (a.tenant, 'cancel_subscription');
        INSERT INTO soak.wishes VALUES (a.id, a.tenant, s.id, CASE WHEN at_once THEN 'end' ELSE 'cancel' END);
        UPDATE soak.subscriptions x
           SET ends_at = CASE WHEN cancel.at_once THEN billing.now() ELSE soak.next_period(s.anchor, s.timezone, billing.now()) END,
               at_once = cancel.at_once
         WHERE x.tenant = s.tenant AND x.id = s.id;
    END IF;
END $$;

CREATE FUNCTION soak.change(a soak.actions, s soak.subscriptions, plan text, proration text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM billing.update_subscription(a.tenant, plan, proration);
    IF plan <> (SELECT x.plan FROM soak.subscriptions x WHERE x.tenant = s.tenant AND x.id = s.id) THEN
        INSERT INTO soak.audited VALUES (a.tenant, 'update_subscription');
        INSERT INTO soak.wishes VALUES (a.id, a.tenant, s.id, 'plan', plan, proration);
        UPDATE soak.subscriptions x SET plan = change.plan WHERE x.tenant = s.tenant AND x.id = s.id;
    END IF;
END $$;

CREATE FUNCTION soak.wish(a soak.actions) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    name text := format('%s %s', a.step, a.id);
    plan text := soak.among('plan' || name, 'free', 'standard', 'standard', 'enterprise');
    proration text := soak.among('proration' || name, 'create_prorations', 'create_prorations', 'always_invoice', 'none');
    kind text := soak.among('kind' || name, 'plan', 'plan', 'plan', 'plan', 'twice', 'end', 'end', 'cancel', 'cancel', 'resume', 'resume', 'again');
    s soak.subscriptions := soak.live(a.tenant);
    status text := (SELECT b.status FROM billing.subscriptions b WHERE b.tenant_id = s.tenant AND b.id = s.id);
BEGIN
    IF s.id IS NULL THEN
        IF soak.rnd('try' || name) < 0.1 THEN
            BEGIN
                PERFORM billing.update_subscription(a.tenant, plan);
                PERFORM soak.check('a change without a subscription', 'UB036', 'none');
            EXCEPTION WHEN SQLSTATE 'UB036' THEN
            END;
            RETURN 'refused';
        END IF;
        PERFORM soak.subscribe(a, plan);
        RETURN 'subscribe';
    ELSIF status = 'incomplete' OR (SELECT t.pays = 'never' OR t.pays = 'card' AND status = 'pending' FROM soak.tenants t WHERE t.tenant = a.tenant) THEN
        RETURN 'not before it is paid';
    END IF;
    CASE kind
    WHEN 'plan' THEN PERFORM soak.change(a, s, plan, proration);
    WHEN 'twice' THEN
        PERFORM soak.change(a, s, 'free', 'create_prorations');
        PERFORM soak.change(a, s, plan, proration);
    WHEN 'end' THEN PERFORM soak.cancel(a, s, true);
    WHEN 'switch' THEN
        PERFORM soak.cancel(a, s, true);
        PERFORM soak.subscribe(a, plan);
    WHEN 'cancel' THEN PERFORM soak.cancel(a, s, false);
    WHEN 'resume' THEN
        PERFORM billing.resume_subscription(a.tenant);
        IF s.ends_at IS NOT NULL THEN
            INSERT INTO soak.audited VALUES (a.tenant, 'resume_subscription');
            INSERT INTO soak.wishes VALUES (a.id, a.tenant, s.id, 'resume');
            UPDATE soak.subscriptions x SET ends_at = NULL, at_once = NULL WHERE x.tenant = s.tenant AND x.id = s.id;
        END IF;
    WHEN 'again' THEN
        BEGIN
            PERFORM billing.create_subscription(a.tenant, plan);
            PERFORM soak.check('a second subscription', 'UB031', 'none');
        EXCEPTION WHEN SQLSTATE 'UB031' THEN
        END;
    END CASE;
    RETURN kind;
END $$;

-- Does one action, once.
CREATE FUNCTION soak.perform(action bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    a soak.actions;
    result text;
BEGIN
    SELECT * INTO STRICT a FROM soak.actions x WHERE x.id = action AND x.outcome IS NULL FOR UPDATE;
    -- What Stripe has to say of the tenant's subscription waits until this is done.
    PERFORM FROM billing.subscriptions b WHERE b.tenant_id = a.tenant FOR SHARE;
    IF a.kind = 'join' THEN
        SELECT billing.create_customer(t.tenant, 'Tenant ' || t.tenant, t.tenant || '@example.com', t.timezone, t.stripe, r.clock) INTO result
          FROM soak.tenants t, soak.run r WHERE t.tenant = a.tenant;
        INSERT INTO soak.audited VALUES (a.tenant, 'create_customer');
    ELSIF a.kind = 'subscribe' THEN
        PERFORM soak.subscribe(a, CASE WHEN a.tenant LIKE 'hot%' THEN 'enterprise'
                                       ELSE soak.among('first plan' || a.tenant, 'free', 'standard', 'standard', 'enterprise') END);
        result := 'subscribe';
    ELSIF a.kind = 'wish' THEN
        result := soak.wish(a);
    ELSE
        result := soak.use(a);
    END IF;
    UPDATE soak.actions x SET outcome = result WHERE x.id = a.id;
END $$;

-- Which customers' cards are to be turned in a step, and to what: to one that pays at first, and where a first invoice is open.
CREATE TABLE soak.cards (tenant text PRIMARY KEY, card text NOT NULL);
CREATE FUNCTION soak.turn_cards(step int) RETURNS TABLE (customer text, card text) LANGUAGE sql AS $$
    INSERT INTO soak.cards SELECT t.tenant, 'none' FROM soak.tenants t JOIN billing.billing_customers c ON c.tenant_id = t.tenant
     WHERE t.pays = 'card' AND c.stripe_customer_id IS NOT NULL ON CONFLICT DO NOTHING;
    UPDATE soak.cards k SET card = n.card
      FROM (SELECT o.tenant, CASE WHEN o.card = 'pm_card_visa' AND soak.rnd('card' || o.tenant || $1) < 0.04 THEN 'pm_card_chargeCustomerFail'
                                  WHEN o.card = 'pm_card_chargeCustomerFail' AND soak.rnd('card' || o.tenant || $1) > 0.35 THEN o.card
                                  ELSE 'pm_card_visa' END AS card FROM soak.cards o) n
      JOIN billing.billing_customers c ON c.tenant_id = n.tenant
     WHERE k.tenant = n.tenant
       AND (n.card <> k.card OR EXISTS (SELECT FROM billing.subscriptions s WHERE s.tenant_id = k.tenant AND s.status = 'incomplete'))
    RETURNING c.stripe_customer_id, k.card
$$;

-- Whether Stripe has all there is for it. What waits for a retry is due at once: no time is lost on waiting.
CREATE FUNCTION soak.quiet() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE billing.stripe_outbox o SET not_before = clock_timestamp() WHERE o.state = 'waiting' AND o.not_before > clock_timestamp();
    RETURN NOT EXISTS (SELECT FROM billing.stripe_outbox o WHERE o.state IN ('waiting', 'sending'))
       AND NOT EXISTS (SELECT FROM billing.webhook_events w WHERE w.processed_at IS NULL)
       AND NOT EXISTS (SELECT FROM billing._stripe_due_hours())
       AND NOT EXISTS (SELECT FROM billing.usage_figures f WHERE f.due_at <= billing.now() AND NOT f.blocked)
       AND NOT EXISTS (SELECT FROM billing._stripe_changes());
END $$;
