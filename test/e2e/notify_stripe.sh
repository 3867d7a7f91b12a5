#!/usr/bin/env bash
# What happens at Stripe is told: an invoice, a payment that fails, a subscription that is past due and ends, and a request
# that Stripe refuses.
source "$(dirname "$0")/../lib/e2e.sh"
source "$LIB/clock.sh"

told() { sql "SELECT string_agg(event || ' ' || n, ', ' ORDER BY event) FROM (SELECT event, count(*) AS n FROM billing.notifications
              WHERE coalesce(about, '') = '$1' AND channel_id = $OPS GROUP BY 1) e"; }
is_told() { sync_stripe && [ "$(told "$1")" = "$2" ]; }

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2 pg_billing.rollup_interval=3600
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
shim_start
clock_to "$(date -u -d '2030-01-31 08:20' +%s)"
OPS=$(sql "SELECT channel FROM billing.create_channel('sms', '+15550100123')")
sql "SELECT billing.create_customer('owes', 'Owes', 'owes@example.com', stripe_test_clock => '$STRIPE_CLOCK');
     SELECT billing.create_channel('sms', '+15550100124', 'owes');
     SELECT billing.create_subscription('owes', 'standard', trial_days => 1)" >/dev/null
sync_stripe
clock_to "$(date -u -d '2030-02-01 12:00' +%s)"
ok 'a payment that fails is told, and what it leads to' wait_until -t 60 is_told owes \
    'invoice.finalized 2, invoice.payment_failed 1, subscription.past_due 1'
like 'with the amount' "$(sql "SELECT message FROM billing.notifications WHERE event = 'invoice.payment_failed' LIMIT 1")" \
    '^A payment of owes for invoice .* has failed: 99.00 USD are due.$'
sql "SELECT billing.cancel_subscription('owes', false)" >/dev/null
like 'and its end' "$(told owes)" 'subscription.canceled 1'
is 'the tenant is told the same' "$(sql "SELECT count(*) FROM billing.notifications WHERE tenant_id = 'owes'")" \
    "$(sql "SELECT count(*) FROM billing.notifications WHERE tenant_id = ''")"

sandbox POST /_sandbox/faults -d '{"path_prefix": "/v1/customers", "fault": "500", "should_retry": false, "times": 2}' >/dev/null
sql "SELECT billing.create_customer(t, t, 'a@example.com') FROM unnest('{first,second}'::text[]) t" >/dev/null
sql 'SELECT billing.run_stripe_sync()' 2>/dev/null || true
is 'two refusals are told once' "$(told '') of $(sql 'SELECT count(*) FROM billing.stripe_dead_letter')" 'stripe.dead_letter 1 of 2'
done_testing
