-- What is told: the events that notifications are made of, each in words for people and as data for programs. They come
-- from triggers (_install_events), so whoever changes a table and however. Another event is another trigger, another branch
-- of _tell_of(), and a name in _notification_events().

CREATE FUNCTION billing._notification_events() RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY['usage.alert', 'cost.alert', 'projection.alert', 'subscription.past_due', 'subscription.canceled',
                 'invoice.finalized', 'invoice.payment_failed', 'stripe.dead_letter', 'test']
$$;

CREATE FUNCTION billing._install_events() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $install$
BEGIN
    -- No member of the extension: the tables keep it after DROP EXTENSION, and then there is nobody to tell.
    CREATE OR REPLACE FUNCTION billing._tell() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF to_regprocedure('billing._tell_of(text,jsonb)') IS NOT NULL
           AND EXISTS (SELECT FROM billing.notification_channels c WHERE c.enabled) THEN
            PERFORM billing._tell_of(TG_ARGV[0], to_jsonb(new));
        END IF;
        RETURN NULL;
    END $$;
    REVOKE ALL ON FUNCTION billing._tell() FROM PUBLIC;
    CREATE OR REPLACE TRIGGER tell AFTER INSERT ON billing.usage_alerts
        FOR EACH ROW EXECUTE FUNCTION billing._tell('alert');
    CREATE OR REPLACE TRIGGER tell_past_due AFTER UPDATE ON billing.subscriptions
        FOR EACH ROW WHEN (old.status <> 'past_due' AND new.status = 'past_due')
        EXECUTE FUNCTION billing._tell('subscription.past_due');
    CREATE OR REPLACE TRIGGER tell_canceled AFTER UPDATE ON billing.subscriptions
        FOR EACH ROW WHEN (old.status <> 'canceled' AND new.status = 'canceled')
        EXECUTE FUNCTION billing._tell('subscription.canceled');
    CREATE OR REPLACE TRIGGER tell_new AFTER INSERT ON billing.invoices
        FOR EACH ROW WHEN (new.finalized_at IS NOT NULL)
        EXECUTE FUNCTION billing._tell('invoice.finalized');
    CREATE OR REPLACE TRIGGER tell_finalized AFTER UPDATE ON billing.invoices
        FOR EACH ROW WHEN (old.finalized_at IS NULL AND new.finalized_at IS NOT NULL)
        EXECUTE FUNCTION billing._tell('invoice.finalized');
    CREATE OR REPLACE TRIGGER tell_payment_failed AFTER UPDATE ON billing.webhook_events
        FOR EACH ROW WHEN (new.type IN ('invoice.payment_failed', 'v1.invoice.payment_failed')
                           AND old.processed_at IS NULL AND new.processed_at IS NOT NULL)
        EXECUTE FUNCTION billing._tell('invoice.payment_failed');
    -- At commit: what is put back in the same transaction is not dead.
    DROP TRIGGER IF EXISTS tell_refused ON billing.stripe_outbox;
    CREATE CONSTRAINT TRIGGER tell_refused AFTER UPDATE ON billing.stripe_outbox DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (old.state <> 'failed' AND new.state = 'failed')
        EXECUTE FUNCTION billing._tell('stripe.dead_letter');
END $install$;

