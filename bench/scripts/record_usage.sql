SELECT billing.record_usage(:tenant, 'api_calls', 1, to_hex(:high::bigint) || to_hex(:low::bigint));
