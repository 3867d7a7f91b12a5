-- Corrections: the level of a gauge stated, an event taken back (C++, extension/corrections.cpp).

CREATE FUNCTION billing.set_usage(tenant_id text, metric text, level numeric, idempotency_key text DEFAULT NULL,
                                  occurred_at timestamptz DEFAULT NULL, properties jsonb DEFAULT NULL)
RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_set_usage';
COMMENT ON FUNCTION billing.set_usage(text, text, numeric, text, timestamptz, jsonb) IS
    'states the level of a gauge, recorded as the difference to its level now, whenever occurred_at is; never denied; waits for transactions that are changing the gauge. Raises as record_usage does, and UB032 for a counter';

CREATE FUNCTION billing.void_usage(tenant_id text, idempotency_key text, reason text)
RETURNS billing.decision
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_billing_void_usage';
COMMENT ON FUNCTION billing.void_usage(text, text, text) IS
    'takes back the usage recorded with an idempotency key, once, by an event of the negated quantity at the same time; the key stays known. Raises UB010, UB023, UB024, UB027, UB032 without a reason, UB033 for an unknown key, UB034 if the usage is not kept any more, UB035, UB040, UB050, UB051';
