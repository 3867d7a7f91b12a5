SELECT count((billing.check_quota(tenant_id, 'api_calls')).allowed) FROM peer.counters;
