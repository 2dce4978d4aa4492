#!/bin/sh
# release.sh DIRECTORY [KEY]: sizes and checksums of what `make` has built in DIRECTORY, in SHA256SUMS (for sha256sum -c);
# signed with that key of gpg, if one is given, into SHA256SUMS.asc.
set -eu
cd "$1"
key=${2:-}
rm -f SHA256SUMS SHA256SUMS.asc
found=
for file in *.deb *.rpm *.pyz *.json; do
	[ ! -f "$file" ] || found="$found $file"
done
[ -n "$found" ] || { echo "ebpfwatch: nothing is built in $1; make deb image rpm triage builds it" >&2; exit 1; }
# shellcheck disable=SC2086 # one word a file: the names are ours
sha256sum $found >SHA256SUMS
# shellcheck disable=SC2086
wc -c $found | sed '/ total$/d' | sort -k2
if [ -n "$key" ]; then
	gpg --batch --yes --local-user "$key" --armor --detach-sign --output SHA256SUMS.asc SHA256SUMS
	echo "signed by $key: gpg --verify SHA256SUMS.asc SHA256SUMS && sha256sum -c SHA256SUMS"
else
	echo "not signed, because no key was given (KEY=): sha256sum -c SHA256SUMS finds only damage, no exchange"
fi
