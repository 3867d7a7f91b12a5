#!/usr/bin/env bash
# The API's description and the TypeScript client, against the real server: the document is well-formed, answers are as it
# says, and the client's Express middleware enforces and tracks.
source "$(dirname "$0")/../lib/e2e.sh"

cluster_start main pg_billing.database_workers=off
sql 'CREATE EXTENSION pg_billing' && sql 'SELECT billing.install()' >/dev/null
sql 'CREATE ROLE shim LOGIN IN ROLE billing_app'
sql "SELECT billing.create_customer(t, t, 'billing@example.com', stripe => false) FROM unnest('{described,idle,enforced,tracked,other}'::text[]) t" >/dev/null
sql "SELECT billing.create_subscription(t, 'free') FROM unnest('{enforced,tracked,other}'::text[]) t" >/dev/null
sql "SELECT billing._apply_invoice('described', jsonb_build_object('id', 'in_' || n, 'status', 'paid', 'currency', 'usd', 'subtotal', 100, 'total', 100,
         'amount_due', 100, 'amount_paid', 100, 'amount_remaining', 0, 'created', 1700000000 + n, 'invoice_pdf', 'https://pay.example/' || n || '.pdf',
         'lines', '{\"has_more\": false, \"data\": [{\"id\": \"il_1\", \"description\": \"Fee\", \"quantity\": 1, \"amount\": 100, \"currency\": \"usd\"}]}'::jsonb))
       FROM generate_series(1, 3) n" >/dev/null
openssl rand -hex 32 >"$RUN/token.secret"
PGUSER=shim shim_start --token-secret-file "$RUN/token.secret"
wait_until curl -sf "$SHIM_URL/readyz" >/dev/null

PACKAGE=$BUILD/typescript
mkdir -p "$PACKAGE/clients/typescript" "$PACKAGE/shim"
cp "$TOP/shim/openapi.json" "$PACKAGE/shim/"
tar -C "$TOP/clients/typescript" --exclude=./node_modules --exclude=./dist -c . | tar -C "$PACKAGE/clients/typescript" -x
cd "$PACKAGE/clients/typescript"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >"$RUN/npm.log" 2>&1 || die "npm ci failed: $(tail -n 1 "$RUN/npm.log")"
ok 'the description of the API has no fault that a linter finds' npm run lint
ok 'the client is built from it' npm run build

SERVICE_KEY=$(sql "SELECT billing.create_api_key(scopes => '{usage:read,usage:write,subscription:read,subscription:write,sessions:create,metrics:read}')") SHIM_URL=$SHIM_URL \
    node --test --test-reporter=tap test/*.test.js >"$RUN/node.tap" 2>&1 || true
while IFS= read -r line; do
    ok "${line#*ok [0-9]* - }" test "${line%% *}" = ok
done < <(grep -E '^(not )?ok [0-9]+ - ' "$RUN/node.tap")
none_failed() { grep -q '^# fail 0$' "$RUN/node.tap" || { grep -A 8 '^ *error:' "$RUN/node.tap" && false; }; }
ok 'all of it ran' none_failed

done_testing
