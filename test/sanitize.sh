#!/usr/bin/env bash
# Runs the suites on a PostgreSQL with assertions, ASan and UBSan, the extension and the programs compiled likewise:
# test/sanitize.sh [suite…]. Building that server takes minutes, so it is kept in build/sanitize/server until the
# installed PostgreSQL is another one.
set -euo pipefail
cd "$(dirname "$0")/.."
suites=(unit regress isolation pgtap e2e)
[ $# -eq 0 ] || suites=("$@")

test/setup.sh sanitize
source test/lib/sanitizer.sh
source test/lib/cluster.sh
source test/lib/build.sh
major=${PG_MAJOR:-15}
version=$(dpkg-query -W -f '${Version}' "postgresql-$major")
BUILD=$BUILD/sanitize
server=$BUILD/server

build_server() {
    rm -rf "$server"
    server_directory "$server"
    (cd "$server" && as_server_user "$TOP/test/lib/sanitized_server.sh" "postgresql-$major" "$version") &&
        cp "/usr/share/postgresql/$major/extension"/pgtap* \
            "$("$server/installed/bin/pg_config" --sharedir)/extension/" &&
        echo "$version" >"$server/version"
}
if [ "$(cat "$server/version" 2>/dev/null)" != "$version" ]; then
    echo "building the server"
    build_step server build_server
fi
rm -rf "$BUILD/run"  # else reports of an earlier run would count again
SANITIZE=address,undefined PG_CONFIG=$server/installed/bin/pg_config PG_BILLING_BUILD=$BUILD \
    exec test/run.sh "${suites[@]}" reports
