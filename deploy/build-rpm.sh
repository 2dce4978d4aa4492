#!/bin/sh
# build-rpm.sh DIRECTORY: the RPM of this checkout (what git knows, as it is on the disk), checked by rpmlint where
# that is installed. --nodeps: on Debian rpm does not know what dpkg has installed.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$1"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
out=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(python3 -c 'import ebpfwatch; print(ebpfwatch.__version__)')
mkdir -p "$work/SOURCES" "$work/ebpfwatch-$version"
sh deploy/copy-tree.sh "$work/ebpfwatch-$version"
tar -czf "$work/SOURCES/ebpfwatch-$version.tar.gz" -C "$work" "ebpfwatch-$version"
rpmbuild -bb --nodeps --define "_topdir $work" --define "version_ $version" --define "_dbpath $work/db" \
	deploy/rpm/ebpfwatch.spec >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; exit 1; }
if command -v rpmlint >/dev/null; then
	rpmlint --config deploy/rpm/rpmlint.toml "$work"/RPMS/noarch/*.rpm
fi
mv "$work"/RPMS/noarch/*.rpm "$out"
ls "$out"/*.rpm
