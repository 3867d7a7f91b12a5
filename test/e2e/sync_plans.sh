#!/usr/bin/env bash
# sync_plans() brings the catalogue to Stripe: from nothing, again, after edits, amid faults, to an account where much of it
# is already, by our hand or another's; and tells what became of each object.
source "$(dirname "$0")/../lib/e2e.sh"

fault() { sandbox POST /_sandbox/faults -d "$1" >/dev/null; }
sync() { sql "SELECT billing.sync_plans('90 s')" >/dev/null; }
# actions: how often what became of an object.
actions() { sql "SELECT string_agg(concat_ws(' ', n, object, action), ', ' ORDER BY object, action)
                   FROM (SELECT object, action, count(*) n FROM billing.sync_plans('90 s') GROUP BY 1, 2) a"; }
# changed: the objects that are not as they were.
changed() { sql "SELECT concat_ws(' | ', object, name, action, detail) FROM billing.sync_plans('90 s') WHERE action <> 'unchanged'"; }
requests() { sandbox GET '/_sandbox/requests?path_prefix=/v1/' | jq "[.[] | select(.method $1)] | length"; }
catalogue() { # what Stripe has of ours, without ids
    sandbox GET '/v1/products?limit=100' | jq -cS '[.data[] | select(.id != "other") | [.id, .name, .active, .metadata]] | sort'
    sandbox GET '/v1/billing/meters?limit=100' | jq -cS '[.data[] | select(.status == "active") | [.event_name, .display_name, .event_time_window]] | sort'
    sandbox GET '/v1/entitlements/features?limit=100' | jq -cS '[.data[] | select(.lookup_key != "other") | [.lookup_key, .name, .active]] | sort'
    sandbox GET '/v1/prices?limit=100&active=true&expand%5B0%5D=data.tiers' |
        jq -cS '[.data[] | select(.lookup_key != null) | del(.id, .created, .recurring.meter)] | sort_by(.lookup_key)'
    for plan in $(sql 'SELECT name FROM billing.plans ORDER BY 1'); do
        sandbox GET "/v1/products/pgb_plan_$plan/features?limit=100" | jq -c '[.data[].entitlement_feature.lookup_key | select(. != "other")] | sort'
    done
}
known() { sql "SELECT name, stripe_product_id, stripe_meter_id, stripe_feature_id FROM billing.metrics ORDER BY 1"
    sql 'SELECT plan, metric, since, stripe_price_id FROM billing.plan_prices ORDER BY 1, 2, 3'; }
# anew [setting=value…]: another database, as it were, that bills the same account.
anew() {
    cluster_reload main "$@"
    sql 'DROP EXTENSION IF EXISTS pg_billing' 2>/dev/null
    sql 'DROP SCHEMA IF EXISTS billing CASCADE' 2>/dev/null
    sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
}

sandbox_start
cluster_start main "${STRIPE_SETTINGS[@]}" pg_billing.rollup_interval=3600 pg_billing.submit_interval=3600
anew
is 'from nothing, all is created' "$(actions)" \
    '5 feature created, 5 meter created, 15 plan feature created, 18 price created, 8 product created'
posts=$(requests '== "POST"') all=$(requests '!= ""')
is 'the second time nothing changes' "$(actions)" \
    '5 feature unchanged, 5 meter unchanged, 15 plan feature unchanged, 18 price unchanged, 8 product unchanged'
is 'nor is anything asked' "$(requests '== "POST"') $(requests '!= ""')" "$posts $all"
from_nothing=$(catalogue)
is 'a customer is entitled to the metrics of its plan' "$(sql "SELECT billing.create_customer('acme', 'Acme', 'a@example.com'),
        billing.create_subscription('acme', 'free', 'send_invoice', 30)" >/dev/null
    sync
    sandbox GET "/v1/entitlements/active_entitlements?customer=$(sql 'SELECT stripe_customer_id FROM billing.billing_customers')" |
        jq -r '[.data[].lookup_key] | sort | join(" ")')" 'pgb_agent_executions pgb_api_calls pgb_llm_tokens pgb_storage_gb pgb_user_seats'

## After edits
sql "UPDATE billing.plans SET display_name = 'Team', price = 10900 WHERE name = 'standard';
     UPDATE billing.metrics SET display_name = 'Tokens' WHERE name = 'llm_tokens';
     UPDATE billing.price_tiers SET up_to = NULL WHERE (plan, metric, ordinal) = ('enterprise', 'api_calls', 1)"
