-- Tenants are walled off from each other: by role mapping, which nothing in a session can change; by
-- pg_billing.tenant_id for those who are trusted with it.
BEGIN;
SELECT * FROM no_plan();     -- one test per table: as many as there are
SET client_min_messages = warning;

-- Two tenants with rows in every table that has a tenant.
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_subscription(t, 'free') \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.set_quota(t, 'user_seats', 100) \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.set_quota(t, 'api_calls', 100, per => 'day') \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_alert('percent', 50, 'user_seats', t) \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_channel('webhook', 'https://example.com/', t) \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.grant_credit(t, 91) \g /dev/null
UPDATE billing.metrics SET dimensions = '{team}' WHERE name = 'user_seats';
INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, unique_property, stripe_event_name)
VALUES ('visitors', 'Visitors', 'counter', 'visitors', 'unique_count', 'visitor', 'visitors');
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.record_usage(t, 'user_seats', 90, 'key') \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.reserve(t, 'api_calls', 5) \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.record_usage(t, 'visitors', properties => '{"visitor": 1}') \g /dev/null
SELECT billing.run_rollup() \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.record_usage(t, 'user_seats', 1, 'key-2') \g /dev/null
INSERT INTO billing.price_changes (tenant_id, subscription_id, period_start, changed_at, terms, proration_behavior)
SELECT tenant_id, id, '2029-01-01', '2029-01-02', '{}', 'none' FROM billing.subscriptions;
INSERT INTO billing.subscription_stretches SELECT tenant_id, id, '2029-01-01', '2029-02-01', NULL, 'UTC' FROM billing.subscriptions;
INSERT INTO billing.stripe_sessions (tenant_id, kind, params) SELECT tenant_id, 'portal', '{}' FROM billing.subscriptions;
INSERT INTO billing.subscription_items SELECT tenant_id, id, 'api_calls', 'si_1', 'price_1' FROM billing.subscriptions;
INSERT INTO billing.tenant_prices (tenant_id, plan, terms, set_at) SELECT tenant_id, plan, '{}', billing.now() FROM billing.subscriptions;
INSERT INTO billing.usage_figures (tenant_id, subscription_id, metric, period_start, period_end)
SELECT tenant_id, id, 'user_seats', current_period_start, current_period_end FROM billing.subscriptions;
INSERT INTO billing.item_periods (tenant_id, subscription_id, metric, period_start, period_end)
SELECT tenant_id, id, 'user_seats', current_period_start, current_period_end FROM billing.subscriptions;
INSERT INTO billing.invoices (tenant_id, stripe_invoice_id, status, currency, subtotal, total, amount_due, amount_paid, amount_remaining, created_at)
SELECT t, 'in_1', 'open', 'usd', 1, 1, 1, 0, 1, billing.now() FROM unnest(ARRAY['acme', 'bolt']) t;
INSERT INTO billing.invoice_lines (tenant_id, stripe_invoice_id, stripe_line_id, ordinal, amount, currency)
SELECT t, 'in_1', 'il_1', 1, 1, 'usd' FROM unnest(ARRAY['acme', 'bolt']) t;
INSERT INTO billing.invoice_comparisons (tenant_id, ordinal, unsubmitted, compared_at)
SELECT t, 1, 0, billing.now() FROM unnest(ARRAY['acme', 'bolt']) t;
INSERT INTO billing.late_usage (tenant_id, subscription_id, metric, period_start, period_end, quantity, policy, noted_at)
SELECT tenant_id, id, 'api_calls', current_period_start, current_period_end, 1, 'next_period', billing.now() FROM billing.subscriptions;
SELECT billing.reconcile('current') \g /dev/null
INSERT INTO billing.drift (tenant_id, reconciliation_id, metric, kind, period_start, hour, found_at)
SELECT tenant_id, 1, 'api_calls', 'quota', current_period_start, current_period_start, billing.now() FROM billing.subscriptions;
INSERT INTO billing.export_files (number, name, first_seq, last_seq) VALUES (1, 'usage-1', 1, 2);
INSERT INTO billing.export_lines (tenant_id, seq, file, line) SELECT t, 1, 1, '{}' FROM unnest(ARRAY['acme', 'bolt']) t;
INSERT INTO billing.export_hours (tenant_id, metric, period_start, hour)
SELECT tenant_id, 'api_calls', current_period_start, current_period_start FROM billing.subscriptions;
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing._stripe_enqueue(t, 'customer_create', '', 'POST', '/v1/customers', '{}') \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_api_key(t) \g /dev/null
SELECT billing.receive_webhook('{"id": "evt_1", "type": "invoice.paid"}') \g /dev/null
CREATE TEMP TABLE theirs AS SELECT id AS reservation FROM billing.reservations WHERE tenant_id = 'bolt';
CREATE TEMP TABLE their_channel AS SELECT id AS channel FROM billing.notification_channels WHERE tenant_id = 'bolt';
CREATE TEMP TABLE their_rule AS SELECT id AS rule FROM billing.alert_rules WHERE tenant_id = 'bolt';
GRANT SELECT ON theirs, their_rule, their_channel TO PUBLIC;
CREATE ROLE tap_acme LOGIN IN ROLE billing_tenant;
CREATE ROLE tap_bolt LOGIN IN ROLE billing_tenant;
CREATE ROLE tap_visitor LOGIN IN ROLE billing_tenant;
CREATE ROLE tap_app LOGIN IN ROLE billing_app;
CREATE ROLE tap_admin LOGIN IN ROLE billing_admin;
CREATE ROLE tap_nobody LOGIN;
INSERT INTO billing.tenant_roles VALUES ('acme', 'tap_acme'), ('bolt', 'tap_bolt');

