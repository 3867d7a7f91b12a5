#!/usr/bin/env bash
# Makes Debian packages of the extension and of the shim, in build/deb: packaging/deb.sh [MAJOR] (of PostgreSQL; default: 15).
#
# dpkg-buildpackage wants debian/ at the top of the sources, so it gets a copy of what is committed. Needs debhelper, and
# what test/setup.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."
major=${1:-${PG_MAJOR:-15}}
version=$(sed -n "s/^default_version *= *'\(.*\)'/\1/p" pg_billing.control)
command -v dh >/dev/null || { echo "deb: debhelper is missing: apt-get install debhelper" >&2; exit 1; }
[ -x "/usr/lib/postgresql/$major/bin/pg_config" ] || { echo "deb: postgresql-server-dev-$major is missing" >&2; exit 1; }

top=$PWD source=$PWD/build/deb/pg-billing-$version
rm -rf build/deb
mkdir -p "$source"
git archive HEAD | tar -x -C "$source"
cp -r "$source/packaging/debian" "$source/debian"
cd "$source"
sed -i "s/@PGVERSION@/$major/g" debian/control.in debian/rules
mv debian/control.in debian/control
{ sed '/@LICENSE@/d' debian/copyright; sed -e 's/^$/./' -e 's/^/ /' LICENSE; } >debian/copyright.full
mv debian/copyright.full debian/copyright
cat >debian/changelog <<END
pg-billing ($version-1) unstable; urgency=medium

  * See CHANGELOG.md.

 -- pg_billing contributors <maintainers@pg-billing.example>  $(git -C "$top" log -1 --format=%cD)
END
dpkg-buildpackage --build=binary --unsigned-changes --unsigned-source
ls "$top"/build/deb/*.deb
