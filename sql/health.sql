-- What is misconfigured, or needs somebody, and how to mend it. Each check looks at what is stored; none waits, asks another system
-- or changes anything, so that monitoring may call it often. What mends itself in time is left out.

CREATE FUNCTION billing.health() RETURNS TABLE (area text, severity text, problem text, hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    at_stripe boolean := EXISTS (SELECT FROM billing.billing_customers c WHERE c.stripe);
    workers boolean := current_setting('pg_billing.database_workers')::boolean;
BEGIN
    RETURN QUERY
    WITH found AS (
        -- settings
        SELECT 'settings', 'error', format('%s is off: a crash may lose usage that was acknowledged, and break the database', s.name),
               format('Set %s = on and restart.', s.name)
          FROM pg_settings s WHERE s.name IN ('fsync', 'full_page_writes') AND s.setting = 'off'
        UNION ALL
        SELECT 'settings', 'warning', 'synchronous_commit is off: a crash loses the usage of the last moments, though it was acknowledged',
               'Set synchronous_commit = on, for the database or for the roles that record usage.'
          FROM pg_settings s WHERE s.name = 'synchronous_commit' AND s.setting = 'off'
        UNION ALL
        SELECT 'settings', 'warning', format('pg_billing.time_shift is %s: billing.now() is not the machine''s time', s.setting || s.unit),
               'It is for tests: set it to 0.'
          FROM pg_settings s WHERE s.name = 'pg_billing.time_shift' AND s.setting <> '0'
        UNION ALL
        SELECT 'settings', 'warning', 'pg_billing.dedup_window is shorter than pg_billing.late_limit: a late event that comes again may count twice',
               'Make it as long, or longer.'
         WHERE billing._duration('pg_billing.dedup_window') BETWEEN '0' AND billing._duration('pg_billing.late_limit') - interval '1 second'
        UNION ALL
        SELECT 'settings', 'warning', 'pg_billing.event_retention is too short: no events are dropped', 'Make it a day longer than pg_billing.late_limit.'
         WHERE billing._duration('pg_billing.event_retention')
               BETWEEN '0' AND billing._duration('pg_billing.late_limit') + interval '24 hours' - interval '1 second'
        UNION ALL
        -- workers
        SELECT 'workers', 'error', 'pg_billing.database_workers is off: usage is not rolled up, nor sent anywhere', 'Set it to on.' WHERE NOT workers
        UNION ALL
        SELECT 'workers', 'error', format('the %s job has failed %s times in a row', w.job, w.failed_runs),
               format('The server log has the reason, as of a "pg_billing %s" worker; it is tried again at %s.', w.job,
                      to_char(w.next_run_at AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'))
          FROM billing.stat_workers w WHERE w.failed_runs >= 3
        UNION ALL
        SELECT 'workers', 'error', format('usage of the last %s is not rolled up', date_trunc('second', l.lag)),
               'A transaction that writes usage and stays open holds the rollup up (pg_stat_activity), or no background worker is free: raise max_worker_processes.'
          FROM billing._rollup_lag() l (lag) WHERE workers AND l.lag > greatest(interval '10 minutes', billing._duration('pg_billing.rollup_interval') * 10)
        UNION ALL
        SELECT 'counters', 'error', format('%s calls were refused because there was no room for another quota counter', c.refused),
               'Raise pg_billing.max_counters and restart; billing.stat_reset() sets this back.'
          FROM billing.stat_counters c WHERE c.refused > 0
        UNION ALL
        -- tables
        SELECT 'tables', 'warning', 'usage_events_default has events: a day has no partition of its own', 'Run billing.maintain(); the rollup job does so every hour.'
         WHERE EXISTS (SELECT FROM billing.usage_events_default)
        UNION ALL
        SELECT 'tables', 'warning', 'no events are dropped, because older usage is not submitted to Stripe', 'See billing.stripe_unsubmitted and billing.stripe_dead_letter.'
          FROM billing.rollup_state s WHERE s.held_back
        UNION ALL
        SELECT 'plans', 'error', format('the price of %s in plan "%s" makes no sense at tier %s', coalesce(format('metric "%s"', t.metric), 'the flat fee'),
                                        p.name, billing._bad_tier(t.terms)),
               'Tiers rise, and the last one, and no other, has no end. Until then nobody can be given the plan.'
          FROM billing.plans p, billing._plan_terms(p.name) t WHERE billing._bad_tier(t.terms) IS NOT NULL
        UNION ALL
        -- Stripe
        SELECT 'stripe', 'error', format('nothing is submitted to Stripe: %s', billing._stripe_ready()),
               CASE current_setting('pg_billing.stripe_api_key_file') WHEN '' THEN 'Name a file that holds the key, and reload.'
                    ELSE 'Mend the cause, then call billing.resume_stripe(), or of a copy that takes over billing.adopt().' END
         WHERE at_stripe AND billing._stripe_ready() IS NOT NULL
        UNION ALL
        SELECT 'stripe', 'error', format('Stripe has refused %s requests for good, the latest (%s) with: %s', count(*),
                                         (array_agg(d.kind ORDER BY d.failed_at DESC))[1], (array_agg(d.error ORDER BY d.failed_at DESC))[1]),
               'billing.stripe_dead_letter has them, with a hint for each; then call billing.retry_failed().'
          FROM billing._stripe_dead_letter() d HAVING count(*) > 0
        UNION ALL
        SELECT 'stripe', 'warning', format('%s requests to Stripe have waited for more than an hour, the oldest with: %s', count(*),
                                           coalesce((array_agg(w.last_error ORDER BY w.waiting_since))[1], 'no answer yet')),
               'See billing.stripe_waiting; they are tried again by themselves.'
          FROM billing._stripe_waiting() w WHERE w.waiting_since < clock_timestamp() - interval '1 hour' HAVING count(*) > 0
        UNION ALL
        SELECT 'stripe', 'error', format('usage since %s is not submitted to Stripe, which takes none that is older than 35 days',
                                         to_char(min(u.oldest_hour) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')),
               coalesce('Held up: ' || min(u.held_up_by) || '.', 'See billing.stripe_unsubmitted, stripe_waiting and stripe_state.')
          FROM billing._stripe_unsubmitted() u WHERE u.oldest_hour < billing.now() - interval '1 day' HAVING count(*) > 0
        UNION ALL
        SELECT 'stripe', 'warning', format('somebody has changed a %s of ours at Stripe: %s', c.object_type, c.note), 'Change it back there, or call billing.sync_plans().'
          FROM billing.catalog_drift c
        UNION ALL
        SELECT 'webhooks', 'warning', 'no webhook of Stripe''s has ever come in: payments and changes made there are learnt an hour late',
               'Make an endpoint at Stripe for the shim''s /api/webhooks/stripe (docs/http.md).'
         WHERE NOT EXISTS (SELECT FROM billing.webhook_events)
           AND EXISTS (SELECT FROM billing.stripe_outbox o WHERE o.kind = 'subscription_create' AND o.settled_at < clock_timestamp() - interval '1 hour')
        UNION ALL
        SELECT 'webhooks', 'error', format('%s webhooks have waited for more than a quarter of an hour', count(*)), 'See the stripe job in billing.stat_workers, and the server log.'
          FROM billing.webhook_events e WHERE e.processed_at IS NULL AND e.opened_at < clock_timestamp() - interval '15 minutes' HAVING count(*) > 0
        UNION ALL
        SELECT 'webhooks', 'error', format('%s webhooks could not be applied, the latest with: %s', count(*), (array_agg(e.error ORDER BY e.processed_at DESC))[1]),
               'Mend the cause, then call billing.replay_webhooks().'
          FROM billing.webhook_events e WHERE e.outcome = 'failed' HAVING count(*) > 0
        UNION ALL
        SELECT 'reconciliation', 'error', format('%s differences between the ledger and Stripe, or within the tables, are open', count(*)),
               'billing.stripe_drift has them; billing.repair() says what it would do about each.'
          FROM billing.drift d WHERE d.repaired_at IS NULL HAVING count(*) > 0
        UNION ALL
        -- what else leaves the database
        SELECT 'notifications', 'error', format('%s channels of kind %s cannot be used: %s is not set', count(*), c.kind, k.setting), format('Set %s.', k.setting)
          FROM billing.notification_channels c
          JOIN (VALUES ('email', 'pg_billing.smtp_url'), ('sms', 'pg_billing.sms_url')) k (kind, setting) ON k.kind = c.kind
         WHERE c.enabled AND current_setting(k.setting) = '' GROUP BY c.kind, k.setting
        UNION ALL
        SELECT 'notifications', 'warning', format('channel %s of tenant "%s" is disabled: %s', c.id, c.tenant_id, c.disabled_reason),
               'Mend it, enable it with billing.update_channel(), and send what it missed with billing.retry_notifications().'
          FROM billing.notification_channels c WHERE NOT c.enabled AND c.disabled_reason IS NOT NULL
        UNION ALL
        SELECT 'quota cache', 'error', format('the quota cache in Redis was not updated: %s', c.error), 'See docs/quota-cache.md; nothing but the cache is affected.'
          FROM billing.quota_cache_state c WHERE current_setting('pg_billing.redis_url') <> '' AND c.error IS NOT NULL
        UNION ALL
        SELECT 'files', 'error', format('usage of metric "%s" is to be exported to files, and pg_billing.export_directory is not set', m.name),
               'Name a directory that the server may write to.'
          FROM billing.metrics m WHERE m.export = 'file' AND current_setting('pg_billing.export_directory') = ''
        UNION ALL
        SELECT 'files', 'error', format('file %s of exported usage could not be written: %s', f.name, f.error), 'Mend the cause; it is written again by itself.'
          FROM billing.export_files f WHERE f.written_at IS NULL AND f.error IS NOT NULL
        UNION ALL
        SELECT 'API keys', 'warning', format('API key %s… expires on %s', k.prefix, to_char(k.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')),
               'Make another with billing.create_api_key(), and revoke this one once nobody uses it.'
          FROM billing.api_keys k
         WHERE k.revoked_at IS NULL AND k.expires_at BETWEEN billing.now() AND billing.now() + interval '7 days'
    )
    SELECT * FROM found f (area, severity, problem, hint) ORDER BY f.severity, f.area, f.problem;
END $$;
COMMENT ON FUNCTION billing.health() IS
    'lists what is misconfigured or needs somebody, errors first, and how to mend it; no row: all is well';
