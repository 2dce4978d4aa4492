#!/bin/sh
# build-deb.sh DIRECTORY: the Debian package of this checkout (what git knows, as it is on the disk), built in a
# directory of its own and checked by lintian.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$1"
# The distribution's Python, whatever else is first in the path.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
out=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/ebpfwatch"
sh deploy/copy-tree.sh "$work/ebpfwatch"
cp -r deploy/debian "$work/ebpfwatch/debian"
cd "$work/ebpfwatch"
dpkg-buildpackage -us -uc -b >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; exit 1; }
lintian --fail-on error,warning --allow-root --tag-display-limit 0 "$work"/*.changes
mv "$work"/*.deb "$out"
ls "$out"/*.deb
