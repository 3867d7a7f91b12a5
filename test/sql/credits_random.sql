-- Credit at random: grants, voids, usage, ends of periods and of subscriptions, over two years of four tenants. The ledger
-- recomputes every balance, what a period takes is what its upcoming invoice told, and no money appears or is lost.
-- A failure shows the seed; CREDITS_SEED=… runs it again.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
\set seed `echo "$CREDITS_SEED"`
\set QUIET on
SELECT set_config('test.seed', coalesce(nullif(:'seed', ''), any_seed::text), false) FROM floor(random() * 32768) any_seed \g /dev/null
DO $$ BEGIN RAISE LOG 'credit at random, seed %', current_setting('test.seed'); END $$;
SELECT FROM generate_series(1, 4) n, billing.create_customer('t' || n, 't', 'a@a.example', stripe => false) \g /dev/null
CREATE TABLE told (tenant_id text, period_start timestamptz, metric text, grant_id bigint, amount numeric);

CREATE FUNCTION any_of(n int) RETURNS int LANGUAGE sql VOLATILE AS $$ SELECT floor(random() * n)::int $$;
-- What has gone wrong; no row if nothing.
CREATE FUNCTION faults() RETURNS TABLE (fault text, tenant text, grant_id bigint, is_so numeric, should_be numeric)
LANGUAGE sql STABLE AS $$
    SELECT 'balance', g.tenant_id, g.id, g.balance, coalesce(sum(e.amount), 0) FROM billing.credit_grants g
      LEFT JOIN billing.credit_ledger e ON e.tenant_id = g.tenant_id AND e.grant_id = g.id
     GROUP BY g.tenant_id, g.id HAVING g.balance <> coalesce(sum(e.amount), 0) OR g.balance NOT BETWEEN 0 AND g.amount
    UNION ALL
    SELECT 'granted', g.tenant_id, g.id, g.amount, coalesce(sum(e.amount), 0) FROM billing.credit_grants g
      LEFT JOIN billing.credit_ledger e ON e.tenant_id = g.tenant_id AND e.grant_id = g.id AND e.kind = 'granted'
     GROUP BY g.tenant_id, g.id HAVING g.amount <> coalesce(sum(e.amount), 0)
    UNION ALL
    SELECT 'rolled over', g.tenant_id, g.id, -e.amount, s.amount FROM billing.credit_ledger e
      JOIN billing.credit_grants g ON g.tenant_id = e.tenant_id AND g.id = e.grant_id
      LEFT JOIN billing.credit_grants s ON s.tenant_id = g.tenant_id AND s.rolled_over_from = g.id
     WHERE e.kind = 'rolled_over' AND (-e.amount, true) IS DISTINCT FROM (s.amount, -e.amount <= g.rollover_max)
    UNION ALL
    SELECT 'reader', c.tenant_id, NULL, billing.get_credit_balance(c.tenant_id, 'usd'), l.left_over FROM billing.billing_customers c,
           LATERAL (SELECT coalesce(sum(e.amount), 0) AS left_over FROM billing.get_credit_ledger(c.tenant_id) e
                      JOIN billing.get_credit_grants(c.tenant_id) g USING (grant_id) WHERE g.status IN ('active', 'used')) l
     WHERE billing.get_credit_balance(c.tenant_id, 'usd') <> l.left_over
    UNION ALL
    SELECT 'not ended', g.tenant_id, g.id, g.balance, 0 FROM billing.credit_grants g
     WHERE g.balance > 0 AND (g.voided_at IS NOT NULL OR g.expires_at <= billing.now())
    UNION ALL
    SELECT 'applied to ' || coalesce(t.metric, e.metric), coalesce(t.tenant_id, e.tenant_id), coalesce(t.grant_id, e.grant_id), -e.amount, t.amount
      FROM told t FULL JOIN (SELECT * FROM billing.credit_ledger x WHERE x.kind = 'applied') e
        ON (e.tenant_id, e.period_start, e.metric, e.grant_id) = (t.tenant_id, t.period_start, t.metric, t.grant_id)
     WHERE -e.amount IS DISTINCT FROM t.amount
$$;

