-- Metrics and plans: all of it data, editable with SQL. Money is in the currency's minor unit (cents). Limits count as they
-- are; prices are frozen in versions (sql/prices.sql).

CREATE FUNCTION billing._install_catalog() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TABLE IF NOT EXISTS billing.metrics (
        name              text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,62}$'),
        display_name      text NOT NULL,
        kind              text NOT NULL CHECK (kind IN ('counter', 'gauge')),
        unit              text NOT NULL,
        aggregation       text NOT NULL DEFAULT 'sum',
        unique_property   text,
        dimensions        text[] NOT NULL DEFAULT '{}',
        scale             smallint NOT NULL DEFAULT 6 CHECK (scale BETWEEN 0 AND 9),  -- decimals kept
        export            text NOT NULL DEFAULT 'hourly_total' CHECK (export IN ('hourly_total', 'delta', 'delta_stream', 'invoice_items', 'file')),
        stripe_event_name text NOT NULL UNIQUE,
        -- what Stripe has confirmed
        stripe_product_id text,
        stripe_name       text,
        stripe_meter_id   text,
        stripe_meter_name text,
        stripe_feature_id text,
        stripe_feature_name text,
        stripe_meter_active boolean NOT NULL DEFAULT true,  -- false: it was deactivated at Stripe, and takes no usage
        CHECK (aggregation IN ('sum', 'count', 'max', 'last', 'unique_count') AND kind = 'counter'
               OR aggregation IN ('time_weighted', 'max') AND kind = 'gauge'),
        CONSTRAINT deltas_add_up
            CHECK (export NOT IN ('delta', 'delta_stream') OR kind = 'counter' AND aggregation IN ('sum', 'count', 'unique_count')),
        CONSTRAINT files_hold_counters CHECK (export <> 'file' OR kind = 'counter'),
        CONSTRAINT unique_count_has_unique_property
            CHECK ((aggregation = 'unique_count') = (unique_property IS NOT NULL)),
        -- few and short enough that a row of usage_breakdown always fits into its index
        CONSTRAINT dimensions_are_few_and_short
            CHECK (cardinality(dimensions) <= 5 AND octet_length(array_to_string(dimensions, '', '')) <= 250
                   AND array_position(dimensions, NULL) IS NULL),
        CONSTRAINT metrics_with_dimensions_add_up
            CHECK (cardinality(dimensions) = 0 OR kind = 'gauge' OR aggregation IN ('sum', 'count'))
    );
    COMMENT ON TABLE billing.metrics IS 'what is measured: counters reset each billing period, gauges persist';
    COMMENT ON COLUMN billing.metrics.aggregation IS
        'what a billing period bills: of a counter the sum, count, max, last or unique_count of its events; of a gauge its time_weighted average or its max';
    COMMENT ON COLUMN billing.metrics.unique_property IS
        'of a unique_count: the property of an event whose different values are counted';
    COMMENT ON COLUMN billing.metrics.dimensions IS
        'properties by which usage can be broken down, counted from their declaration on; up to five, of sums, counts and gauges';
    COMMENT ON COLUMN billing.metrics.export IS
        'how usage reaches who bills it: hourly_total, an hour''s total that overwrites; delta, what came since, that adds; delta_stream, the same through the event stream; invoice_items, what a period comes to, rated here; file, not Stripe but files; see docs/export.md';
    COMMENT ON COLUMN billing.metrics.scale IS 'decimals a quantity may have; a quantity with more is refused';

    CREATE TABLE IF NOT EXISTS billing.plans (
        name              text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,62}$'),
        display_name      text NOT NULL,
        price             numeric NOT NULL CHECK (price >= 0),
        currency          text NOT NULL DEFAULT 'usd' CHECK (currency ~ '^[a-z]{3}$'),
        interval_months   int NOT NULL DEFAULT 1 CHECK (interval_months BETWEEN 1 AND 12),
        fee_interval_months int,    -- of the fee, where it differs
        past_due_grace    interval NOT NULL DEFAULT '7 days',
        late_usage        text CHECK (late_usage IN ('ignore', 'next_period', 'invoice_item')),  -- null: pg_billing.late_usage
        -- what Stripe has confirmed
        stripe_product_id text,
        stripe_name       text,
        stripe_features_known boolean NOT NULL DEFAULT false,    -- plan_features has all that its product has
        CONSTRAINT fees_are_of_the_period_or_a_year_of_months
            CHECK (fee_interval_months IS NULL OR fee_interval_months = 12 AND interval_months = 1)
    );
    COMMENT ON TABLE billing.plans IS 'a named bundle of a flat price (minor units per interval) and plan_metrics';
    COMMENT ON COLUMN billing.plans.fee_interval_months IS
        '12: the fee is billed yearly, while usage, and so the billing period, is of a month; null: the fee is billed each period, too';

    CREATE TABLE IF NOT EXISTS billing.plan_metrics (
        plan            text NOT NULL REFERENCES billing.plans,
        metric          text NOT NULL REFERENCES billing.metrics,
        allowance       numeric CHECK (allowance >= 0 AND allowance < 'Infinity'),  -- included quantity; null: unlimited
        cap             text NOT NULL CHECK (cap IN ('hard', 'soft', 'none')),
        grace           numeric NOT NULL DEFAULT 1 CHECK (grace >= 1 AND grace < 'Infinity'),  -- a soft cap refuses past allowance * grace
        grace_period    interval CHECK (grace_period >= interval '0'),  -- … and past the allowance, this long after it was reached
        price_model     text NOT NULL DEFAULT 'graduated' CHECK (price_model IN ('graduated', 'volume', 'package')),
        package_size    bigint CHECK (package_size > 0),
        package_round   text CHECK (package_round IN ('up', 'down')),   -- what a part of a package counts as
        PRIMARY KEY (plan, metric),
        CONSTRAINT packages_have_a_size_and_a_rounding
            CHECK ((price_model = 'package') = (package_size IS NOT NULL)
                   AND (price_model = 'package') = (package_round IS NOT NULL))
    );
    COMMENT ON TABLE billing.plan_metrics IS 'per plan and metric: allowance, cap, grace and how its price_tiers are meant';
    COMMENT ON COLUMN billing.plan_metrics.price_model IS
        'graduated: each unit costs what its own tier says; volume: all units cost what the tier of the last one says; package: the one tier''s amount is that of package_size units';

    CREATE TABLE IF NOT EXISTS billing.plan_window_limits (
        plan   text NOT NULL REFERENCES billing.plans,
        metric text NOT NULL REFERENCES billing.metrics,
        per    text NOT NULL CHECK (per IN ('hour', 'day')),
        quota  numeric NOT NULL CHECK (quota >= 0 AND quota < 'Infinity'),
        PRIMARY KEY (plan, metric, per)
    );
    COMMENT ON TABLE billing.plan_window_limits IS
        'hard limits per hour or day inside the billing period, such as 10,000 calls a day of 100,000 a month';

    CREATE TABLE IF NOT EXISTS billing.metric_windows (
        metric text NOT NULL REFERENCES billing.metrics,
        per    text NOT NULL CHECK (per IN ('hour', 'day')),
        PRIMARY KEY (metric, per)
    );
    COMMENT ON TABLE billing.metric_windows IS
        'metrics whose usage is counted per hour or day, for every tenant, because one of them had such a limit once';

    -- Tiers as Stripe has them: they end at whole units, and the last one does not end.
    CREATE TABLE IF NOT EXISTS billing.price_tiers (
        plan        text NOT NULL,
        metric      text NOT NULL,
        ordinal     int NOT NULL,
        up_to       numeric CHECK (up_to > 0 AND up_to < 'Infinity' AND up_to = trunc(up_to)),     -- null: no upper end
        unit_amount numeric NOT NULL CHECK (unit_amount >= 0 AND unit_amount < 'Infinity' AND min_scale(unit_amount) <= 12),
        flat_amount numeric CHECK (flat_amount >= 0 AND flat_amount < 'Infinity' AND min_scale(flat_amount) <= 12),
        PRIMARY KEY (plan, metric, ordinal),
        FOREIGN KEY (plan, metric) REFERENCES billing.plan_metrics ON DELETE CASCADE
    );
    COMMENT ON TABLE billing.price_tiers IS
        'price of a metric in a plan, in minor units: unit_amount of each unit, flat_amount of reaching the tier; see docs/pricing.md';

    INSERT INTO billing.metrics (name, display_name, kind, unit, aggregation, scale, stripe_event_name) VALUES
        ('llm_tokens',       'LLM tokens',       'counter', 'tokens',     'sum', 0, 'llm_tokens'),
        ('agent_executions', 'Agent executions', 'counter', 'executions', 'sum', 0, 'agent_executions'),
        ('api_calls',        'API calls',        'counter', 'calls',      'sum', 0, 'api_calls'),
        ('storage_gb',       'Storage',          'gauge',   'GB',         'time_weighted', 9, 'storage_gb'),
        ('user_seats',       'User seats',       'gauge',   'seats',      'max', 0, 'user_seats')
    ON CONFLICT DO NOTHING;
    INSERT INTO billing.plans (name, display_name, price) VALUES
        ('free', 'Free', 0), ('standard', 'Standard', 9900), ('enterprise', 'Enterprise', 49900)
    ON CONFLICT DO NOTHING;
    INSERT INTO billing.plan_metrics (plan, metric, allowance, cap, grace) VALUES
        ('free',       'llm_tokens',          10000, 'soft', 1.2),
        ('free',       'agent_executions',      100, 'soft', 1.2),
        ('free',       'api_calls',            1000, 'soft', 1.2),
        ('free',       'storage_gb',              1, 'hard', 1),
        ('free',       'user_seats',              3, 'hard', 1),
        ('standard',   'llm_tokens',        1000000, 'none', 1),
        ('standard',   'agent_executions',     5000, 'none', 1),
        ('standard',   'api_calls',          100000, 'none', 1),
        ('standard',   'storage_gb',            100, 'none', 1),
        ('standard',   'user_seats',             25, 'none', 1),
        ('enterprise', 'llm_tokens',       10000000, 'none', 1),
        ('enterprise', 'agent_executions',    50000, 'none', 1),
        ('enterprise', 'api_calls',         1000000, 'none', 1),
        ('enterprise', 'storage_gb',           1000, 'none', 1),
        ('enterprise', 'user_seats',           NULL, 'none', 1)
    ON CONFLICT DO NOTHING;
    INSERT INTO billing.price_tiers (plan, metric, ordinal, up_to, unit_amount) VALUES
        ('free',       'llm_tokens',       1,     NULL, 0),
        ('free',       'agent_executions', 1,     NULL, 0),
        ('free',       'api_calls',        1,     NULL, 0),
        ('free',       'storage_gb',       1,     NULL, 0),
        ('free',       'user_seats',       1,     NULL, 0),
        ('standard',   'llm_tokens',       1,  1000000, 0), ('standard',   'llm_tokens',       2, NULL, 0.001),
        ('standard',   'agent_executions', 1,     5000, 0), ('standard',   'agent_executions', 2, NULL, 10),
        ('standard',   'api_calls',        1,   100000, 0), ('standard',   'api_calls',        2, NULL, 0.1),
        ('standard',   'storage_gb',       1,      100, 0), ('standard',   'storage_gb',       2, NULL, 50),
        ('standard',   'user_seats',       1,       25, 0), ('standard',   'user_seats',       2, NULL, 500),
        ('enterprise', 'llm_tokens',       1, 10000000, 0), ('enterprise', 'llm_tokens',       2, NULL, 0.0005),
        ('enterprise', 'agent_executions', 1,    50000, 0), ('enterprise', 'agent_executions', 2, NULL, 5),
        ('enterprise', 'api_calls',        1,  1000000, 0), ('enterprise', 'api_calls',        2, NULL, 0.05),
        ('enterprise', 'storage_gb',       1,     1000, 0), ('enterprise', 'storage_gb',       2, NULL, 25),
        ('enterprise', 'user_seats',       1,     NULL, 0)
    ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION billing._check_plan(plan text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM billing.plans p WHERE p.name = plan) THEN
        RAISE EXCEPTION 'unknown plan "%"', plan
            USING ERRCODE = 'UB012', HINT = 'SELECT name FROM billing.plans lists the plans.';
    END IF;
END $$;
