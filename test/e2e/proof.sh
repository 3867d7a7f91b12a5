#!/usr/bin/env bash
# The overshoot proof, its short form; and that it can fail. `make proof` is the long form.
source "$(dirname "$0")/../proof/proof.sh"

proof_start 8
run() {
    local status=0
    proof "$@" >"$RUN/output" 2>&1 || status=$?
    cat "$RUN/output"
    return $status
}
ok 'under terminations and two server kills: overshoot 0, lost 0, double 0' run proof --seconds 6 --kills 2
sed 's/^/# /' "$RUN/output"
ok 'asking first and recording second does not pass' not run naive --naive --seconds 0 --kills 0 --terminations 0
like 'because it overshoots' "$(tail -n 1 "$RUN/output")" 'overshoot [1-9][0-9]*, lost 0, double 0'
done_testing
