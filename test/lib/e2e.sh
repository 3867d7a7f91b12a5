# What an end-to-end script sources: TAP, private servers and services, all of them stopped when it ends.
#
#   source "$(dirname "$0")/../lib/e2e.sh"
#   sandbox_start; cluster_start main "${STRIPE_SETTINGS[@]}"; sql 'CREATE EXTENSION pg_billing' …
#   is 'one tenant' "$(sql 'SELECT count(*) FROM billing.billing_customers')" 1
#   done_testing

set -euo pipefail
LIB=$(dirname "${BASH_SOURCE[0]}")
source "$LIB/tap.sh"
source "$LIB/cluster.sh"
source "$LIB/services.sh"

e2e_end() {
    service_stop_all
    cluster_stop_all
    tap_end
}
trap e2e_end EXIT
