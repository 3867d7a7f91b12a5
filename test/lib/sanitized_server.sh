#!/usr/bin/env bash
# Builds a PostgreSQL that checks itself (assertions, ASan, UBSan) from the source of a Debian package, and leaves it in
# ./installed: sanitized_server.sh PACKAGE VERSION. Everything stays below the working directory, which should be empty:
# apt's lists of sources, too. Needs no rights, and should have none.
set -euo pipefail
package=$1 version=$2

# apt's programs on the machine's repositories, but on their sources only, with lists of their own.
with_sources() {
    local program=$1
    shift
    "$program" -q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$PWD/sources" \
        -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User= "$@"
}
mkdir -p sources lists/partial cache/archives/partial
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    ! grep -qsE 'debian|postgresql' "$file" ||
        sed -E 's/^Types:.*/Types: deb-src/; s/^deb(-src)? /deb-src /' "$file" >"sources/$(basename "$file")"
done
with_sources apt-get update

# The version asked for or, as an archive may have a package without its source, the newest that can be had.
known=$(with_sources apt-cache showsrc --only-source "$package" | sed -n 's/^Version: //p' | sort -rV)
for version in "$version" $known ''; do
    [ -n "$version" ] || { echo "error: no source of $package" >&2; exit 1; }
    ! with_sources apt-get source --only-source --download-only "$package=$version" || break
done
# Debian's patches make it install into the system's directories; the one that is wanted lets tests load an extension
# from where it was built.
dpkg-source --no-check --skip-patches --extract "${package}_${version#*:}.dsc" source
patch -d source -p1 <source/debian/patches/extension_destdir

export ASAN_OPTIONS=detect_leaks=0  # of the programs that configure and make run
flags='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all'
cd source
# The C++ runtime: ASan follows exceptions only if that is there when the server starts, before any extension.
./configure --quiet --prefix="$(realpath ..)/installed" --enable-cassert \
    --with-openssl --without-readline --with-system-tzdata=/usr/share/zoneinfo \
    CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS_EX='-Wl,--no-as-needed -lstdc++ -Wl,--as-needed'
make -s -j"$(nproc)"
make -s install