-- What the periods that end next take, if nothing more happens.
CREATE FUNCTION tell(ends timestamptz) RETURNS void LANGUAGE sql AS $$
    INSERT INTO told
    SELECT s.tenant_id, s.current_period_start, i.metric, g.grant_id, -i.amount
      FROM billing.subscriptions s, billing.get_upcoming_invoice(s.tenant_id) i, billing.get_credit_grants(s.tenant_id) g
     WHERE s.status = 'active' AND s.current_period_end = ends AND i.kind = 'credit' AND g.name = i.description AND g.balance > 0
$$;

-- Moves time from one end of a grant or of a period to the next, and has each noticed by the rollup.
CREATE PROCEDURE pass(days int) LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := billing.now() + days * interval '1 day';
    next_end timestamptz;
BEGIN
    LOOP
        SELECT least(until, (SELECT min(g.expires_at) FROM billing.credit_grants g WHERE g.balance > 0),
                     (SELECT min(s.current_period_end) FROM billing.subscriptions s WHERE s.status = 'active')) INTO next_end;
        PERFORM tell(next_end);
        COMMIT;
        CALL travel(greatest(next_end - billing.now(), '0') + interval '1 s');
        PERFORM billing.run_rollup();
        COMMIT;
        EXIT WHEN billing.now() >= until;
    END LOOP;
END $$;

CREATE PROCEDURE live(steps int) LANGUAGE plpgsql AS $$
DECLARE
    tenant text;
    victim bigint;
    ends interval;
    wrong record;
BEGIN
    PERFORM setseed((current_setting('test.seed')::int % 32768) / 32768.0);
    FOR step IN 1 .. steps LOOP
        tenant := 't' || 1 + any_of(4);
        CASE
        WHEN NOT EXISTS (SELECT FROM billing.subscriptions s WHERE s.tenant_id = tenant AND s.status = 'active') THEN
            PERFORM billing.create_subscription(tenant, (ARRAY['standard', 'enterprise'])[1 + any_of(2)]);
        WHEN random() < 0.4 THEN
            PERFORM billing.record_usage(tenant, m.metric, ceil((m.allowance * random() * 3)::numeric), step || m.metric)
               FROM billing.plan_metrics m WHERE m.plan = 'standard' AND m.metric IN ('llm_tokens', 'agent_executions', 'api_calls');
        WHEN random() < 0.4 THEN
            ends := CASE WHEN random() < 0.7 THEN any_of(60) * interval '1 day' + interval '1 s' END;
            PERFORM billing.grant_credit(tenant, 1 + any_of(100000), 'usd', priority => any_of(3), name => 'grant ' || step, expires_at => billing.now() + ends,
                        metrics => CASE WHEN random() < 0.3 THEN ARRAY[(ARRAY['llm_tokens', 'agent_executions', 'api_calls'])[1 + any_of(3)]] END,
                        rollover_max => CASE WHEN ends IS NOT NULL AND random() < 0.5 THEN 1 + any_of(50000) END);
        WHEN random() < 0.15 THEN
            SELECT g.id INTO victim FROM billing.credit_grants g
             WHERE g.tenant_id = tenant AND g.balance > 0 AND g.voided_at IS NULL ORDER BY random() LIMIT 1;
            PERFORM billing.void_credit(victim, 'at random') WHERE victim IS NOT NULL;
        WHEN random() < 0.05 THEN
            PERFORM billing.cancel_subscription(tenant);
        ELSE
            CALL pass(any_of(27));
        END CASE;
        COMMIT;
        SELECT * INTO wrong FROM faults() LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'seed %, step %: % of tenant %, grant %, is % and should be %', current_setting('test.seed'), step,
                wrong.fault, wrong.tenant, wrong.grant_id, wrong.is_so, wrong.should_be;
        END IF;
    END LOOP;
END $$;
CALL live(400);
\set QUIET off
SELECT bool_and(n > 5) AS much_happened, count(*) FROM (SELECT kind, count(*) AS n FROM billing.credit_ledger GROUP BY 1) x;
SELECT count(*) > 3 AS some_periods FROM (SELECT DISTINCT tenant_id, period_start FROM told) x;
-- conservation: all that was granted is spent, gone, or left
SELECT sum(amount) FILTER (WHERE kind = 'granted') = (SELECT sum(balance) FROM billing.credit_grants) - sum(amount) FILTER (WHERE kind <> 'granted') AS conserved
  FROM billing.credit_ledger;
