SELECT * FROM billing.record_usage_batch(:events::jsonb);