-- Minor units as people write them: with two decimals, but for the currencies that have none or three.
CREATE FUNCTION billing._money(amount numeric, currency text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT concat_ws(' ', round($1 / 10::numeric ^ d.digits, d.digits)::text, upper($2))
      FROM (SELECT CASE WHEN lower($2) = ANY ('{bif,clp,djf,gnf,jpy,kmf,krw,mga,pyg,rwf,ugx,vnd,vuv,xaf,xof,xpf}') THEN 0
                        WHEN lower($2) = ANY ('{bhd,jod,kwd,omr,tnd}') THEN 3 ELSE 2 END) d (digits)
$$;

-- Tells what has happened to a row (as JSON because a table's type cannot be an argument before the table exists).
CREATE FUNCTION billing._tell_of(what text, r jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant text := r ->> 'tenant_id';
    subject text;
    title text;
    message text;
    data jsonb;
    f record;
BEGIN
    CASE what
    WHEN 'alert' THEN
        PERFORM billing._tell_of_alert(r);
        RETURN;
    WHEN 'subscription.past_due', 'subscription.canceled' THEN
        subject := concat_ws('/', r ->> 'id', CASE what WHEN 'subscription.past_due' THEN r ->> 'past_due_since' END);
        title := format('%s: the subscription is %s', tenant, replace(r ->> 'status', '_', ' '));
        message := format('The subscription of %s to plan %s is %s.', tenant, r ->> 'plan', replace(r ->> 'status', '_', ' '));
        data := jsonb_build_object('subscription_id', r -> 'id', 'plan', r -> 'plan', 'status', r -> 'status');
    WHEN 'invoice.finalized' THEN
        IF (r ->> 'finalized_at')::timestamptz < billing.now() - interval '3 days' THEN
            RETURN;     -- an old one that is only now fetched
        END IF;
        subject := r ->> 'stripe_invoice_id';
        title := format('invoice %s over %s', coalesce(r ->> 'number', subject),
                        billing._money((r ->> 'total')::numeric, r ->> 'currency'));
        message := format('For %s there is %s.%s', tenant, title, E'\n' || (r ->> 'hosted_invoice_url'));
        title := format('%s: %s', tenant, title);
        data := jsonb_build_object('stripe_invoice_id', r -> 'stripe_invoice_id', 'number', r -> 'number',
                                   'currency', r -> 'currency', 'total', r -> 'total', 'amount_due', r -> 'amount_due',
                                   'due_date', r -> 'due_date', 'hosted_invoice_url', r -> 'hosted_invoice_url');
    WHEN 'invoice.payment_failed' THEN
        SELECT i.tenant_id, coalesce(i.number, i.stripe_invoice_id) AS number, i.currency, i.amount_remaining INTO f
          FROM billing.invoices i WHERE i.stripe_invoice_id = r ->> 'object_id';
        IF NOT FOUND OR (r ->> 'received_at')::timestamptz < clock_timestamp() - interval '3 days' THEN
            RETURN;     -- nobody's here, or an old one that is looked at once more
        END IF;
        tenant := f.tenant_id;
        subject := r ->> 'id';
        title := format('%s: a payment has failed', tenant);
        message := format('A payment of %s for invoice %s has failed%s.', tenant, f.number,
                          ': ' || billing._money(f.amount_remaining, f.currency) || ' are due');
        data := jsonb_build_object('stripe_invoice_id', r -> 'object_id', 'number', f.number, 'currency', f.currency,
                                   'amount_remaining', f.amount_remaining);
    WHEN 'stripe.dead_letter' THEN
        SELECT count(*) AS refused, bool_or(o.id = (r ->> 'id')::bigint) AS still INTO f
          FROM billing.stripe_outbox o WHERE o.state = 'failed' AND o.retried_at IS NULL;
        IF f.still IS NOT TRUE THEN
            RETURN;
        END IF;
        subject := date_trunc('hour', clock_timestamp(), 'UTC')::text;      -- however many there are: once an hour
        title := 'Stripe has refused a request';
        message := format(E'Stripe has refused %s %s%s: %s\nIn billing.stripe_dead_letter: %s.', r ->> 'method', r ->> 'path',
                          ' of ' || nullif(tenant, ''), r ->> 'error', f.refused);
        data := jsonb_build_object('of_tenant', nullif(tenant, ''), 'kind', r -> 'kind', 'error', r -> 'error',
                                   'dead_letter', f.refused);
        tenant := NULL;     -- the operator's business
    END CASE;
    PERFORM billing._notify(what, tenant, subject, title, message, data);
END $$;

CREATE FUNCTION billing._tell_of_alert(a jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant text := a ->> 'tenant_id';
    kind text := a ->> 'kind';
    threshold numeric := trim_scale((a ->> 'threshold')::numeric);
    used numeric := trim_scale(round((a ->> 'used')::numeric, 3));
    quota numeric := trim_scale((a ->> 'quota')::numeric);
    verb text := CASE WHEN kind LIKE 'projected%' THEN 'expected' ELSE 'reached' END;
    named text := (SELECT m.display_name FROM billing.metrics m WHERE m.name = a ->> 'metric');
    currency text;
    title text;
    message text;
BEGIN
    IF kind IN ('cost', 'projected_cost') THEN
        SELECT p.terms ->> 'currency' INTO currency
          FROM billing.subscriptions s JOIN LATERAL billing._prices_of(s.tenant_id, s.plan, s.plan_version) p ON p.metric IS NULL
         WHERE s.tenant_id = tenant AND s.status NOT IN ('canceled', 'incomplete_expired');
        title := format('%s: %s of %s %s', tenant, coalesce('cost of ' || named, 'invoice'),
                        billing._money(threshold, currency), verb);
        message := format('%s of %s %s %s.', coalesce('The cost of ' || named, 'The upcoming invoice'), tenant,
                          CASE verb WHEN 'reached' THEN 'comes to' ELSE 'is expected to come to' END,
                          billing._money((a ->> 'used')::numeric, currency));
    ELSE
        title := format('%s: %s%s%s %s', tenant, threshold,
                        CASE WHEN kind LIKE '%percent' THEN ' % of the quota of ' ELSE ' ' END, named, verb);
        message := format('%s of %s: %s%s %s.', named, tenant, used,
                          ' (' || round(100 * used / quota, 1) || ' % of the quota of ' || quota || ')',
                          CASE verb WHEN 'reached' THEN 'in this billing period'
                                    ELSE 'expected at the end of this billing period' END);
    END IF;
    PERFORM billing._notify(
        CASE WHEN verb = 'expected' THEN 'projection.alert' WHEN kind = 'cost' THEN 'cost.alert' ELSE 'usage.alert' END,
        tenant, concat_ws('/', a ->> 'metric', extract(epoch FROM (a ->> 'period_start')::timestamptz), kind, threshold),
        title, message,
        jsonb_build_object('metric', nullif(a ->> 'metric', ''), 'kind', kind, 'threshold', threshold, 'used', used,
                           'quota', quota, 'currency', currency, 'period_start', a -> 'period_start'));
END $$;