old=$(sql "SELECT stripe_price_id FROM billing.plan_prices WHERE plan = 'standard' AND metric IS NULL")
is 'edits are carried out, and what makes no sense is told' "$(changed)" "product | llm_tokens | updated | called Tokens
product | standard | updated | called Team
meter | llm_tokens | updated | called Tokens
feature | llm_tokens | updated | called Tokens
price | enterprise api_calls | failed | the new price is not valid at tier 1: it stays what it was
price | standard | created | in place of $old, which bills otherwise
price | standard | updated | deactivated"
sql "UPDATE billing.plans SET display_name = 'Standard', price = 9900 WHERE name = 'standard';
     UPDATE billing.metrics SET display_name = 'LLM tokens' WHERE name = 'llm_tokens';
     UPDATE billing.price_tiers SET up_to = 1000000 WHERE (plan, metric, ordinal) = ('enterprise', 'api_calls', 1)"
sync
is 'and back' "$(catalogue)" "$from_nothing"

## Another database finds all of it; what bills otherwise is replaced, what another has made is left alone
sandbox POST /v1/products -d id=other -d name=Other >/dev/null
sandbox POST "/v1/products/pgb_plan_free/features" -d "entitlement_feature=$(
    sandbox POST /v1/entitlements/features -d lookup_key=other -d name=Other | jq -r .id)" >/dev/null
sandbox POST "/v1/products/pgb_plan_free" -d name=Gratis -d active=false >/dev/null
sandbox POST /v1/prices -d currency=usd -d product=pgb_plan_free -d unit_amount=100 -d 'recurring[interval]=month' \
    -d lookup_key=pgb_free_month -d transfer_lookup_key=true >/dev/null
foreign=$(sandbox GET '/v1/prices?lookup_keys%5B0%5D=pgb_free_month' | jq -r '.data[0].id')
known >"$RUN/first"
anew
sql "SELECT billing.sync_plans('90 s')" >"$RUN/second"
is 'what is there is found, and what is otherwise mended' "$(grep -v ,found, "$RUN/second" | sed 's/price_[^,]*,/ID,/')" \
    "(product,free,pgb_plan_free,updated,\"called Free\")
(price,free,ID,created,\"in place of $foreign, which bills otherwise\")"
is 'the rest is' "$(grep -c ,found, "$RUN/second")" 49
is 'now Stripe has what it had' "$(catalogue)" "$from_nothing"
is 'and what is of others' "$(sandbox GET /v1/products/other | jq -r .name) $(
    sandbox GET '/v1/products/pgb_plan_free/features?limit=100' | jq '[.data[] | select(.entitlement_feature.lookup_key == "other")] | length')" 'Other 1'
is 'both databases know the same objects, but for the prices that were edited, and that one' \
    "$(diff <(known) "$RUN/first" | grep '^[<>]' | cut -d'|' -f1,2,3 | xargs -d '\n')" '< free||1 > free||1 < standard||1 > standard||1 > standard||2 > standard||3'

## Half of it, and then the rest, amid faults
sandbox_start
anew "${STRIPE_SETTINGS[@]}" pg_billing.stripe_timeout=2
for kind in '"429"' '"500"' '"500", "effect": true' '"drop_after"' '"drop_before"' '"409"'; do
    fault "{\"path_prefix\": \"/v1/\", \"fault\": $kind, \"probability\": 0.04}"
done
sql "DELETE FROM billing.price_tiers WHERE plan <> 'free'; DELETE FROM billing.plan_metrics WHERE plan <> 'free';
     DELETE FROM billing.plans WHERE name <> 'free'"
ok 'one plan is brought to a Stripe that often fails' wait_until -t 120 sql "SELECT billing.sync_plans('60 s')"
anew
ok 'and from another database all of them' wait_until -t 120 sql "SELECT billing.sync_plans('60 s')"
is 'nothing was refused' "$(sql "SELECT count(*) FROM billing.stripe_outbox WHERE state <> 'delivered'")" 0
sandbox DELETE /_sandbox/faults >/dev/null
is 'then Stripe has all, once' "$(catalogue)" "$from_nothing"
is 'and nothing besides' "$(sandbox GET /_sandbox/state | jq -c '.counts | [.product, .price, ."billing.meter", ."entitlements.feature", .product_feature]')" \
    '[8,18,5,5,15]'
is 'which is known' "$(changed)" ''
done_testing
