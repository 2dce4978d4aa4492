#!/bin/sh
# copy-tree.sh DIRECTORY: what git knows of this checkout, as it is on the disk, for whoever packs it.
set -eu
cd "$(dirname "$0")/.."
list=$(mktemp)
trap 'rm -f "$list"' EXIT
# Root may build in the clone of another user, whose repository git would not read otherwise.
if ! git -c safe.directory="$PWD" ls-files -z --cached --others --exclude-standard >"$list"; then
    echo "$0: packages are built from a clone, because git knows what belongs into them: git clone" >&2
    exit 69
fi
xargs -0 cp -P --parents -t "$1" <"$list"
