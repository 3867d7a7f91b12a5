# The life of subscriptions at the sandbox Stripe, for tests that look at both sides of it; sourced after services.sh.

fault() { sandbox POST /_sandbox/faults -d "$1" >/dev/null; }
# stripe_id TENANT: its latest subscription there.
stripe_id() { sql "SELECT stripe_subscription_id FROM billing.subscriptions WHERE tenant_id = '$1' ORDER BY id DESC LIMIT 1"; }
# invoices TENANT FILTER: the invoices of that subscription.
invoices() { sandbox GET "/v1/invoices?subscription=$(stripe_id "$1")&limit=100" | jq -c "$2"; }
# told TENANT, previewed TENANT: quantities and amounts of the upcoming invoice, as told here and by Stripe.
told() { sql "SELECT string_agg(concat_ws(' ', quantity, amount), ', ' ORDER BY amount, quantity) FROM billing.get_upcoming_invoice('$1')"; }
previewed() {
    sandbox POST /v1/invoices/create_preview -d "subscription=$(stripe_id "$1")" |
        jq -r '[.lines.data[] | [.amount, (.quantity_decimal | tonumber)]] | sort | map("\(.[1]) \(.[0])") | join(", ")'
}
