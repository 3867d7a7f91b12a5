#!/usr/bin/env bash
# one clock: business code takes the time from billing.now(), and nothing reads now() or CURRENT_TIMESTAMP
! git grep -nIiE '(^|[^._a-z])now\(\)|current_timestamp|localtimestamp|transaction_timestamp\(|statement_timestamp\(' -- 'sql/*.sql'
