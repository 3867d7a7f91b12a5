SELECT * FROM billing.record_usage_batch(:tenant_ids::text[], :metrics::text[], :quantities::numeric[],
                                         :idempotency_keys::text[], :occurred_ats::timestamptz[]);
