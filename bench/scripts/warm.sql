-- Once in a connection's life: it has met every tenant before its first measured call, as a pool's connections have.
\if :warm = 0
SELECT count((billing.check_quota(tenant_id, 'api_calls')).allowed) FROM peer.counters;
\set warm 1
\endif
