#!/usr/bin/env bash
# The README's tour does what it says.
source "$(dirname "$0")/../lib/e2e.sh"

tour=$RUN/tour.sql
cluster_start main
sed -n '/^## Tour/,/^## /{/^```sql$/,/^```$/{/^```/d;p}}' "$TOP/README.md" >"$tour"
ok 'the tour has at most 25 lines' test "$(grep -vc '^$' "$tour")" -le 25
ok 'the tour runs' cluster_psql -o "$RUN/answers" -f "$tour"
is 'the tour answers what it says' "$(tr '\n' ' ' <"$RUN/answers")" \
    ' acme 1 t|within_quota|10000 recorded|8000|2000 duplicate|8000|2000 recorded|soft_cap_exceeded denied|upgrade_required  recorded|0 recorded|3 agent_executions|2|5|40.00 llm_tokens|11000|10000|110.00 '
ok 'the tables are nobody'"'"'s members: DROP EXTENSION keeps them' sql 'DROP EXTENSION pg_billing'
is 'and their rows' "$(sql 'SELECT count(*) FROM billing.usage_events')" 3
done_testing
