#!/usr/bin/env bash
# The README's tour and its examples of alerts and quota triggers do what they say.
source "$(dirname "$0")/../lib/e2e.sh"

# section FILE HEADING | examples: the SQL of it
section() { sed -n "/^## $2\$/,/^## /p" "$TOP/$1"; }
examples() { sed -n '/^```sql$/,/^```$/{/^```/d;p}' "$@"; }

tour=$RUN/tour.sql triggers=$RUN/triggers.sql
cluster_start main
section README.md Tour | examples >"$tour"
ok 'the tour has at most 25 lines' test "$(grep -vc '^$' "$tour")" -le 25
ok 'the tour runs' cluster_psql -o "$RUN/answers" -f "$tour"
is 'the tour answers what it says' "$(tr '\n' ' ' <"$RUN/answers")" \
    ' acme 1 t|within_quota|10000 recorded|8000|2000 duplicate|8000|2000 recorded|soft_cap_exceeded denied|upgrade_required  recorded|0 recorded|3 agent_executions|2|5|40.00 llm_tokens|11000|10000|110.00 '

section README.md 'Alerts and notifications' | examples >"$RUN/alerts.sql"
ok 'the examples of alerts and notifications run' cluster_psql -o "$RUN/answers" -f "$RUN/alerts.sql"
section README.md 'Quota triggers' | examples >"$triggers"
ok 'the example of a quota trigger runs' cluster_psql -f "$triggers"
like 'a fourth member is one too many' "$(sql "INSERT INTO members VALUES (4, 'acme')" 2>&1)" 'quota exceeded: tenant "acme"'
sql 'TRUNCATE members; DROP TABLE members'
examples "$TOP/docs/quota-triggers.md" >"$triggers"
ok 'those of docs/quota-triggers.md run' cluster_psql -o "$RUN/answers" -f "$triggers"
is 'and tell what there is' "$(cat "$RUN/answers")" 'recorded|3'
sql "INSERT INTO members VALUES (1, NULL)"
like 'and cap it' "$(sql "UPDATE members SET org = 'acme'" 2>&1)" 'quota exceeded: tenant "acme"'
like 'the extension does not go unnoticed then' "$(sql 'DROP EXTENSION pg_billing' 2>&1)" 'other objects depend on it'
sql 'DROP TABLE members, files, seats'

ok 'the tables are nobody'"'"'s members: DROP EXTENSION keeps them' sql 'DROP EXTENSION pg_billing'
is 'and their rows' "$(sql "SELECT count(*) FROM billing.usage_events WHERE properties IS NULL AND metric <> 'user_seats'")" 3
done_testing
