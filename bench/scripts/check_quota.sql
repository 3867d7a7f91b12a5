SELECT billing.check_quota(:tenant, 'api_calls');
