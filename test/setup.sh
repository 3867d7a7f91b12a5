#!/usr/bin/env bash
# Installs what this machine lacks to build and try pg_billing; with the argument `check`, also what its tests need,
# with `bench` what bench/run.sh and with `sanitize` what test/sanitize.sh needs.
#
# Says nothing and touches nothing when all is there. Never leaves a daemon running: Debian would start PostgreSQL
# and Redis on installation, and everything here brings its own private servers.
set -euo pipefail

major=${PG_MAJOR:-15}
packages=(make g++ cmake ninja-build ccache pkg-config curl jq ca-certificates
    "postgresql-$major" "postgresql-server-dev-$major" libpq-dev libboost1.81-dev libssl-dev libcurl4-openssl-dev
    nlohmann-json3-dev libhiredis-dev libxxhash-dev libcli11-dev libgtest-dev redis-server)
if [[ ${1:-} == @(check|bench|sanitize) ]]; then
    packages+=(nginx-light libnginx-mod-http-lua lua-nginx-redis caddy syslog-ng-core syslog-ng-mod-http clang-format sqlsmith "postgresql-$major-pgtap" libtap-parser-sourcehandler-pgtap-perl libipc-run-perl openssl git prometheus)
    # A node from elsewhere (nodesource, nvm) conflicts with Debian's.
    command -v node >/dev/null || packages+=(nodejs)
    command -v npm >/dev/null || packages+=(npm)
fi
[ "${1:-}" != bench ] || packages+=(wrk)
[ "${1:-}" != sanitize ] || packages+=(dpkg-dev patch zlib1g-dev)

die() {
    echo "setup: $*" >&2
    exit 1
}
command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    die "no apt here; install the equivalents of: ${packages[*]}"

version_of() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true; }
# dpkg-query fails if it knows one of them not, and still prints the others.
installed=" $({ dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true; } |
    sed -n 's/^installed //p' | tr '\n' ' ') "
missing=()
for package in "${packages[@]}"; do
    [[ $installed == *" $package "* ]] || missing+=("$package")
done
# Minor releases change what the headers promise: server and headers must be of the same one.
server=$(version_of "postgresql-$major") headers=$(version_of "postgresql-server-dev-$major")
if [ -n "$server" ] && [ -n "$headers" ] && [ "$server" != "$headers" ]; then
    missing+=("postgresql-$major" "postgresql-server-dev-$major")
fi
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || die "missing packages; run as root: apt-get install ${missing[*]}"
    as_root=(sudo -n)
fi

log=$(mktemp)
added=()
cleanup() {
    [ ${#added[@]} -eq 0 ] || "${as_root[@]}" rm -f "${added[@]}"
    rm -f "$log"
}
trap cleanup EXIT
if [ ! -e /usr/sbin/policy-rc.d ]; then
    added+=(/usr/sbin/policy-rc.d)
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
    "${as_root[@]}" chmod +x /usr/sbin/policy-rc.d
fi
if [ -z "$server" ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    "${as_root[@]}" mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
fi

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Options::=--force-confold "$@"; }
echo "setup: installing ${missing[*]}"
# Refresh the package lists only if what they offer cannot be had.
apt install --no-install-recommends "${missing[@]}" >"$log" 2>&1 ||
    { apt update >"$log" 2>&1 && apt install --no-install-recommends "${missing[@]}" >"$log" 2>&1; } ||
    die "apt-get could not install: $(grep -m1 '^E:' "$log" || tail -n 1 "$log")"
