#!/usr/bin/env bash
# one clock: business code takes the time from billing.now(), never from now() or CURRENT_TIMESTAMP
! git grep -noiE '[a-z_.]*\bnow\(\)|current_timestamp|localtimestamp|(transaction|statement)_timestamp\(' -- 'sql/*.sql' |
    grep -vi ':billing\.now()$'
