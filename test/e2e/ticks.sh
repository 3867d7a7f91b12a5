#!/usr/bin/env bash
# A writer joins a tick while the rollup closes it, or while another database takes its place: between any two steps of
# one, the other happens. Either the rollup knows of the writer, or the writer of the new tick; else what it writes would
# never be rolled up.
source "$(dirname "$0")/../lib/e2e.sh"
source "$TOP/test/border/module.sh"

server_directory "$RUN"
ok 'the module builds without a warning' border_module ticks
cluster_start main pg_billing.database_workers=off
# How many steps there are, and before which the other one did harm.
for race in join_beside_close close_beside_join join_beside_reclaim; do
    sql "CREATE FUNCTION $race(step int) RETURNS boolean LANGUAGE c AS '$RUN/ticks.so'"
    IFS='|' read -r steps wrong < <(sql "SELECT count(ok), string_agg(step::text, ' ') FILTER (WHERE NOT ok)
                                           FROM (SELECT step, $race(step) AS ok FROM generate_series(0, 999) step) s")
    ok "$race has $steps steps" test "$steps" -gt 0 -a "$steps" -lt 1000
    is 'and goes well between any two' "$wrong" ''
done
done_testing