-- Of each table with a tenant_id that a role may read: how many tenants it sees there.
CREATE TEMP TABLE tenant_tables AS
    SELECT c.oid::regclass AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
     WHERE c.relnamespace = 'billing'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition;
GRANT SELECT ON tenant_tables TO PUBLIC;
CREATE FUNCTION pg_temp.seen() RETURNS TABLE (name text, tenants text) LANGUAGE plpgsql AS $$
BEGIN
    FOR name IN SELECT t.name FROM tenant_tables t WHERE has_table_privilege(t.name, 'select') ORDER BY t.name::text COLLATE "C" LOOP
        EXECUTE format('SELECT string_agg(DISTINCT tenant_id, '','' ORDER BY tenant_id) FROM %s WHERE tenant_id <> ''''', name) INTO tenants;
        RETURN NEXT;
    END LOOP;
END $$;

SELECT is(array_agg(name) FILTER (WHERE tenants IS DISTINCT FROM 'acme,bolt'), NULL, 'both tenants have rows in ' || name)
  FROM pg_temp.seen() GROUP BY name ORDER BY name;

-- a mapped role: its own rows in every table, whatever it sets
SET ROLE tap_acme;
SELECT is(tenants, 'acme', 'tap_acme sees its own rows in ' || name) FROM pg_temp.seen() WHERE name <> 'billing.tenant_roles';
SET pg_billing.tenant_id = 'bolt';
SELECT is(string_agg(DISTINCT tenants, ' '), 'acme', 'and no others after it has set pg_billing.tenant_id') FROM pg_temp.seen();
SELECT is((SELECT used FROM billing.get_usage_summary('acme') WHERE metric = 'user_seats'), 91::numeric, 'its summary is its own all the same');
SELECT is((billing.check_quota('acme', 'user_seats', 0)).used, 91::numeric, 'and its check');
SELECT throws_ok($$SELECT billing.check_quota('bolt', 'user_seats')$$, 'UB040', NULL, 'a check for another is refused');
RESET pg_billing.tenant_id;
SELECT is(tenant_id, 'acme', 'it sees its own mapping only') FROM billing.tenant_roles;
SELECT throws_ok($$SELECT billing.check_quota('bolt', 'user_seats')$$, 'UB040', NULL, 'check_quota for another tenant is refused');
SELECT throws_ok($$SELECT billing.get_usage_summary('bolt')$$, 'UB040', NULL, 'get_usage_summary, too');
SELECT throws_ok($$SELECT billing.get_usage_percentage('bolt', 'user_seats')$$, 'UB040', NULL, 'get_usage_percentage, too');
SELECT throws_ok($$SELECT billing.is_over_quota('bolt', 'user_seats')$$, 'UB040', NULL, 'is_over_quota, too');
SELECT throws_ok($$SELECT billing.get_current_usage('bolt', 'user_seats')$$, 'UB040', NULL, 'get_current_usage, too');
SELECT throws_ok($$SELECT billing.get_billable_usage('bolt', 'visitors')$$, 'UB040', NULL, 'get_billable_usage, too');
SELECT throws_ok($$SELECT billing.get_usage_breakdown('bolt', 'user_seats', 'team')$$, 'UB040', NULL, 'get_usage_breakdown, too');
SELECT throws_ok('SELECT billing.' || call, 'UB040', NULL, call || ', too')
  FROM unnest(ARRAY[$$get_quota('bolt', 'user_seats')$$, $$get_remaining_quota('bolt', 'user_seats')$$, $$get_effective_plan('bolt')$$,
                    $$get_current_period('bolt')$$, $$get_days_remaining('bolt')$$, $$get_active_alerts('bolt')$$,
                    $$get_usage_by_hour('bolt', 'user_seats')$$, $$get_usage_by_day('bolt', 'user_seats')$$,
                    $$get_usage_history('bolt', 'user_seats')$$, $$get_projected_usage('bolt', 'user_seats')$$,
                    $$get_projected_cost('bolt')$$, $$get_overage('bolt', 'user_seats')$$, $$get_overage_cost('bolt', 'user_seats')$$,
                    $$get_upcoming_invoice('bolt')$$, $$explain_invoice_line('bolt', 'user_seats')$$,
                    $$get_credit_balance('bolt')$$, $$get_credit_grants('bolt')$$, $$get_credit_ledger('bolt')$$]) call;
SELECT is_empty(format('SELECT FROM billing._%s', call), 'nor is anything told by _' || call)
  FROM unnest(ARRAY[$$usage_hours('bolt', 'visitors', '-infinity', 'infinity')$$, $$standing('bolt', NULL)$$]) call;
SELECT isnt_empty('SELECT FROM billing.' || call || ' x WHERE x IS NOT NULL', 'its own is told by ' || call)
  FROM unnest(ARRAY[$$get_quota('acme', 'user_seats')$$, $$get_remaining_quota('acme', 'user_seats')$$, $$get_effective_plan('acme')$$,
                    $$get_current_period('acme')$$, $$get_days_remaining('acme')$$, $$get_projected_usage('acme', 'user_seats')$$,
                    $$get_projected_cost('acme')$$, $$get_overage('acme', 'user_seats')$$, $$get_overage_cost('acme', 'user_seats')$$]) call;
SELECT is((SELECT max(quantity) FROM billing.get_usage_by_hour('acme', 'user_seats')), 91::numeric, 'by hour');
SELECT is((SELECT sum(quantity) FROM billing.get_usage_by_day('acme', 'visitors')), 1::numeric, 'by day');
SELECT is((SELECT quantity FROM billing.get_usage_history('acme', 'user_seats')), 91::numeric, 'by period');
SELECT is((SELECT quantity FROM billing.get_upcoming_invoice('acme') WHERE metric = 'user_seats'), 91::numeric, 'on its invoice');
SELECT is((SELECT balance FROM billing.get_credit_ledger('acme')), 91::numeric, 'its credit');
SELECT is((SELECT sum(quantity) FROM billing.explain_invoice_line('acme', 'user_seats') WHERE step = 'event'), 91::numeric, 'by event');
SELECT is((SELECT string_agg(DISTINCT tenant, ' ') FROM billing.get_active_alerts()), 'acme', 'and "all" alerts are its own');
SELECT is(billing.get_billable_usage('acme', 'visitors'), 1::numeric, 'its own it sees');
SELECT is(billing.get_billable_usage('acme', 'user_seats'), 91::numeric, 'of a gauge, too');
SELECT is((SELECT quantity FROM billing.get_usage_breakdown('acme', 'user_seats', 'team')), 91::numeric, 'and broken down');
SELECT is_empty($$SELECT * FROM billing.get_subscription('bolt')$$, 'get_subscription finds none');
SELECT throws_ok($$SELECT billing.check_quota('nobody', 'user_seats')$$, 'UB040', NULL, 'whether another tenant exists is not told');
SELECT throws_ok($$SELECT billing.get_usage_summary('nobody')$$, 'UB040', NULL, 'by no function');
SELECT throws_ok($$SELECT billing.record_usage('acme', 'user_seats')$$, '42501', NULL, 'it records nothing');
SELECT throws_ok($$SELECT billing.record_usage_batch('[]')$$, '42501', NULL, 'in no way');
SELECT throws_ok($$SELECT billing.reserve('acme', 'user_seats')$$, '42501', NULL, 'it holds nothing');
SELECT throws_ok($$SELECT billing.void_usage('acme', 'key', 'mine')$$, '42501', NULL, 'and voids nothing');
SELECT throws_ok($$SELECT billing.set_quota('acme', 'user_seats', NULL)$$, '42501', NULL, 'it sets no quota');
SELECT throws_ok($$SELECT billing.grant_credit('acme', 1)$$, '42501', NULL, 'and grants itself no credit');
SELECT throws_ok($$SELECT billing.create_api_key('acme')$$, '42501', NULL, 'and makes no key');
SELECT throws_ok($$INSERT INTO billing.quota_overrides VALUES ('acme', 'api_calls', NULL, 'none', 1, NULL, billing.now())$$, '42501', NULL, 'it writes to no table');
SELECT throws_ok($$UPDATE billing.usage_quotas SET used = 0$$, '42501', NULL, 'changes nothing');
SELECT throws_ok($$DELETE FROM billing.usage_events$$, '42501', NULL, 'and deletes nothing');
SELECT throws_ok($$INSERT INTO billing.tenant_roles VALUES ('bolt', 'tap_acme')$$, '42501', NULL, 'it does not map itself');
SELECT throws_ok($$SELECT * FROM billing.api_keys$$, '42501', NULL, 'it does not read keys');
SELECT throws_ok($$SELECT * FROM billing.stripe_outbox$$, '42501', NULL, 'nor requests to Stripe');
SELECT throws_ok($$SELECT * FROM billing.webhook_events$$, '42501', NULL, 'nor webhooks');

-- partitions asked directly
RESET ROLE;
CREATE TEMP TABLE partitions AS
    SELECT inhrelid::regclass AS name FROM pg_inherits WHERE inhparent IN ('billing.usage_events'::regclass, 'billing.usage_event_keys'::regclass);
GRANT SELECT ON partitions TO PUBLIC;
CREATE FUNCTION pg_temp.refused() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    p record;
    n bigint := 0;
BEGIN
    FOR p IN SELECT name FROM partitions LOOP
        BEGIN
            EXECUTE format('SELECT FROM %s', p.name);
        EXCEPTION WHEN insufficient_privilege THEN
            n := n + 1;
        END;
    END LOOP;
    RETURN n;
END $$;
CREATE FUNCTION pg_temp.rows_in_partitions() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    p record;
    n bigint;
    total bigint := 0;
BEGIN
    FOR p IN SELECT name FROM partitions LOOP
        EXECUTE format('SELECT count(*) FROM %s', p.name) INTO n;
        total := total + n;
    END LOOP;
    RETURN total;
END $$;
SELECT cmp_ok(pg_temp.rows_in_partitions(), '>=', 8::bigint, 'there are rows in partitions');
SELECT is(pg_temp.refused(), 0::bigint, 'which a superuser sees');
SET ROLE tap_acme;
SELECT is(pg_temp.refused(), (SELECT count(*) FROM partitions), 'a tenant is denied every partition');
SET ROLE tap_app;
SELECT is(pg_temp.refused(), (SELECT count(*) FROM partitions), 'the application, too');
RESET ROLE;
DO $$ BEGIN EXECUTE (SELECT format('GRANT SELECT ON %s TO tap_acme, tap_app', string_agg(name::text, ', ')) FROM partitions); END $$;
SET ROLE tap_acme;
SELECT is(pg_temp.rows_in_partitions(), 0::bigint, 'even if somebody has granted it, a tenant sees no row there');
SET ROLE tap_app;
SELECT is(pg_temp.rows_in_partitions(), 0::bigint, 'nor does the application');

-- a role that is not mapped is whom its session says it is, or nobody
SET ROLE tap_visitor;
SELECT is(string_agg(tenants, ' '), NULL, 'an unmapped role that says nothing sees nothing') FROM pg_temp.seen();
SELECT throws_ok($$SELECT billing.check_quota('bolt', 'user_seats')$$, 'UB040', 'the session is of no tenant', 'and checks nothing');
SET pg_billing.tenant_id = 'bolt';
SELECT is(string_agg(DISTINCT tenants, ' '), 'bolt', 'one that names its tenant sees that one''s rows') FROM pg_temp.seen();
SELECT is((billing.check_quota('bolt', 'user_seats', 0)).used, 91::numeric, 'and checks for it');
SELECT throws_ok($$SELECT billing.check_quota('acme', 'user_seats')$$, 'UB040', NULL, 'and for no other');
RESET pg_billing.tenant_id;

-- the application: all tenants, or the one its session is bound to
SET ROLE tap_app;
SELECT is(string_agg(DISTINCT tenants, ' '), 'acme,bolt', 'the application sees all tenants') FROM pg_temp.seen() WHERE name <> 'billing.tenant_roles';
SELECT is((billing.record_usage('bolt', 'user_seats', 1)).status, 'recorded', 'and records for all');
SET pg_billing.tenant_id = 'acme';
SELECT is(string_agg(DISTINCT tenants, ' '), 'acme', 'bound to one it sees that one') FROM pg_temp.seen();
SELECT throws_ok($$SELECT billing.record_usage('bolt', 'user_seats')$$, 'UB040', NULL, 'and records for no other');
SELECT throws_ok($$SELECT billing.reserve('bolt', 'user_seats')$$, 'UB040', NULL, 'and reserves for no other');
SELECT throws_ok($$SELECT billing.set_usage('bolt', 'user_seats', 1)$$, 'UB040', NULL, 'and states no other''s level');
SELECT throws_ok($$SELECT billing.void_usage('bolt', 'key', 'theirs')$$, 'UB040', NULL, 'and voids no other''s usage');
SELECT throws_ok(format('SELECT billing.settle(%L, 1)', reservation), 'UB028', NULL, 'and knows no other''s reservation') FROM theirs;
SELECT throws_ok(format('SELECT billing.release(%L)', reservation), 'UB028', NULL, 'which it does not release either') FROM theirs;
SELECT throws_ok($$SELECT billing.create_alert('percent', 60, tenant_id => 'bolt')$$, 'UB040', NULL, 'and has no other alerted');
SELECT throws_ok($$SELECT billing.create_alert('percent', 60)$$, 'UB040', NULL, 'nor everybody');
SELECT throws_ok(format('SELECT billing.delete_alert(%s)', rule), 'UB081', NULL, 'and takes no other''s alert away') FROM their_rule;
SELECT throws_ok($$SELECT billing.create_channel('sms', '+15550100123', 'bolt')$$, 'UB040', NULL, 'and makes no other''s channel');
SELECT throws_ok($$SELECT billing.create_channel('sms', '+15550100123')$$, 'UB040', NULL, 'nor the operator''s');
SELECT throws_ok(format('SELECT billing.' || call, channel), 'UB083', NULL, 'and knows no other''s: ' || call) FROM their_channel,
    unnest(ARRAY['update_channel(%s)', 'delete_channel(%s)', 'rotate_channel_secret(%s)', 'test_notification(%s)', 'retry_notifications(%s)']) call;
SELECT throws_ok($$SELECT * FROM billing.notification_secrets$$, '42501', NULL, 'nor the secrets of its own');
SELECT throws_ok($$SELECT billing.create_customer('third', 'T', 't@t.example')$$, 'UB040', NULL, 'and creates no other');
-- what a unique key says: nothing about another tenant's keys
SELECT is((billing.record_usage('acme', 'user_seats', 1, 'key-3')).status, 'recorded', 'a key is new');
SET pg_billing.tenant_id = 'bolt';
SELECT is((billing.record_usage('bolt', 'user_seats', 1, 'key-3')).status, 'recorded', 'although another tenant has used it');
RESET pg_billing.tenant_id;
SELECT throws_ok($$INSERT INTO billing.usage_events SELECT * FROM billing.usage_events$$, '42501', NULL, 'the application writes to no table');
SELECT throws_ok($$SELECT billing.set_quota('acme', 'user_seats', NULL)$$, '42501', NULL, 'and sets no quota');

SET ROLE tap_admin;
SELECT is(string_agg(DISTINCT tenants, ' '), 'acme,bolt', 'the administrator sees all tenants') FROM pg_temp.seen() WHERE name <> 'billing.tenant_roles';
SELECT is((SELECT count(*) FROM billing.get_top_tenants('user_seats')), 2::bigint, 'by usage');
SELECT is((SELECT count(*) FROM billing.get_tenants_near_quota(80, 'user_seats')), 2::bigint, 'by what is left of a quota');
SELECT lives_ok($$SELECT billing.set_quota('acme', 'user_seats', 200)$$, 'and sets quotas');
SELECT throws_ok($$UPDATE billing.usage_quotas SET used = 0$$, '42501', NULL, 'but writes to no table');
SET ROLE tap_nobody;
SELECT throws_ok($$SELECT billing.now()$$, '42501', NULL, 'others have no business here');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
