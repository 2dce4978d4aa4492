#!/bin/sh
# install-packages.sh PACKAGE...: installs what is missing, and touches the network only then.
set -eu

missing=
for package in "$@"; do
	status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
	[ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "ebpfwatch: these packages are missing:$missing; run it as root: sudo make ..." >&2
	exit 77
fi
export DEBIAN_FRONTEND=noninteractive
# A daemon of a test's package must not start by itself: we start our own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
apt-get -q update
# shellcheck disable=SC2086 # one word a package
apt-get -q install -y --no-install-recommends $missing
