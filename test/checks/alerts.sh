#!/usr/bin/env bash
# every alert rule is in the runbook, and the runbook names no other
diff <(sed -n 's/^ *- alert: //p' docs/monitoring/alerts.yml | sort) <(grep -oE '^\| `PgBilling[^|]*' docs/operations.md | grep -oE 'PgBilling[A-Za-z]+' | sort)
